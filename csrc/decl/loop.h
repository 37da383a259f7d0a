/* What Python sees of the C core; "..." is completed by the compiler. */

/* memory.h */
enum page_state { PAGE_SHARED, PAGE_PRIVATE, ... };
enum memory_policy { POLICY_CONVERT, POLICY_DENY, POLICY_ASK, ... };
enum memory_mechanism {
	MECHANISM_PROT_NONE, MECHANISM_SLOTS, MECHANISM_ATTRIBUTES, MECHANISM_PRESENCE, ...
};
#define MEMORY_MAX_REGIONS ...

/* slot_window.h */
struct slot_window {
	uint32_t slot_base;
	uint32_t *slot_of_page;
	...;
};

struct region {
	uint64_t private_gpa;
	uint64_t shared_gpa;
	uint64_t pages;
	int private_fd;
	int shared_fd;
	void *private_host;
	void *shared_host;
	uint32_t slot_base;
	uint32_t slot_count;
	uint32_t mechanism;
	uint8_t *states;
	struct slot_window private_window;
	struct slot_window shared_window;
	uint64_t to_private;
	uint64_t to_shared;
	uint64_t implicit;
	uint64_t explicit_;
	uint64_t spurious;
	...;
};

struct memory {
	uint32_t policy;
	uint32_t region_count;
	uint64_t generation;
	struct region regions[...];
	...;
};

struct memory_access {
	uint64_t gpa;
	uint32_t size;
	bool is_write;
	bool is_fetch;
	bool is_frame;
	...;
};

struct memory_exit {
	struct memory_access access;
	enum page_state wanted;
	uint64_t converted;
	uint64_t conversion_ns;
	int error;
	...;
};

int memory_init(struct memory *memory, int vm_fd, const char *backend, uint32_t policy);
void memory_deinit(struct memory *memory);
void memory_forget_vm(struct memory *memory);
bool memory_peek(const struct memory *memory, uint64_t gpa, void *bytes, uint64_t size);
void memory_add_ram(struct memory *memory, uint64_t gpa, uint64_t size, const void *host);
int memory_add_region(struct memory *memory, const struct region *wanted);
int memory_convert(struct memory *memory, uint64_t gpa, uint64_t pages, uint32_t state,
		   uint64_t *converted);
int memory_copy(struct memory *memory, uint64_t gpa, void *bytes, uint64_t size, bool is_write);

/* protocol.h */
#define PORT_CONSOLE ...
#define PORT_EXIT ...
#define PORT_DOORBELL_GPA ...
#define PORT_FEATURES ...
#define FEATURE_HYPERCALL ...
#define FEATURE_TWO_VIEWS ...
#define CONSOLE_SIZE ...
#define MEASURES_SIZE ...
#define PYTHON_WINDOWS ...
#define UNCLAIMED_GPAS ...

struct gpa_window {
	uint64_t gpa;
	uint64_t size;
	...;
};

struct unclaimed {
	uint64_t address;
	uint64_t count;
};

struct protocol {
	uint32_t features;
	bool enabled;
	bool unclaimed_to_python;
	uint32_t python_window_count;
	uint64_t console_written;
	uint64_t measures_written;
	struct gpa_window python_windows[...];
	uint8_t python_ports[...];
	char console[...];
	uint32_t measures[...];
	...;
};

struct protocol_vcpu {
	uint32_t exit_code;
	uint32_t assert_gpa;
	bool by_stub;
	...;
};

/* vector_stub.h */
#define VECTORS ...
#define VECTOR_STUBS ...
#define STUB_OUT_AL ...
#define STUB_OUT_AX ...
int vector_of_stub(int vcpu_fd, const struct memory *memory, const struct kvm_run *run);

/* exit_log.h */
enum exit_conversion { CONVERSION_NONE, CONVERSION_TO_SHARED, CONVERSION_TO_PRIVATE, ... };

struct histogram {
	uint64_t count;
	uint64_t sum;
	uint64_t min;
	uint64_t max;
	uint64_t buckets[...];
	...;
};

