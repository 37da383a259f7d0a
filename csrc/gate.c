/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "gate.h"

#include <sys/syscall.h>
#include <unistd.h>

void gate_init(struct gate *gate)
{
	pthread_mutex_init(&gate->lock, NULL);
	pthread_cond_init(&gate->changed, NULL);
}

void gate_deinit(struct gate *gate)
{
	pthread_cond_destroy(&gate->changed);
	pthread_mutex_destroy(&gate->lock);
}

/* The place is for leave(). */
static uint32_t enter(struct gate *gate)
{
	uint32_t place = 0;

	pthread_mutex_lock(&gate->lock);
	while (gate->closed)
		pthread_cond_wait(&gate->changed, &gate->lock);
	gate->inside++;
	while (place < GATE_PLACES && gate->threads[place])
		place++;
	if (place < GATE_PLACES)
		gate->threads[place] = (pid_t)syscall(SYS_gettid);
	pthread_mutex_unlock(&gate->lock);
	return place;
}

static void leave(struct gate *gate, uint32_t place)
{
	pthread_mutex_lock(&gate->lock);
	gate->inside--;
	if (place < GATE_PLACES)
		gate->threads[place] = 0;
	if (gate->closed && gate->inside == 0)
		pthread_cond_broadcast(&gate->changed);
	pthread_mutex_unlock(&gate->lock);
}

int gate_run_inside(struct gate *gate, int vcpu_fd)
{
	const uint32_t place = enter(gate);
	const int run_errno = ioctl(vcpu_fd, KVM_RUN, 0) < 0 ? errno : 0;

	leave(gate, place);
	return run_errno;
}

void gate_close(struct gate *gate, int signal)
{
	uint32_t place;

	pthread_mutex_lock(&gate->lock);
	while (gate->closed)
		pthread_cond_wait(&gate->changed, &gate->lock);
	gate->closed = true;
	for (place = 0; place < GATE_PLACES; place++) {
		if (gate->threads[place])
			syscall(SYS_tgkill, getpid(), gate->threads[place], signal);
	}
	while (gate->inside > 0)
		pthread_cond_wait(&gate->changed, &gate->lock);
	pthread_mutex_unlock(&gate->lock);
}

void gate_open(struct gate *gate)
{
	pthread_mutex_lock(&gate->lock);
	gate->closed = false;
	pthread_cond_broadcast(&gate->changed);
	pthread_mutex_unlock(&gate->lock);
}
