/* SPDX-License-Identifier: MIT */
/*
 * Keeps every vCPU out of the guest for a moment.
 *
 * A memslot that is deleted and made again in another size leaves a gap, in which an access finds
 * no memory. A backend for which that access would be lost closes the gate meanwhile.
 *
 * Guarantees: between gate_close() and gate_open() nobody is between gate_enter() and
 * gate_leave(). Who is there gets a signal, which ends KVM_RUN with EINTR. No allocation. The
 * caller of gate_close() is outside itself, and holds no lock that somebody takes inside.
 */
#ifndef PYVMM_GATE_H
#define PYVMM_GATE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define GATE_PLACES 256 /* vCPUs that get a signal; who has no place comes out with the next tick */

struct gate {
	bool used; /* by a region; otherwise vCPUs need not pass it */
	bool closed;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	uint32_t inside;
	pid_t threads[GATE_PLACES]; /* 0: free */
};

void gate_init(struct gate *gate);
void gate_deinit(struct gate *gate);
/* Wait until the gate is open and go in. The place is for gate_leave(). */
uint32_t gate_enter(struct gate *gate, pid_t thread);
void gate_leave(struct gate *gate, uint32_t place);
void gate_close(struct gate *gate, int signal);
void gate_open(struct gate *gate);

#endif
