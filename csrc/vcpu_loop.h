/* SPDX-License-Identifier: MIT */
/*
 * The KVM_RUN loop: one call runs a vCPU until there is something for Python.
 *
 * The kick protocol. A kick from any thread ends the current loop_run(), or the
 * next one if none is under way; none is lost.
 *   kicker   1. kick_requested = 1
 *            2. run->immediate_exit = 1
 *            3. if a thread is published, send it the kick signal
 *   loop     on entry: publish the thread (it stays published until another
 *            thread runs the loop or loop_disarm()), then look at kick_requested
 *            on EINTR: immediate_exit = 0, then look at kick_requested
 * A signal that comes before KVM_RUN does nothing, but step 2 makes KVM_RUN
 * return EINTR at once; one that comes during KVM_RUN interrupts it. The loop
 * clears immediate_exit before it looks at kick_requested and the kicker sets
 * them the other way round, so whichever of the two writes is seen late, the
 * other is seen. A kick that was already answered costs one spurious EINTR.
 *
 * The deadline is a timer on the running thread with the same signal. It ticks
 * every 100 ms, and once exactly at the deadline; its handler sets
 * immediate_exit, so that a tick just before KVM_RUN is not lost either. One that
 * comes between two loop_run() leaves a mark for the next, which then looks at the
 * clock. On a tick, and on any other signal, the loop returns STOP_SIGNAL: Python
 * runs its signal handlers and calls again.
 *
 * The signal is a real-time signal whose disposition was the default when the
 * first loop was made; its handler touches two thread-local variables.
 *
 * Locking: a loop belongs to the thread that is in loop_run(); only loop_kick()
 * may be called from another one. After loop_run() has returned all fields may
 * be read by the thread that called it.
 * Ownership: Python owns the vCPU's fd and its kvm_run mapping, struct memory
 * and struct protocol; the loop owns its timer and its exit log.
 * On the exit path there is no allocation, no printing and no lock but the
 * region's; errno is read once, right after KVM_RUN.
 */
#ifndef PYVMM_VCPU_LOOP_H
#define PYVMM_VCPU_LOOP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "exit_log.h"
#include "kvm_compat.h"
#include "memory.h"
#include "protocol.h"

#define LOOP_REASONS 64u
#define LOOP_TICK_NS 100000000ull
#define GUARD_LIMIT 1000u /* memory exits at one unchanged instruction */
#define GUARD_UNCHECKED 16u /* before it is worth looking at registers */

enum loop_stop {
	STOP_NONE, /* never returned */
	STOP_EXIT, /* an exit for Python: look at run->exit_reason */
	STOP_GUEST_EXIT, /* the guest wrote the exit port */
	STOP_ASSERT, /* the guest wrote the assert port */
	STOP_HLT,
	STOP_MAX_EXITS, /* as many exits as were asked for */
	STOP_KICK,
	STOP_SIGNAL, /* a tick or a foreign signal: run again */
	STOP_DEADLINE,
	STOP_LOG_FULL, /* the exit log wants to be drained */
	STOP_MEMORY_ERROR, /* the policy wants to know: see memory_exit */
	STOP_CONVERSION_FAILED, /* see memory_exit.error */
	STOP_EMULATED_ACCESS, /* KVM's emulator reached for private memory */
	STOP_GUARD, /* GUARD_LIMIT memory exits at one instruction */
	STOP_RUN_FAILED, /* KVM_RUN failed: see error */
	STOP_BUSY, /* another thread is in loop_run(); nothing was touched */
	STOP_UNKNOWN_WRITE, /* what else the instruction wrote cannot be known */
};

/* The recorded exits of one reason, in nanoseconds as exit_latency. */
struct exit_times {
	uint64_t count;
	uint64_t total;
	uint64_t min;
	uint64_t max;
};

struct vcpu_loop {
	/* Given to loop_init(). */
	int vcpu_fd; /* -1 once it is closed: loop_run() then fails with EBADF */
	struct kvm_run *run;
	uint64_t run_size;
	struct memory *memory;
	struct protocol *protocol;
	uint32_t sync_registers; /* KVM_SYNC_X86_*: what KVM_CAP_SYNC_REGS can do here */

	/* May be changed between two loop_run(). */
	uint64_t deadline; /* CLOCK_MONOTONIC ns, or 0 */
	uint64_t max_exits; /* return STOP_MAX_EXITS after so many, or 0 */
	bool recording; /* exit log and histograms */
	bool stop_on_full_log;
	bool convert_once; /* the answer to the last STOP_MEMORY_ERROR: convert */

	/* What the last loop_run() found. */
	int error; /* positive errno of STOP_RUN_FAILED */
	struct memory_exit memory_exit;
	struct protocol_vcpu guest;

	/* Counted since loop_init(). */
	uint64_t exits[LOOP_REASONS];
	uint64_t exits_beyond; /* reasons of LOOP_REASONS and more */
	uint64_t exit_total;
	uint64_t interrupted; /* EINTR */
	uint64_t kicks;
	/* CLOCK_MONOTONIC ns of the last kick, and of its end of loop_run(); 0: none */
	uint64_t kick_sent_ns;
	uint64_t kick_seen_ns;
	struct exit_log log;
	struct exit_times times[LOOP_REASONS];
	struct histogram exit_latency; /* from KVM_RUN's return to the next call */
	struct histogram conversion_latency; /* of one conversion, of however many pages */

	/* Written by vcpu_loop.c and ticks.c only; Python reads thread and timer_thread. */
	int kick_requested;
	bool running; /* somebody is in loop_run() */
	pid_t thread; /* the last one in loop_run(), or 0 */
	bool exit_pending; /* an exit is recorded when KVM_RUN is entered again */
	struct exit_record pending;
	struct record_clock clock;
	bool has_timer;
	timer_t timer;
	pid_t timer_thread;
	uint64_t armed_deadline; /* what the timer ticks for; 0: it does not */
	uint64_t own_conversions;
	struct {
		uint32_t streak;
		uint64_t by_others;
		struct kvm_regs regs;
	} guard;
};

/*
 * `loop` is zero but for what is given. log_capacity: records, a power of two, or 0. 0, or
 * -EINVAL for a structure that is missing or was not made ready, or another -errno.
 */
int loop_init(struct vcpu_loop *loop, uint64_t log_capacity);
void loop_deinit(struct vcpu_loop *loop);
/*
 * Run until there is something for Python. It has one argument because it is called
 * once per exit that Python answers, and each argument more costs Python 100 to 200 ns
 * right after an exit, when the CPU's caches and predictors are cold.
 */
enum loop_stop loop_run(struct vcpu_loop *loop);
void loop_kick(struct vcpu_loop *loop);
/*
 * Stop the ticking, so that no tick ends another call of the thread's with EINTR, and forget the
 * thread; or keep timer and thread, which costs the next loop_run() less. This and
 * loop_finish_record() do nothing while a thread is in loop_run(): both are its own.
 */
void loop_disarm(struct vcpu_loop *loop, bool keep_timer);
/*
 * The run is over: a kick that came too late to end it must not end the next one. Does nothing
 * while a thread is in loop_run().
 */
void loop_forget_kick(struct vcpu_loop *loop);
/* A bit for each reason in `exits` that is not 0. */
uint64_t loop_reasons(const struct vcpu_loop *loop);
/* Close the record of an exit that will not be re-entered. */
void loop_finish_record(struct vcpu_loop *loop);
int loop_kick_signal(void);

#endif