struct exit_record {
	uint64_t time_in;
	uint64_t time_out;
	uint64_t address;
	uint32_t reason;
	uint32_t size;
	uint8_t is_write;
	uint8_t conversion;
	uint64_t conversion_ns;
	...;
};

struct exit_log {
	struct exit_record *records;
	uint64_t capacity;
	uint64_t written;
	uint64_t drained;
	...;
};

struct exit_split {
	uint64_t count;
	uint64_t handling_ns;
	uint64_t conversion_ns;
	uint64_t outside_ns;
};

void exit_log_split(const struct exit_log *log, uint64_t first, int conversion, uint64_t parts,
		    struct exit_split *split, struct histogram *latency);

/* record_clock.h */
struct record_clock {
	bool uses_tsc;
	uint64_t anchor_tsc;
	uint64_t anchor_ns;
	uint64_t anchor_clock_ns;
	uint64_t rate;
	uint64_t lifetime;
	uint64_t latest_tsc;
	...;
};

uint64_t monotonic_ns(void);
void record_clock_init(struct record_clock *clock);
uint64_t record_clock_ns(struct record_clock *clock);
uint64_t record_clock_later_ns(struct record_clock *clock);

/* exit_log.h */
void histogram_clear(struct histogram *histogram);
uint64_t histogram_bucket_floor(uint32_t bucket);
void histogram_record(struct histogram *histogram, uint64_t value);
uint64_t histogram_percentile(const struct histogram *histogram, double fraction);
void histogram_add(struct histogram *into, const struct histogram *from);

/* vcpu_loop.h */
#define LOOP_REASONS ...
#define LOOP_TICK_NS ...
#define GUARD_LIMIT ...
enum loop_stop {
	STOP_NONE, STOP_EXIT, STOP_GUEST_EXIT, STOP_ASSERT, STOP_HLT, STOP_MAX_EXITS, STOP_KICK,
	STOP_SIGNAL, STOP_DEADLINE, STOP_LOG_FULL, STOP_MEMORY_ERROR, STOP_CONVERSION_FAILED,
	STOP_EMULATED_ACCESS, STOP_GUARD, STOP_RUN_FAILED, STOP_BUSY, ...
};

struct exit_times {
	uint64_t count;
	uint64_t total;
	uint64_t min;
	uint64_t max;
	...;
};

struct vcpu_loop {
	int vcpu_fd;
	struct kvm_run *run;
	uint64_t run_size;
	struct memory *memory;
	struct protocol *protocol;
	uint32_t sync_registers;
	uint64_t deadline;
	uint64_t max_exits;
	bool recording;
	bool stop_on_full_log;
	bool convert_once;
	int error;
	struct memory_exit memory_exit;
	struct protocol_vcpu guest;
	uint64_t exits[...];
	uint64_t exits_beyond;
	uint64_t exit_total;
	uint64_t interrupted;
	uint64_t kicks;
	uint64_t kick_sent_ns;
	uint64_t kick_seen_ns;
	int timer_thread;
	struct exit_log log;
	struct exit_times times[...];
	struct histogram exit_latency;
	struct histogram conversion_latency;
	...;
};

int loop_init(struct vcpu_loop *loop, uint64_t log_capacity);
void loop_deinit(struct vcpu_loop *loop);
int loop_run(struct vcpu_loop *loop);
void loop_kick(struct vcpu_loop *loop);
void loop_disarm(struct vcpu_loop *loop);
void loop_forget_kick(struct vcpu_loop *loop);
void loop_finish_record(struct vcpu_loop *loop);
int loop_kick_signal(void);

struct protocol *protocol_create(void);
void protocol_destroy(struct protocol *protocol);
uint32_t protocol_unclaimed_ports(const struct protocol *protocol, struct unclaimed *most,
				  uint32_t room, uint64_t *total);
uint32_t protocol_unclaimed_gpas(const struct protocol *protocol, struct unclaimed *first,
				 uint32_t room, uint64_t *total);

