/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "vcpu_loop.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "guest_cpu.h"
#include "ticks.h"
#include "vector_stub.h"

int loop_init(struct vcpu_loop *loop, uint64_t log_capacity)
{
	if (loop_kick_signal() == 0)
		return -EBUSY;
	if (log_capacity & (log_capacity - 1))
		return -EINVAL;
	/* A struct memory that memory_init() has not seen would be met at the first exit. */
	if (!loop->run || !loop->memory || !loop->memory->backend || !loop->protocol)
		return -EINVAL;
	record_clock_init(&loop->clock);
	/* The rest is zero, as the caller made it: to clear it twice would cost the caches. */
	loop->exit_latency.min = UINT64_MAX;
	loop->conversion_latency.min = UINT64_MAX;
	if (log_capacity > 0) {
		/* Not cleared: a record is read only after it was written. */
		loop->log.records = reallocarray(NULL, log_capacity, sizeof(*loop->log.records));
		if (!loop->log.records)
			return -ENOMEM;
	}
	loop->log.capacity = log_capacity;
	return 0;
}

/* Only one thread at a time is in a loop. */
static bool enter(struct vcpu_loop *loop)
{
	return !__atomic_exchange_n(&loop->running, true, __ATOMIC_ACQUIRE);
}

static void leave(struct vcpu_loop *loop)
{
	__atomic_store_n(&loop->running, false, __ATOMIC_RELEASE);
}

void loop_disarm(struct vcpu_loop *loop, bool keep_timer)
{
	if (!enter(loop))
		return;
	(keep_timer ? pause_ticks : stop_ticks)(loop);
	leave(loop);
}

