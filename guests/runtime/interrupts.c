/* SPDX-License-Identifier: MIT */
/* Handlers of exceptions and interrupts, in the interrupt table that is there at the start. */
#include "runtime.h"

#define VECTORS 256
#define ENTRY_SIZE 16 /* of start.S */
#define INTERRUPT_GATE 0x8E00

extern char pyvmm_entries[];

/* One entry of the interrupt descriptor table: an offset in three pieces, and a selector. */
struct gate {
	u16 low;
	u16 selector;
	u16 kind;
	u16 middle;
#ifdef __x86_64__
	u32 high;
	u32 zero;
#endif
};

static void (*handlers[VECTORS])(struct frame *);
static struct gate before[VECTORS];
static struct lock table_lock;

void pyvmm_handle(struct frame *frame);
void pyvmm_handle(struct frame *frame)
{
	handlers[frame->vector](frame);
}

static struct gate *table(void)
{
	struct {
		u16 limit;
		struct gate *base;
	} __attribute__((packed)) found;

	__asm__ volatile("sidt %0" : "=m"(found));
	return found.base;
}

static struct gate gate_to(const char *entry)
{
	const uintptr_t at = (uintptr_t)entry;
	u16 selector;

	__asm__ volatile("movw %%cs, %0" : "=r"(selector));
	return (struct gate){
		.low = (u16)at,
		.selector = selector,
		.kind = INTERRUPT_GATE,
		.middle = (u16)(at >> 16),
#ifdef __x86_64__
		.high = (u32)(at >> 32),
#endif
	};
}

void set_handler(unsigned vector, void (*handler)(struct frame *))
{
	const unsigned long flags = take(&table_lock);
	struct gate *gate = &table()[vector % VECTORS];

	vector %= VECTORS;
	if (handler) {
		if (!handlers[vector])
			before[vector] = *gate;
		handlers[vector] = handler;
		*gate = gate_to(pyvmm_entries + vector * ENTRY_SIZE);
	} else if (handlers[vector]) {
		*gate = before[vector];
		handlers[vector] = NULL;
	}
	give(&table_lock, flags);
}
