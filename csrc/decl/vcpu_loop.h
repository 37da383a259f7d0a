#define LOOP_REASONS ...
#define LOOP_TICK_NS ...
#define GUARD_LIMIT ...
enum loop_stop {
	STOP_NONE, STOP_EXIT, STOP_GUEST_EXIT, STOP_ASSERT, STOP_HLT, STOP_MAX_EXITS, STOP_KICK,
	STOP_SIGNAL, STOP_DEADLINE, STOP_LOG_FULL, STOP_MEMORY_ERROR, STOP_CONVERSION_FAILED,
	STOP_EMULATED_ACCESS, STOP_GUARD, STOP_RUN_FAILED, STOP_BUSY,
	STOP_UNKNOWN_WRITE, ...
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
	int thread;
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
void loop_disarm(struct vcpu_loop *loop, bool keep_timer);
void loop_forget_kick(struct vcpu_loop *loop);
void loop_finish_record(struct vcpu_loop *loop);
int loop_kick_signal(void);
uint64_t loop_reasons(const struct vcpu_loop *loop);
