/* SPDX-License-Identifier: MIT */
/*
 * The kick signal, and the timer that sends it for a loop's deadline: a part of the run loop,
 * whose header has the protocol.
 */
#ifndef PYVMM_TICKS_H
#define PYVMM_TICKS_H

#include <stdbool.h>
#include <sys/types.h>

#include "vcpu_loop.h"

/* initial-exec: the signal handler must not allocate thread-local storage. */
#define FOR_THE_HANDLER __attribute__((tls_model("initial-exec")))

extern __thread struct vcpu_loop *current_loop FOR_THE_HANDLER; /* that the thread is in, or NULL */
extern __thread bool tick_seen FOR_THE_HANDLER;

pid_t this_thread(void);
/* Tick for the deadline that is asked for, in the thread that runs. 0 or -errno. */
int keep_ticking(struct vcpu_loop *loop);
/* No timer, and no thread that a kick would go to. */
void stop_ticks(struct vcpu_loop *loop);
/* The timer stays, and does not tick until keep_ticking(). */
void pause_ticks(struct vcpu_loop *loop);

/* A tick that came while Python handled an exit said nothing to the loop. */
static inline bool ticked_over_deadline(const struct vcpu_loop *loop)
{
	if (!__atomic_load_n(&tick_seen, __ATOMIC_RELAXED))
		return false;
	__atomic_store_n(&tick_seen, false, __ATOMIC_RELAXED);
	return loop->deadline && monotonic_ns() >= loop->deadline;
}

#endif
