/*
 * reach.c - the region above 4 GiB
 *
 * shows:       every page of the region at 4 GiB converts by touch, and ranges of it by doorbell,
 *              in both views, with GPAs of more than 32 bits. The upper halves of GPA and pages
 *              count once. Pages with the same lower half below 4 GiB stay as they are.
 * modes:       long
 * vcpus:       1-64, the first one works
 * exits:       io memory
 * expect:      pass
 * conversions: to_private=2817 to_shared=2048 implicit=1281 explicit=3584
 */
#include "pyvmm.h"

#define PAGES (HIGH_REGION_SIZE / PAGE_SIZE)
#define RESULT() ((int)inl(PORT_DOORBELL_RESULT))

static void number(u64 view)
{
	for (u64 page = 0; page < PAGES; page++)
		write64(view + page * PAGE_SIZE + 8 * (page % 512), page * 0x123456789 + 1);
}

static void check(u64 view, u64 first, u64 last)
{
	for (u64 page = first; page < last; page++)
		assert_eq(read64(view + page * PAGE_SIZE + 8 * (page % 512)),
			  page * 0x123456789 + 1);
}

static void check_zero(u64 view, u64 first, u64 last)
{
	for (u64 page = first; page < last; page++)
		assert_eq(read64(view + page * PAGE_SIZE + 8 * (page % 512)), 0);
}

int main(unsigned vcpu, unsigned vcpus)
{
	(void)vcpus;
	if (vcpu)
		return 0;
	/* Below 4 GiB, with the same lower half as pages of the views above. */
	write32(RAM_START + 0x400000, 0xABCDEF01);
	write32(PRIVATE_VIEW, 0x12345678);

	/* 1,024 pages to private by touch. */
	number(HIGH_PRIVATE_VIEW);
	check(HIGH_PRIVATE_VIEW, 0, PAGES);

	/* The upper half of the region to shared, all of it, all to private, a half, all back. */
	assert_eq(convert(HIGH_PRIVATE_VIEW + HIGH_REGION_SIZE / 2, PAGES / 2, TO_SHARED), 0);
	check(HIGH_PRIVATE_VIEW, 0, PAGES / 2);
	check_zero(HIGH_SHARED_VIEW, PAGES / 2, PAGES);
	assert_eq(convert(HIGH_SHARED_VIEW, PAGES, TO_SHARED), 0);
	check_zero(HIGH_SHARED_VIEW, 0, PAGES);
	number(HIGH_SHARED_VIEW);
	check(HIGH_SHARED_VIEW, 0, PAGES);
	assert_eq(convert(HIGH_SHARED_VIEW, PAGES, TO_PRIVATE), 0);
	assert_eq(convert(HIGH_PRIVATE_VIEW, PAGES / 4 * 3, TO_SHARED), 0);
	number(HIGH_SHARED_VIEW); /* the last quarter by touch */
	for (u64 page = 0; page < PAGES; page += 4)
		assert_eq(convert(HIGH_SHARED_VIEW + page * PAGE_SIZE, 3, TO_PRIVATE), 0);
	for (u64 page = 0; page < PAGES; page += 4)
		check_zero(HIGH_PRIVATE_VIEW, page, page + 3);
	for (u64 page = 3; page < PAGES; page += 4)
		check(HIGH_SHARED_VIEW, page, page + 1);

	/* What reaches past the view, lies between the views, or has an upper half that is wrong. */
	assert_eq(convert(HIGH_PRIVATE_VIEW, PAGES + 1, TO_SHARED), -EINVAL);
	assert_eq(convert(HIGH_PRIVATE_VIEW + HIGH_REGION_SIZE, 1, TO_SHARED), -EINVAL);
	assert_eq(convert(0x300000000 + RAM_START, 1, TO_SHARED), -EINVAL);
	assert_eq(convert(HIGH_PRIVATE_VIEW, 1ull << 52, TO_SHARED), -EINVAL);
	assert_eq(convert(HIGH_PRIVATE_VIEW, 1ull << 32 | 1, TO_SHARED), -EINVAL);

	/* The upper halves are 0 again after each ring, and after one that was refused. */
	outl(PORT_DOORBELL_GPA_HIGH, 1);
	outl(PORT_DOORBELL_PAGES_HIGH, 7);
	outl(PORT_DOORBELL_GPA, 0);
	outl(PORT_DOORBELL_PAGES, 1);
	outl(PORT_DOORBELL_RING, TO_SHARED);
	assert_eq(RESULT(), -EINVAL);
	outl(PORT_DOORBELL_GPA, PRIVATE_VIEW);
	outl(PORT_DOORBELL_RING, TO_PRIVATE);
	assert_eq(RESULT(), 0);

	assert_eq(read32(RAM_START + 0x400000), 0xABCDEF01);
	assert_eq(read32(PRIVATE_VIEW), 0x12345678);
	return 0;
}
