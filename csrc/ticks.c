/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "ticks.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

__thread struct vcpu_loop *current_loop;
__thread bool tick_seen;
static __thread pid_t cached_thread __attribute__((tls_model("initial-exec")));
static int kick_signal;

static void on_kick_signal(int signal, siginfo_t *info, void *context)
{
	struct vcpu_loop *loop = __atomic_load_n(&current_loop, __ATOMIC_RELAXED);

	(void)signal;
	(void)info;
	(void)context;
	__atomic_store_n(&tick_seen, true, __ATOMIC_RELAXED);
	if (loop)
		__atomic_store_n(&loop->run->immediate_exit, 1, __ATOMIC_RELAXED);
}

static void forget_thread_after_fork(void)
{
	cached_thread = 0;
}

static void choose_kick_signal(void)
{
	struct sigaction action = { .sa_sigaction = on_kick_signal, .sa_flags = SA_SIGINFO };
	struct sigaction present;
	int signal;

	sigemptyset(&action.sa_mask);
	for (signal = SIGRTMAX - 1; signal > SIGRTMIN; signal--) {
		if (sigaction(signal, NULL, &present) == 0 && present.sa_handler == SIG_DFL &&
		    sigaction(signal, &action, NULL) == 0) {
			kick_signal = signal;
			break;
		}
	}
	pthread_atfork(NULL, NULL, forget_thread_after_fork);
}

int loop_kick_signal(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, choose_kick_signal);
	return kick_signal;
}

pid_t this_thread(void)
{
	if (cached_thread == 0)
		cached_thread = (pid_t)syscall(SYS_gettid);
	return cached_thread;
}

void stop_ticks(struct vcpu_loop *loop)
{
	if (loop->has_timer)
		timer_delete(loop->timer);
	loop->has_timer = false;
	loop->armed_deadline = 0;
	__atomic_store_n(&loop->thread, 0, __ATOMIC_SEQ_CST);
}

void pause_ticks(struct vcpu_loop *loop)
{
	const struct itimerspec never = { 0 };

	if (loop->has_timer)
		timer_settime(loop->timer, 0, &never, NULL);
	loop->armed_deadline = 0;
}

static int start_ticks(struct vcpu_loop *loop)
{
	const uint64_t now = monotonic_ns();
	const uint64_t remaining = loop->deadline > now ? loop->deadline - now : 1;
	/* The first tick is shorter, so that a later one falls on the deadline. */
	const uint64_t first = remaining % LOOP_TICK_NS ? remaining % LOOP_TICK_NS : LOOP_TICK_NS;
	const struct itimerspec ticks = {
		.it_interval = { .tv_nsec = LOOP_TICK_NS },
		.it_value = { .tv_nsec = (long)first },
	};
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = kick_signal };
	sigset_t ours;

	if (loop->has_timer && loop->timer_thread != this_thread())
		stop_ticks(loop);
	if (!loop->has_timer) {
		/* A program that blocks all signals must not make a guest run for ever. */
		sigemptyset(&ours);
		sigaddset(&ours, kick_signal);
		pthread_sigmask(SIG_UNBLOCK, &ours, NULL);
		event._sigev_un._tid = this_thread();
		if (timer_create(CLOCK_MONOTONIC, &event, &loop->timer) < 0)
			return -errno;
		loop->has_timer = true;
		loop->timer_thread = this_thread();
	}
	if (timer_settime(loop->timer, 0, &ticks, NULL) < 0)
		return -errno;
	loop->armed_deadline = loop->deadline;
	/* One that is past must not wait for its tick. */
	if (loop->deadline <= now)
		__atomic_store_n(&tick_seen, true, __ATOMIC_RELAXED);
	return 0;
}

int keep_ticking(struct vcpu_loop *loop)
{
	if (loop->deadline == 0) {
		if (loop->armed_deadline)
			stop_ticks(loop);
		return 0;
	}
	if (loop->deadline == loop->armed_deadline && loop->timer_thread == this_thread())
		return 0;
	return start_ticks(loop);
}