/* kvm_ioctl.h */
long kvm_ioctl(int fd, unsigned long request, uintptr_t argument);
long kvm_ioctl_on(int fd, unsigned long request, void *argument);
uint64_t loop_reasons(const struct vcpu_loop *loop);
void *host_map(size_t size, int protection, int flags, int fd, int64_t offset);
void host_unmap(size_t size, void *address);
void name_thread(const char *name);

/* guest_cpu.h */
int guest_cpu_choose(int cpu);

/* page_range.h */
int page_range_allocate(int fd, uint64_t offset, uint64_t size);
int page_range_punch(int fd, uint64_t offset, uint64_t size);

/* bench/ */
enum bare_call {
	BARE_ALLOCATE, BARE_PUNCH, BARE_PROTECT, BARE_ADD_SLOT, BARE_DELETE_SLOT,
	BARE_ATTRIBUTES, ...
};
enum bare_timing { BARE_UNTIMED, BARE_TIME_WHOLE, BARE_TIME_PARTS, ... };
enum bare_part {
	BARE_PART_ALLOCATE, BARE_PART_ATTRIBUTES, BARE_PART_SWITCH, BARE_PART_DISCARD, BARE_PARTS,
	...
};
enum bare_phase {
	BARE_CREATE, BARE_SLOTS, BARE_VCPU, BARE_FIRST_EXIT, BARE_RESET, BARE_CLOSE, BARE_PHASES,
	...
};

struct bare_step {
	uint32_t call;
	uint32_t part;
	int fd;
	int guest_memfd;
	int protection;
	uint32_t slot;
	uint64_t gpa;
	uint64_t offset;
	uint64_t size;
	uint64_t attributes;
	void *host;
};

struct bare_direction {
	uint64_t gpa;
	uint64_t size;
	void *host;
	const struct bare_step *steps;
	uint64_t step_count;
	struct record_clock clock;
	uint64_t conversions;
	uint64_t whole_ns;
	uint64_t parts_ns[...];
};

int bare_exits(int vcpu, struct kvm_run *run, uint32_t reason, uint64_t exits, uint64_t parts,
	       struct kvm_coalesced_mmio_ring *ring, struct histogram *latency);
int bare_immediate_exits(int vcpu, struct kvm_run *run, uint64_t calls, struct histogram *latency);
int bare_system_ioctls(int kvm, uint64_t calls, struct histogram *latency);
uint64_t bare_record_ns(uint64_t records);
int bare_interrupts(int vcpu, struct kvm_run *run, uint32_t vector, uint64_t interrupts,
		    struct histogram *latency);
int bare_kicks(int vcpu, struct kvm_run *run, int kick_signal, int kicker_cpu, uint64_t kicks,
	       uint64_t *sum, struct histogram *latency);
int loop_kicks(struct vcpu_loop *loop, int kicker_cpu, uint64_t kicks, uint64_t *sum,
	       struct histogram *latency);
int bare_conversions(int vcpu, struct kvm_run *run, struct bare_direction *to_private,
		     struct bare_direction *to_shared, uint64_t conversions,
		     enum bare_timing timing);
int bare_convert_pairs(struct bare_direction *to_private, struct bare_direction *to_shared,
		       uint64_t pairs, enum bare_timing timing);
int memory_convert_pairs(struct memory *memory, uint64_t gpa, uint64_t pages, uint64_t pairs,
			 uint64_t *private_ns, uint64_t *shared_ns,
			 struct histogram *to_private, struct histogram *to_shared);
int page_range_pairs(int file, uint64_t size, uint64_t pairs, uint64_t *allocate_ns,
		     uint64_t *discard_ns, struct histogram *allocate, struct histogram *discard);
int bare_life(const void *image, uint64_t size, int timer_signal, bool prot_none, bool reset,
	      uint64_t *phases_ns);

/* <errno.h>, where Python's errno has it not */
#define EHWPOISON ...

/* <sys/syscall.h>: those that a KVM test can hang in */
#define SYS_close ...
#define SYS_exit_group ...
#define SYS_fallocate ...
#define SYS_ioctl ...
#define SYS_madvise ...
#define SYS_mmap ...
#define SYS_munmap ...
