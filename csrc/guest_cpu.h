/* SPDX-License-Identifier: MIT */
/*
 * The one CPU that guests may run on, where two of them must not run at once.
 *
 * With a thread for each emulated CPU, QEMU (7.2 and 10.0) now and then writes the host's
 * registers into a guest's VMCB when two of its CPUs run guests at the same time. A lab with
 * such a QEMU therefore names one CPU in $PYVMM_GUEST_CPU: every thread of every process is
 * moved there before KVM_RUN, and away from it afterwards, so that what the host does goes on
 * beside the guests. Elsewhere there is no such CPU, and each call is one comparison.
 *
 * guest_cpu is written once, before the process has a vCPU. A stay belongs to its thread and
 * does not nest.
 */
#ifndef PYVMM_GUEST_CPU_H
#define PYVMM_GUEST_CPU_H

extern int guest_cpu; /* its number, or -1 */

/* 0, or -errno: this thread may not run there. */
int guest_cpu_choose(int cpu);

void guest_cpu_move_there(void);
void guest_cpu_move_back(void);

static inline void guest_cpu_enter(void)
{
	if (__builtin_expect(guest_cpu >= 0, 0))
		guest_cpu_move_there();
}

static inline void guest_cpu_leave(void)
{
	if (__builtin_expect(guest_cpu >= 0, 0))
		guest_cpu_move_back();
}

static inline void guest_cpu_end_of_block(const char *unused)
{
	(void)unused;
	guest_cpu_leave();
}

/* A declaration: from here to the end of the block. */
#define ON_GUEST_CPU                                                                               \
	__attribute__((cleanup(guest_cpu_end_of_block))) const char on_guest_cpu =                 \
		(guest_cpu_enter(), 0)

#endif
