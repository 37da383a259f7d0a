/* SPDX-License-Identifier: MIT */
/*
 * Keeps every vCPU out of the guest for a moment.
 *
 * A memslot that is deleted and made again in another size leaves a gap, in which an access finds
 * no memory. A backend for which that access would be lost closes the gate meanwhile.
 *
 * Guarantees: between gate_close() and gate_open() nobody is in gate_run(). Who is there gets a
 * signal, which ends KVM_RUN with EINTR. No allocation. The caller of gate_close() is outside
 * itself.
 */
#ifndef PYVMM_GATE_H
#define PYVMM_GATE_H

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/types.h>

#include "kvm_compat.h"

#define GATE_PLACES 256 /* vCPUs that get a signal; who has no place comes out with the next tick */

struct gate {
	bool used; /* by a region; vCPUs pass it from their next entry on */
	bool closed;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	uint32_t inside;
	pid_t threads[GATE_PLACES]; /* 0: free */
};

void gate_init(struct gate *gate);
void gate_deinit(struct gate *gate);
void gate_close(struct gate *gate, int signal);
void gate_open(struct gate *gate);
int gate_run_inside(struct gate *gate, int vcpu_fd);

/* KVM_RUN, once the gate is open: 0 or the errno. */
static inline int gate_run(struct gate *gate, int vcpu_fd)
{
	if (__atomic_load_n(&gate->used, __ATOMIC_RELAXED))
		return gate_run_inside(gate, vcpu_fd);
	return ioctl(vcpu_fd, KVM_RUN, 0) < 0 ? errno : 0;
}

#endif
