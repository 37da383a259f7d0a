/*
 * tables.c - page tables that lie in private and in shared pages
 *
 * shows:       a page directory pointer table, a page directory and a page table in pages of the
 *              region, private ones first and then shared ones, translate addresses for reads,
 *              writes and code; the CPU sets their accessed and dirty bits; a changed entry counts
 *              after its flush, a removed one faults and names the address. A page that converts
 *              under such tables leaves them as they are.
 * modes:       long
 * vcpus:       1-64, the first one works
 * exits:       io memory
 * expect:      pass
 * conversions: to_private=8 to_shared=7 implicit=9 explicit=6
 */
#include "pyvmm.h"

#define SLOT 3 /* of the top table: 0x18000000000 up, which nobody uses */
#define BASE ((u64)SLOT << 39)
#define RAM_FLAGS (PTE_PRESENT | PTE_WRITE)
#define TARGET 8 /* the first page of the region that is mapped */

static volatile u64 faults, fault_address, fault_error;

static u64 *top(void)
{
	u64 cr3;

	__asm__ volatile("mov %%cr3, %0" : "=r"(cr3));
	return (u64 *)(cr3 & ~0xFFFull);
}

static void reload(void)
{
	__asm__ volatile("mov %%cr3, %%rax\n\tmov %%rax, %%cr3" : : : "rax", "memory");
}

static void on_fault(struct frame *frame)
{
	faults++;
	fault_address = frame->cr2;
	fault_error = frame->error_code;
	frame->rip += 2; /* a load of two bytes */
}

static void load(u64 address)
{
	__asm__ volatile("movl (%0), %%eax" : : "b"(address) : "eax", "memory");
}

static const u8 returns_42[] = { 0xB8, 42, 0, 0, 0, 0xC3 }; /* mov $42, %eax; ret */

/* Tables in the three pages at `view`, which are in that state already. */
static void use_tables_at(u64 view, u64 same, u64 other)
{
	u64 *pointers = (u64 *)view, *directory = (u64 *)(view + PAGE_SIZE);
	u64 *table = (u64 *)(view + 2 * PAGE_SIZE);
	const u64 pages[2] = { same + TARGET * PAGE_SIZE, other + TARGET * PAGE_SIZE };

	memset(pointers, 0, 3 * PAGE_SIZE);
	table[0] = pages[0] | RAM_FLAGS;
	table[1] = pages[1] | RAM_FLAGS;
	directory[0] = (uintptr_t)table | RAM_FLAGS;
	pointers[0] = (uintptr_t)directory | RAM_FLAGS;
	top()[SLOT] = (uintptr_t)pointers | RAM_FLAGS;
	reload();

	/* The same page through both views, at neighbouring addresses: each touch converts. */
	for (unsigned i = 0; i < 2; i++) {
		write32(BASE, 0x11111111 + i);
		assert_eq(read32(pages[0]), 0x11111111 + i);
		assert_eq(read32(BASE + PAGE_SIZE), 0);
		write32(BASE + PAGE_SIZE + 8, 0x22222222);
		assert_eq(read32(pages[1] + 8), 0x22222222);
	}
	assert(table[0] & PTE_ACCESSED && table[0] & PTE_DIRTY);
	assert(table[1] & PTE_ACCESSED && table[1] & PTE_DIRTY);
	assert(directory[0] & PTE_ACCESSED && pointers[0] & PTE_ACCESSED);

	/* Code, at another page of the same view. */
	table[2] = (pages[0] + PAGE_SIZE) | RAM_FLAGS;
	memcpy((void *)(BASE + 2 * PAGE_SIZE), returns_42, sizeof(returns_42));
	assert_eq(((int (*)(void))(BASE + 2 * PAGE_SIZE))(), 42);

	/* An entry that goes, and one that leads elsewhere. */
	table[1] = 0;
	flush(BASE + PAGE_SIZE);
	faults = 0;
	load(BASE + PAGE_SIZE + 16);
	assert_eq(faults, 1);
	assert_eq(fault_address, BASE + PAGE_SIZE + 16);
	assert_eq(fault_error, 0);
	table[1] = (pages[0] + PAGE_SIZE) | RAM_FLAGS;
	flush(BASE + PAGE_SIZE);
	assert_eq(read8(BASE + PAGE_SIZE), 0xB8);

	top()[SLOT] = 0;
	reload();
}

int main(unsigned vcpu, unsigned vcpus)
{
	(void)vcpus;
	if (vcpu)
		return 0;
	set_handler(14, on_fault);
	/* The doorbell first: a table that is not there yet is more than some KVMs can walk. */
	assert_eq(convert(PRIVATE_VIEW, 3, TO_PRIVATE), 0);
	use_tables_at(PRIVATE_VIEW, PRIVATE_VIEW, SHARED_VIEW);
	assert_eq(convert(PRIVATE_VIEW, 3, TO_SHARED), 0);
	use_tables_at(SHARED_VIEW, SHARED_VIEW, PRIVATE_VIEW);
	return 0;
}
