int bare_exits(int vcpu, struct kvm_run *run, uint32_t reason, uint64_t exits, uint64_t parts,
	       struct kvm_coalesced_mmio_ring *ring, struct histogram *latency);
int bare_immediate_exits(int vcpu, struct kvm_run *run, uint64_t calls, struct histogram *latency);
int bare_system_ioctls(int kvm, uint64_t calls, struct histogram *latency);
uint64_t bare_record_ns(uint64_t records);
int bare_interrupts(int vcpu, struct kvm_run *run, uint32_t vector, uint64_t interrupts,
		    struct histogram *latency);
