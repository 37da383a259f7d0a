/* SPDX-License-Identifier: MIT */
/*
 * The floor of a kick, and the same by loop_kick(). See bare_run.h.
 */
#ifndef PYVMM_BENCH_KICKS_H
#define PYVMM_BENCH_KICKS_H

#include "../vcpu_loop.h"
#include "bare_run.h"

/*
 * From immediate_exit and a signal to KVM_RUN's EINTR, added to `sum` for each kick. Another
 * thread sends them on a CPU of its own (-1: wherever it may run), 8 to 24 us after the last,
 * so that they find the vCPU at every point of its way.
 */
int bare_kicks(int vcpu, struct kvm_run *run, int kick_signal, int kicker_cpu, uint64_t kicks,
	       uint64_t *sum, struct histogram *latency);
/* The same by loop_kick() to the return of loop_run(). */
int loop_kicks(struct vcpu_loop *loop, int kicker_cpu, uint64_t kicks, uint64_t *sum,
	       struct histogram *latency);

#endif
