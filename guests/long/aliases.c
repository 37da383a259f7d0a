/*
 * aliases.c - many addresses for one page
 *
 * shows:       a page of the region is mapped at 32 addresses, half of them through each view; a
 *              touch of any converts it for all, and all of one view see the same bytes. An entry
 *              that is changed from one view to the other, and flushed, converts at its next use.
 * modes:       long
 * vcpus:       1-64, the first one works
 * exits:       io memory
 * expect:      pass
 * conversions: to_private=206 to_shared=206 implicit=412 explicit=0
 */
#include "pyvmm.h"

#define BASE 0x20000000000 /* nobody else maps anything there */
#define ADDRESSES 32
#define PAGES 4
#define STRIDE 0x40200000

/* Each has tables of its own: they lie in turns in two places. */
static u64 address_of(unsigned page, unsigned i)
{
	return BASE + (i / 2 & 1) * STRIDE + (i * 16 + page) * PAGE_SIZE;
}

int main(unsigned vcpu, unsigned vcpus)
{
	(void)vcpus;
	if (vcpu)
		return 0;
	for (unsigned page = 0; page < PAGES; page++) {
		const u64 views[2] = { PRIVATE_VIEW + page * PAGE_SIZE, SHARED_VIEW + page * PAGE_SIZE };

		for (unsigned i = 0; i < ADDRESSES; i++)
			map(address_of(page, i), views[i & 1], PTE_WRITE);
		for (unsigned i = 0; i < ADDRESSES; i++) {
			write64(address_of(page, i) + 8, i + 1);
			assert_eq(read64(address_of(page, i)), 0);
			assert_eq(read64(views[i & 1] + 8), i + 1);
			for (unsigned same = i & 1; same < ADDRESSES; same += 2)
				assert_eq(read64(address_of(page, same) + 8), i + 1);
			if (i == 0)
				continue;
			/* The one before is of the other view: it converts, and this one back again. */
			assert_eq(read64(address_of(page, i - 1) + 8), 0);
			assert_eq(read64(address_of(page, i) + 8), 0);
		}
	}

	/* One address that changes its view. */
	for (unsigned i = 0; i < 36; i++) {
		map(BASE, i & 1 ? SHARED_VIEW : PRIVATE_VIEW, PTE_WRITE);
		write32(BASE, i + 1);
		assert_eq(read32(BASE), i + 1);
		assert_eq(read32(BASE + 4), 0);
	}
	return 0;
}
