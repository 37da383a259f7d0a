/* SPDX-License-Identifier: MIT */
/* map() and unmap() in the page tables that CR3 names, which are reached at their own GPAs. */
#include "runtime.h"

#ifdef __x86_64__

#define TABLES 64 /* of 4 KiB, for the pages that map() splits and the tables it adds */
#define ENTRIES 512
#define ADDRESS 0x000FFFFFFFFFF000ull
#define HUGE_SIZE 0x200000ull
#define ANY (PTE_PRESENT | PTE_WRITE | PTE_USER) /* what a table allows; its entries say more */

static u64 tables[TABLES][ENTRIES] __attribute__((aligned(PAGE_SIZE)));
static unsigned used;
static struct lock paging_lock;

static u64 *new_table(void)
{
	assert(used < TABLES);
	return tables[used++];
}

/* The table that an entry of level `level` leads to; made where there is none. */
static u64 *table_below(u64 *entry, unsigned level, bool makes)
{
	u64 *table;

	if (*entry & PTE_PRESENT && !(*entry & PTE_HUGE && level < 4))
		return (u64 *)(*entry & ADDRESS);
	if (!makes && !(*entry & PTE_PRESENT))
		return NULL;
	table = new_table();
	if (*entry & PTE_PRESENT) {
		/* The same pages, each of a 512th. Only bit 12 of a huge page's may be its PAT. */
		const u64 step = level == 3 ? HUGE_SIZE : PAGE_SIZE;
		const u64 flags = level == 3 ? *entry & ~ADDRESS : *entry & ~ADDRESS & ~PTE_HUGE;
		const u64 first = *entry & ADDRESS & ~(step * ENTRIES - 1);

		for (unsigned i = 0; i < ENTRIES; i++)
			table[i] = (first + i * step) | flags;
	}
	__atomic_store_n(entry, (uintptr_t)table | ANY, __ATOMIC_RELEASE);
	return table;
}

/* The entry of `va` in a table of level `lowest`, 1 (4 KiB) or 2 (2 MiB); NULL if there is none. */
static u64 *entry_of(u64 va, unsigned lowest, bool makes)
{
	u64 *table, *entry = NULL;
	u64 cr3;

	__asm__ volatile("mov %%cr3, %0" : "=r"(cr3));
	table = (u64 *)(cr3 & ADDRESS);
	for (unsigned level = 4; level >= lowest && table; level--) {
		entry = &table[va >> (12 + 9 * (level - 1)) & (ENTRIES - 1)];
		if (level > lowest)
			table = table_below(entry, level, makes);
	}
	return table ? entry : NULL;
}

void map(u64 va, u64 gpa, u64 flags)
{
	const unsigned long interrupts = take(&paging_lock);
	u64 *entry = entry_of(va, flags & PTE_HUGE ? 2 : 1, true);
	const u64 size = flags & PTE_HUGE ? HUGE_SIZE : PAGE_SIZE;

	__atomic_store_n(entry, (gpa & ADDRESS & ~(size - 1)) | flags | PTE_PRESENT,
			 __ATOMIC_RELEASE);
	give(&paging_lock, interrupts);
	flush(va);
}

void unmap(u64 va)
{
	const unsigned long interrupts = take(&paging_lock);
	u64 *entry = entry_of(va, 1, true);

	__atomic_store_n(entry, 0, __ATOMIC_RELEASE);
	give(&paging_lock, interrupts);
	flush(va);
}

#endif
