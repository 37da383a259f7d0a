int bare_kicks(int vcpu, struct kvm_run *run, int kick_signal, int kicker_cpu, uint64_t kicks,
	       uint64_t *sum, struct histogram *latency);
int loop_kicks(struct vcpu_loop *loop, int kicker_cpu, uint64_t kicks, uint64_t *sum,
	       struct histogram *latency);
