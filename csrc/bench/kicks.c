/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "kicks.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#define KICK_LEAST_DELAY_NS 8000
#define KICK_DELAYS 16384 /* a span of ns, longer than most exits take from one to the next */
#define KICK_STEP 10007 /* no divisor of it: successive delays cover the span evenly */
#define KICK_NO_MORE UINT64_MAX

/* What the kicking thread is told; `loop` is NULL for the bare kick. */
struct kicker {
	struct vcpu_loop *loop;
	struct kvm_run *run;
	pid_t vcpu_thread;
	int signal;
	bool alone; /* on its CPU */
	uint64_t wanted; /* the number of the kick that the vCPU waits for; KICK_NO_MORE ends */
	uint64_t sent; /* when it was sent, CLOCK_MONOTONIC ns; 0: not yet */
};

static void wait_a_little(const struct kicker *kicker)
{
	if (kicker->alone)
		__builtin_ia32_pause();
	else
		sched_yield();
}

static void *send_kicks(void *argument)
{
	struct kicker *kicker = argument;
	uint64_t number, wanted, until;

	for (number = 1;; number++) {
		while ((wanted = __atomic_load_n(&kicker->wanted, __ATOMIC_SEQ_CST)) < number)
			wait_a_little(kicker);
		if (wanted == KICK_NO_MORE)
			return NULL;
		until = monotonic_ns() + KICK_LEAST_DELAY_NS + number * KICK_STEP % KICK_DELAYS;
		while (monotonic_ns() < until)
			wait_a_little(kicker);
		__atomic_store_n(&kicker->sent, monotonic_ns(), __ATOMIC_SEQ_CST);
		if (kicker->loop) {
			loop_kick(kicker->loop);
		} else {
			__atomic_store_n(&kicker->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
			syscall(SYS_tgkill, getpid(), kicker->vcpu_thread, kicker->signal);
		}
	}
}

/* Start send_kicks() on a CPU of its own, or with -1 wherever it may run. 0 or -errno. */
static int start_kicker(pthread_t *thread, struct kicker *kicker, int cpu)
{
	pthread_attr_t attributes;
	cpu_set_t set;
	int error;

	kicker->alone = cpu >= 0;
	error = pthread_attr_init(&attributes);
	if (error)
		return -error;
	if (kicker->alone) {
		CPU_ZERO(&set);
		CPU_SET(cpu, &set);
		error = pthread_attr_setaffinity_np(&attributes, sizeof(set), &set);
	}
	if (!error)
		error = pthread_create(thread, &attributes, send_kicks, kicker);
	pthread_attr_destroy(&attributes);
	return -error;
}

static void want_kick(struct kicker *kicker, uint64_t number)
{
	__atomic_store_n(&kicker->sent, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&kicker->wanted, number, __ATOMIC_SEQ_CST);
}

/* The nanoseconds from the kick until `now`; 0: it was not that kick which ended KVM_RUN. */
static uint64_t since_kick(struct kicker *kicker, uint64_t now)
{
	const uint64_t sent = __atomic_load_n(&kicker->sent, __ATOMIC_SEQ_CST);

	return sent && now > sent ? now - sent : 0;
}

static void add_latency(uint64_t nanoseconds, uint64_t *sum, struct histogram *latency)
{
	*sum += nanoseconds;
	if (latency)
		histogram_record(latency, nanoseconds);
}

int bare_kicks(int vcpu, struct kvm_run *run, int kick_signal, int kicker_cpu, uint64_t kicks,
	       uint64_t *sum, struct histogram *latency)
{
	ON_GUEST_CPU;
	struct kicker kicker = {
		.run = run,
		.vcpu_thread = (pid_t)syscall(SYS_gettid),
		.signal = kick_signal,
	};
	uint64_t number, now, taken;
	pthread_t thread;
	int error;

	error = start_kicker(&thread, &kicker, kicker_cpu);
	if (error)
		return error;
	for (number = 1; !error && number <= kicks; number++) {
		want_kick(&kicker, number);
		do {
			error = ioctl(vcpu, KVM_RUN, 0) < 0 ? errno : 0;
			now = monotonic_ns();
			if (error && error != EINTR)
				break;
			taken = error == EINTR ? since_kick(&kicker, now) : 0;
			error = 0;
		} while (!taken);
		run->immediate_exit = 0;
		if (!error)
			add_latency(taken, sum, latency);
	}
	want_kick(&kicker, KICK_NO_MORE);
	pthread_join(thread, NULL);
	return -error;
}

int loop_kicks(struct vcpu_loop *loop, int kicker_cpu, uint64_t kicks, uint64_t *sum,
	       struct histogram *latency)
{
	struct kicker kicker = { .loop = loop };
	enum loop_stop stop;
	uint64_t number, now;
	pthread_t thread;
	int error;

	error = start_kicker(&thread, &kicker, kicker_cpu);
	if (error)
		return error;
	for (number = 1; !error && number <= kicks; number++) {
		want_kick(&kicker, number);
		do {
			stop = loop_run(loop);
			now = monotonic_ns();
		} while (stop == STOP_SIGNAL);
		if (stop == STOP_KICK)
			add_latency(since_kick(&kicker, now), sum, latency);
		else
			error = -EPROTO;
	}
	want_kick(&kicker, KICK_NO_MORE);
	pthread_join(thread, NULL);
	return error;
}
