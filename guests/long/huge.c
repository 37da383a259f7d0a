/*
 * huge.c - conversions under guest mappings of 2 MiB
 *
 * shows:       the region at 4 GiB is mapped by pages of 2 MiB. Single pages of 4 KiB convert in
 *              their middle and at their ends, by touch and by doorbell; all others keep their
 *              contents and their state. A whole 2 MiB converts by one doorbell, and is split and
 *              made whole again. A mapping of 2 MiB of another address reaches the same pages.
 * modes:       long
 * vcpus:       1-64, the first one works
 * exits:       io memory
 * expect:      pass
 * conversions: to_private=526 to_shared=526 implicit=21 explicit=1031
 */
#include "pyvmm.h"

#define HUGE 0x200000
#define PAGES (HUGE / PAGE_SIZE)
#define ELSEWHERE 0x28000000000 /* an address that the tables do not have */

static const unsigned singles[] = { 0, 1, 7, 255, 256, 510, 511 };
#define SINGLES (sizeof(singles) / sizeof(singles[0]))

static bool is_single(unsigned page)
{
	for (unsigned i = 0; i < SINGLES; i++)
		if (singles[i] == page)
			return true;
	return false;
}

/* Every 16th page and all around the single ones. */
static bool is_looked_at(unsigned page)
{
	return page % 16 == 0 || is_single(page) || (page + 1 < PAGES && is_single(page + 1)) ||
	       (page && is_single(page - 1));
}

static void number_all(u64 view, u32 tag)
{
	for (unsigned page = 0; page < PAGES; page++)
		if (is_looked_at(page))
			write32(view + page * PAGE_SIZE + 4, tag + page);
}

static void check(u64 view, u32 tag, bool singles_too)
{
	for (unsigned page = 0; page < PAGES; page++)
		if (is_looked_at(page) && (singles_too || !is_single(page)))
			assert_eq(read32(view + page * PAGE_SIZE + 4), tag + page);
}

int main(unsigned vcpu, unsigned vcpus)
{
	(void)vcpus;
	if (vcpu)
		return 0;
	/* Shared all of it, with single pages that become private and come back. */
	number_all(HIGH_SHARED_VIEW, 0x1000);
	for (unsigned i = 0; i < SINGLES; i++)
		assert_eq(read32(HIGH_PRIVATE_VIEW + singles[i] * PAGE_SIZE + 4), 0);
	check(HIGH_SHARED_VIEW, 0x1000, false);
	for (unsigned i = 0; i < SINGLES; i++)
		write32(HIGH_SHARED_VIEW + singles[i] * PAGE_SIZE + 4, 0x1000 + singles[i]);
	check(HIGH_SHARED_VIEW, 0x1000, true);

	/* Private all of it by one doorbell, which leaves zeros; the same the other way round. */
	assert_eq(convert(HIGH_PRIVATE_VIEW, PAGES, TO_PRIVATE), 0);
	for (unsigned page = 0; page < PAGES; page += 16)
		assert_eq(read32(HIGH_PRIVATE_VIEW + page * PAGE_SIZE + 4), 0);
	number_all(HIGH_PRIVATE_VIEW, 0x2000);
	for (unsigned i = 0; i < SINGLES; i++)
		assert_eq(convert(HIGH_SHARED_VIEW + singles[i] * PAGE_SIZE, 1, TO_SHARED), 0);
	check(HIGH_PRIVATE_VIEW, 0x2000, false);
	for (unsigned i = 0; i < SINGLES; i++) {
		assert_eq(read32(HIGH_SHARED_VIEW + singles[i] * PAGE_SIZE + 4), 0);
		write32(HIGH_PRIVATE_VIEW + singles[i] * PAGE_SIZE + 4, 0x2000 + singles[i]);
	}
	check(HIGH_PRIVATE_VIEW, 0x2000, true);

	/* The same pages by another address of 2 MiB, across the border of the two huge pages. */
	map(ELSEWHERE, HIGH_PRIVATE_VIEW, PTE_WRITE | PTE_HUGE);
	map(ELSEWHERE + HUGE, HIGH_PRIVATE_VIEW + HUGE, PTE_WRITE | PTE_HUGE);
	check(ELSEWHERE, 0x2000, true);
	assert_eq(convert(HIGH_PRIVATE_VIEW + HUGE / 2, PAGES, TO_SHARED), 0);
	assert_eq(convert(HIGH_PRIVATE_VIEW, PAGES, TO_SHARED), 0);
	for (unsigned page = 0; page < PAGES; page += 16)
		assert_eq(read32(HIGH_SHARED_VIEW + page * PAGE_SIZE + 4), 0);
	return 0;
}
