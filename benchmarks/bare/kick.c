/* SPDX-License-Identifier: MIT */
/* The floor of a kick: from just before immediate_exit and a signal to KVM_RUN's EINTR. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <time.h>

struct kick {
	struct kvm_run *run;
	pthread_t vcpu_thread;
	int signal;
	uint64_t delay_ns;
	uint64_t sent; /* CLOCK_MONOTONIC ns; 0: not yet */
};

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000ull + (uint64_t)time.tv_nsec;
}

static void *send_kick(void *argument)
{
	struct kick *kick = argument;
	const struct timespec delay = { .tv_nsec = (long)kick->delay_ns };

	nanosleep(&delay, NULL);
	__atomic_store_n(&kick->sent, now(), __ATOMIC_SEQ_CST);
	__atomic_store_n(&kick->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	pthread_kill(kick->vcpu_thread, kick->signal);
	return NULL;
}

/* 0 or -errno; a signal that is not the kick's own is run over. delay_ns: below a second. */
int kick_latency(int vcpu, void *kvm_run, int kick_signal, uint64_t delay_ns, uint64_t *latency)
{
	struct kick kick = {
		.run = kvm_run,
		.vcpu_thread = pthread_self(),
		.signal = kick_signal,
		.delay_ns = delay_ns,
	};
	pthread_t kicker;
	uint64_t sent = 0;
	int error;

	error = pthread_create(&kicker, NULL, send_kick, &kick);
	if (error)
		return -error;
	while (sent == 0) {
		error = ioctl(vcpu, KVM_RUN, 0) < 0 ? errno : 0;
		*latency = now();
		if (error == EINTR)
			sent = __atomic_load_n(&kick.sent, __ATOMIC_SEQ_CST);
		else if (error)
			break;
	}
	*latency -= sent;
	pthread_join(kicker, NULL);
	kick.run->immediate_exit = 0;
	return sent ? 0 : -error;
}
