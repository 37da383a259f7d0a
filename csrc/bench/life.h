/* SPDX-License-Identifier: MIT */
/*
 * The floor of a machine's life: the system calls of pyvmm's Machine in their order.
 * See bare_run.h.
 */
#ifndef PYVMM_BENCH_LIFE_H
#define PYVMM_BENCH_LIFE_H

#include "bare_run.h"

/* A machine's life, phase by phase: the system calls of pyvmm's Machine in their order. */
enum bare_phase {
	BARE_CREATE, /* /dev/kvm and the VM */
	BARE_SLOTS, /* memory: RAM and one region of the emulated backend */
	BARE_VCPU, /* with its CPUID, its kvm_run and its registers */
	BARE_FIRST_EXIT, /* with the deadline's timer */
	BARE_RESET, /* registers as at the start, and an exit again */
	BARE_CLOSE,
	BARE_PHASES,
};

/* `prot_none`: the emulated backend's mechanism; otherwise it is slots. */
int bare_life(const void *image, uint64_t size, int timer_signal, bool prot_none, bool reset,
	      uint64_t phases_ns[BARE_PHASES]);

#endif