void loop_forget_kick(struct vcpu_loop *loop)
{
	if (!enter(loop))
		return;
	__atomic_store_n(&loop->kick_requested, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&loop->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
	leave(loop);
}

uint64_t loop_reasons(const struct vcpu_loop *loop)
{
	uint64_t reasons = 0;
	uint32_t reason;

	_Static_assert(LOOP_REASONS <= 64, "a bit for each");
	for (reason = 0; reason < LOOP_REASONS; reason++)
		reasons |= (uint64_t)(loop->exits[reason] != 0) << reason;
	return reasons;
}

void loop_deinit(struct vcpu_loop *loop)
{
	stop_ticks(loop);
	free(loop->log.records);
	loop->log.records = NULL;
	loop->log.capacity = 0;
}

void loop_kick(struct vcpu_loop *loop)
{
	pid_t thread;

	__atomic_store_n(&loop->kick_sent_ns, monotonic_ns(), __ATOMIC_RELAXED);
	/* Whoever asked first sends the signal; a storm of them would starve the vCPU's thread. */
	if (__atomic_exchange_n(&loop->kick_requested, 1, __ATOMIC_SEQ_CST))
		return;
	__atomic_store_n(&loop->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	thread = __atomic_load_n(&loop->thread, __ATOMIC_SEQ_CST);
	/* A thread that has left meanwhile gets a signal that does nothing. */
	if (thread)
		syscall(SYS_tgkill, getpid(), thread, loop_kick_signal());
}

/* ---- records ---- */

static void begin_record(struct vcpu_loop *loop)
{
	struct kvm_run *run = loop->run;
	struct exit_record *record = &loop->pending;

	*record = (struct exit_record){
		.time_in = record_clock_ns(&loop->clock),
		.reason = run->exit_reason,
	};
	if (run->exit_reason == KVM_EXIT_IO) {
		record->address = run->io.port;
		record->size = (uint32_t)run->io.size * run->io.count;
		record->is_write = run->io.direction == KVM_EXIT_IO_OUT;
	} else if (run->exit_reason == KVM_EXIT_MMIO) {
		record->address = run->mmio.phys_addr;
		record->size = run->mmio.len;
		record->is_write = run->mmio.is_write;
	} else if (run->exit_reason == KVM_EXIT_HYPERCALL) {
		record->address = run->hypercall.nr;
	}
	loop->exit_pending = true;
}

/* `conversions` is by how much they changed memory.generation. */
static void record_conversion(struct vcpu_loop *loop, uint64_t conversions, uint32_t state,
			      uint64_t nanoseconds)
{
	if (conversions == 0)
		return;
	loop->own_conversions += conversions;
	if (!loop->recording)
		return;
	loop->pending.conversion =
		state == PAGE_PRIVATE ? CONVERSION_TO_PRIVATE : CONVERSION_TO_SHARED;
	loop->pending.conversion_ns = nanoseconds;
	histogram_record(&loop->conversion_latency, nanoseconds);
}

static void finish_record(struct vcpu_loop *loop)
{
	struct exit_log *log = &loop->log;
	uint64_t nanoseconds;

	if (!loop->exit_pending)
		return;
	loop->exit_pending = false;
	loop->pending.time_out = record_clock_later_ns(&loop->clock);
	nanoseconds = loop->pending.time_out - loop->pending.time_in;
	histogram_record(&loop->exit_latency, nanoseconds);
	if (loop->pending.reason < LOOP_REASONS) {
		struct exit_times *times = &loop->times[loop->pending.reason];

		if (times->count == 0 || nanoseconds < times->min)
			times->min = nanoseconds;
		if (nanoseconds > times->max)
			times->max = nanoseconds;
		times->count++;
		times->total += nanoseconds;
	}
	if (log->capacity)
		log->records[log->written++ & (log->capacity - 1)] = loop->pending;
}

void loop_finish_record(struct vcpu_loop *loop)
{
	if (!enter(loop))
		return;
	finish_record(loop);
	leave(loop);
}

static bool log_is_full(const struct vcpu_loop *loop)
{
	return loop->stop_on_full_log &&
	       loop->log.written - loop->log.drained >= loop->log.capacity;
}

/* ---- the same-fault guard ---- */

static bool read_registers(struct vcpu_loop *loop, struct kvm_regs *regs)
{
	if (loop->run->kvm_valid_regs & KVM_SYNC_X86_REGS) {
		*regs = loop->run->s.regs.regs;
		return true;
	}
	return ioctl(loop->vcpu_fd, KVM_GET_REGS, regs) == 0;
}

static void reset_guard(struct vcpu_loop *loop)
{
	loop->guard.streak = 0;
}

/*
 * True when GUARD_LIMIT memory exits came from one instruction with unchanged
 * registers while nobody else converted anything.
 */
static bool guard_trips(struct vcpu_loop *loop)
{
	const uint64_t by_others = memory_generation(loop->memory) - loop->own_conversions;
	struct kvm_regs regs;

	if (by_others != loop->guard.by_others) {
		loop->guard.by_others = by_others;
		loop->guard.streak = 0;
	}
	loop->guard.streak++;
	if (loop->guard.streak < GUARD_UNCHECKED)
		return false;
	if (!read_registers(loop, &regs))
		return false;
	if (loop->guard.streak == GUARD_UNCHECKED ||
	    memcmp(&regs, &loop->guard.regs, sizeof(regs)) != 0) {
		loop->guard.regs = regs;
		loop->guard.streak = GUARD_UNCHECKED + 1;
		return false;
	}
	return loop->guard.streak >= GUARD_UNCHECKED + GUARD_LIMIT;
}

/* ---- one exit; STOP_NONE: it is dealt with, re-enter ---- */

static enum loop_stop handle_memory(struct vcpu_loop *loop, int run_errno, bool *is_mine)
{
	struct memory_exit *exit = &loop->memory_exit;
	enum memory_verdict verdict;

	exit->vcpu_fd = loop->vcpu_fd;
	exit->run = loop->run;
	exit->run_errno = run_errno;
	exit->sync_registers = loop->sync_registers;
	exit->timed = loop->recording;
	exit->approved = loop->convert_once;
	verdict = memory_handle_exit(loop->memory, exit);
	*is_mine = verdict != MEMORY_NOT_MINE;
	if (!*is_mine)
		return STOP_EXIT;
	loop->convert_once = false;
	if (loop->recording) {
		loop->pending.address = exit->access.gpa;
		loop->pending.size = exit->access.size;
	}
	/* Each of an exit's pages is converted by itself. */
	record_conversion(loop, exit->converted, exit->wanted, exit->conversion_ns);
	switch (verdict) {
	case MEMORY_ASK:
		return STOP_MEMORY_ERROR;
	case MEMORY_FAILED:
		return STOP_CONVERSION_FAILED;
	case MEMORY_UNKNOWN:
		return STOP_UNKNOWN_WRITE;
	case MEMORY_EMULATED:
		return STOP_EMULATED_ACCESS;
	default:
		return guard_trips(loop) ? STOP_GUARD : STOP_NONE;
	}
}

/* What happened where no handler is, or just a port that nobody has. */
static enum port_verdict handle_stub(struct vcpu_loop *loop, void *data)
{
	const int vector = vector_of_stub(loop->vcpu_fd, loop->memory, loop->run,
					  loop->protocol->vector_stubs);

	if (vector < 0)
		return protocol_unclaimed(loop->protocol, loop->run, data);
	loop->guest.exit_code = 0x100 + (uint32_t)vector;
	loop->guest.by_stub = true;
	return PORT_EXITED;
}

static enum loop_stop handle_io(struct vcpu_loop *loop)
{
	struct kvm_run *run = loop->run;
	const uint64_t bytes = (uint64_t)run->io.size * run->io.count;
	uint64_t nanoseconds = 0, converted = 0;
	enum port_verdict verdict;
	uint32_t state;

	if (run->io.data_offset > loop->run_size || bytes > loop->run_size - run->io.data_offset ||
	    run->io.size > 4)
		return STOP_EXIT;
	verdict = protocol_port(loop->protocol, &loop->guest, loop->memory, run,
				(char *)run + run->io.data_offset,
				loop->recording ? &nanoseconds : NULL, &converted);
	if (converted) {
		memcpy(&state, (char *)run + run->io.data_offset, sizeof(state));
		record_conversion(loop, 1,
				  state == DOORBELL_TO_PRIVATE ? PAGE_PRIVATE : PAGE_SHARED,
				  nanoseconds);
	}
	if (verdict == PORT_STUB)
		verdict = handle_stub(loop, (char *)run + run->io.data_offset);
	switch (verdict) {
	case PORT_DONE:
		return STOP_NONE;
	case PORT_EXITED:
		return STOP_GUEST_EXIT;
	case PORT_ASSERTED:
		return STOP_ASSERT;
	default:
		return STOP_EXIT;
	}
}

/* KVM_HC_MAP_GPA_RANGE: KVM lets arguments through that no region can have. */
static enum loop_stop handle_hypercall(struct vcpu_loop *loop)
{
	struct kvm_run *run = loop->run;
	const uint64_t attributes = run->hypercall.args[2];
	const uint64_t start = loop->recording ? monotonic_ns() : 0;
	uint64_t converted = 0;
	uint32_t state;
	int error;

	if (run->hypercall.nr != KVM_HC_MAP_GPA_RANGE || !loop->protocol->enabled)
		return STOP_EXIT;
	state = attributes & KVM_MAP_GPA_RANGE_ENCRYPTED ? PAGE_PRIVATE : PAGE_SHARED;
	if (attributes & ~(uint64_t)(KVM_MAP_GPA_RANGE_ENCRYPTED | 0xF))
		error = -EINVAL;
	else
		error = memory_convert(loop->memory, run->hypercall.args[0], run->hypercall.args[1],
				       state, &converted);
	run->hypercall.ret = (uint64_t)(int64_t)error;
	record_conversion(loop, converted != 0, state,
			  loop->recording ? monotonic_ns() - start : 0);
	return STOP_NONE;
}

static enum loop_stop handle_exit(struct vcpu_loop *loop, int run_errno)
{
	struct kvm_run *run = loop->run;
	enum loop_stop stop;
	bool is_mine;

	if (!run_errno) {
		switch (run->exit_reason) {
		case KVM_EXIT_IO:
			reset_guard(loop);
			return handle_io(loop);
		case KVM_EXIT_HLT:
			return loop->protocol->enabled || loop->protocol->is_foreign ? STOP_HLT
										     : STOP_EXIT;
		case KVM_EXIT_HYPERCALL:
			reset_guard(loop);
			return handle_hypercall(loop);
		default:
			break;
		}
	}
	stop = handle_memory(loop, run_errno, &is_mine);
	if (is_mine)
		return stop;
	reset_guard(loop);
	if (run_errno) {
		loop->error = run_errno;
		return STOP_RUN_FAILED;
	}
	if (run->exit_reason == KVM_EXIT_MMIO && protocol_mmio(loop->protocol, run))
		return STOP_NONE;
	return STOP_EXIT;
}

/* KVM_RUN fails and yet names a reason only for memory exits. */
static bool names_a_reason(const struct kvm_run *run, int run_errno)
{
	if (run_errno == EPERM)
		return run->exit_reason == KVM_EXIT_MEMORY_ERROR;
	return (run_errno == EFAULT || run_errno == EHWPOISON) &&
	       run->exit_reason == KVM_EXIT_MEMORY_FAULT;
}

static void count_exit(struct vcpu_loop *loop)
{
	const uint32_t reason = loop->run->exit_reason;

	loop->exit_total++;
	if (reason < LOOP_REASONS)
		loop->exits[reason]++;
	else
		loop->exits_beyond++;
}

static bool was_kicked(struct vcpu_loop *loop)
{
	if (!__atomic_load_n(&loop->kick_requested, __ATOMIC_SEQ_CST))
		return false;
	__atomic_store_n(&loop->kick_requested, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&loop->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
	loop->kicks++;
	loop->kick_seen_ns = monotonic_ns();
	return true;
}

static enum loop_stop interrupted(struct vcpu_loop *loop)
{
	loop->interrupted++;
	__atomic_store_n(&loop->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
	if (was_kicked(loop))
		return STOP_KICK;
	if (loop->deadline && monotonic_ns() >= loop->deadline)
		return STOP_DEADLINE;
	return STOP_SIGNAL;
}

/* The registers are wanted once a streak of memory exits looks suspicious. */
static void choose_synced_registers(struct vcpu_loop *loop)
{
	if (loop->guard.streak == GUARD_UNCHECKED - 1)
		loop->run->kvm_valid_regs |= loop->sync_registers & KVM_SYNC_X86_REGS;
}

static enum loop_stop run_until_stop(struct vcpu_loop *loop)
{
	const uint64_t last_exit =
		loop->max_exits ? loop->exit_total + loop->max_exits : UINT64_MAX;
	struct kvm_run *run = loop->run;
	enum loop_stop stop;
	int run_errno;

	if (loop->convert_once) {
		/* The exit that the policy was asked about is still in kvm_run. */
		stop = handle_exit(loop, loop->error);
		if (stop != STOP_NONE)
			return stop;
	}
	if (!loop->recording) /* any more: the last record ends here, not at some later time */
		finish_record(loop);
	for (;;) {
		if (loop->recording) {
			finish_record(loop);
			if (log_is_full(loop))
				return STOP_LOG_FULL;
		}
		if (loop->exit_total >= last_exit)
			return STOP_MAX_EXITS;
		choose_synced_registers(loop);
		memory_note_entry(loop->memory, &loop->memory_exit);
		run_errno = gate_run(&loop->memory->gate, loop->vcpu_fd);
		if (run_errno == EINTR)
			return interrupted(loop);
		if (run_errno == EAGAIN) /* a vCPU that waits for its start */
			continue;
		if (!run_errno || names_a_reason(run, run_errno)) {
			count_exit(loop);
			if (loop->recording)
				begin_record(loop);
		}
		loop->error = run_errno;
		stop = handle_exit(loop, run_errno);
		if (stop != STOP_NONE)
			return stop;
	}
}

static enum loop_stop run_alone(struct vcpu_loop *loop)
{
	enum loop_stop stop;
	int error;

	if (loop->vcpu_fd < 0) {
		loop->error = EBADF;
		return STOP_RUN_FAILED;
	}
	error = keep_ticking(loop);
	if (error) {
		loop->error = -error;
		return STOP_RUN_FAILED;
	}
	/* First, so that no tick can come between the look at the last one and KVM_RUN. */
	__atomic_store_n(&current_loop, loop, __ATOMIC_RELAXED);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	if (__atomic_load_n(&loop->thread, __ATOMIC_RELAXED) != this_thread())
		__atomic_store_n(&loop->thread, this_thread(), __ATOMIC_SEQ_CST);
	if (was_kicked(loop))
		stop = STOP_KICK;
	else if (ticked_over_deadline(loop))
		stop = STOP_DEADLINE;
	else
		stop = run_until_stop(loop);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	__atomic_store_n(&current_loop, NULL, __ATOMIC_RELAXED);
	return stop;
}

enum loop_stop loop_run(struct vcpu_loop *loop)
{
	enum loop_stop stop;

	/* A second thread would wait in the kernel for the vCPU, and take the first one's timer. */
	if (!enter(loop))
		return STOP_BUSY;
	guest_cpu_enter();
	stop = run_alone(loop);
	guest_cpu_leave();
	leave(loop);
	return stop;
}
