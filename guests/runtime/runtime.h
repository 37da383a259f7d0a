/* SPDX-License-Identifier: MIT */
/* What the files of the runtime share. Its names that pyvmm.h does not have begin with pyvmm_. */
#ifndef PYVMM_RUNTIME_H
#define PYVMM_RUNTIME_H

#include "pyvmm.h"

#define WEAK __attribute__((weak)) /* a guest may have its own */

#define INTERRUPTS_ON 0x200ul /* in the flags */

extern u32 pyvmm_vcpus; /* how many there are; start.S writes it */

struct lock {
	u32 is_taken;
};

/* Returns the flags for interrupts_back(). */
static inline unsigned long interrupts_off(void)
{
	unsigned long flags;

	__asm__ volatile("pushf\n\tpop %0\n\tcli" : "=r"(flags) : : "memory");
	return flags;
}

static inline void interrupts_back(unsigned long flags)
{
	if (flags & INTERRUPTS_ON)
		__asm__ volatile("sti" : : : "memory");
}

/* Interrupts off, and the lock taken; returns the flags for give(). */
static inline unsigned long take(struct lock *lock)
{
	const unsigned long flags = interrupts_off();

	while (__atomic_exchange_n(&lock->is_taken, 1, __ATOMIC_ACQUIRE))
		pause();
	return flags;
}

static inline void give(struct lock *lock, unsigned long flags)
{
	__atomic_store_n(&lock->is_taken, 0, __ATOMIC_RELEASE);
	interrupts_back(flags);
}

#endif
