/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "guest_cpu.h"

#include <errno.h>
#include <sched.h>
#include <stdbool.h>

int guest_cpu = -1;

/* Where this thread could run before it was moved. */
static __thread cpu_set_t before;
static __thread bool moved;

static void only(cpu_set_t *set, int cpu)
{
	CPU_ZERO(set);
	CPU_SET(cpu, set);
}

int guest_cpu_choose(int cpu)
{
	cpu_set_t allowed;

	if (sched_getaffinity(0, sizeof(allowed), &allowed) < 0)
		return -errno;
	if (cpu < 0 || cpu >= CPU_SETSIZE || !CPU_ISSET(cpu, &allowed))
		return -EINVAL;
	guest_cpu = cpu;
	return 0;
}

void guest_cpu_move_there(void)
{
	cpu_set_t there;

	only(&there, guest_cpu);
	moved = sched_getaffinity(0, sizeof(before), &before) == 0 && !CPU_EQUAL(&before, &there) &&
		sched_setaffinity(0, sizeof(there), &there) == 0;
}

void guest_cpu_move_back(void)
{
	cpu_set_t others = before;

	if (!moved)
		return;
	moved = false;
	/* A thread that may run anywhere again stays where it is: send it away first. */
	CPU_CLR(guest_cpu, &others);
	if (CPU_COUNT(&others))
		sched_setaffinity(0, sizeof(others), &others);
	sched_setaffinity(0, sizeof(before), &before);
}
