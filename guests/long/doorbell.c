/*
 * doorbell.c - the doorbell with every argument of 64 bits that a guest may think of
 *
 * shows:       what is unaligned, empty, outside a region, too long, unknown or wraps around gives
 *              -22 and changes nothing; a page that already has the state keeps its contents; each
 *              vCPU has a doorbell of its own.
 * modes:       long protected
 * vcpus:       1-64
 * exits:       io memory
 * expect:      pass
 * conversions: to_private=64 to_shared=64 implicit=0 explicit=128
 */
#include "pyvmm.h"

#define PAGES (REGION_SIZE / PAGE_SIZE)
#define TOP (~0ull - PAGE_SIZE + 1)

static const struct {
	u64 gpa, pages;
	unsigned state;
} refused[] = {
	{ PRIVATE_VIEW + 1, 1, TO_SHARED },
	{ PRIVATE_VIEW + 0x800, 1, TO_SHARED },
	{ PRIVATE_VIEW, 0, TO_SHARED },
	{ PRIVATE_VIEW, PAGES + 1, TO_SHARED },
	{ PRIVATE_VIEW + REGION_SIZE, 1, TO_SHARED },
	{ PRIVATE_VIEW - PAGE_SIZE, 2, TO_SHARED },
	{ SHARED_VIEW + 63 * PAGE_SIZE, 2, TO_SHARED },
	{ RAM_START, 1, TO_PRIVATE },
	{ 0, 1, TO_PRIVATE },
	{ 0, PAGES, TO_PRIVATE },
	{ NOTHING, 1, TO_SHARED },
	{ PRIVATE_VIEW, 1, 0 },
	{ PRIVATE_VIEW, 1, 3 },
	{ PRIVATE_VIEW, 1, 0x80000001 },
	{ PRIVATE_VIEW | 1ull << 33, 1, TO_SHARED },
	{ PRIVATE_VIEW | 1ull << 63, 1, TO_SHARED },
	{ PRIVATE_VIEW, 1ull << 32, TO_SHARED },
	{ PRIVATE_VIEW, 1ull << 32 | 1, TO_SHARED },
	{ PRIVATE_VIEW, 1ull << 52, TO_SHARED }, /* its bytes are 0 modulo 2^64 */
	{ PRIVATE_VIEW, 1ull << 52 | 1, TO_SHARED },
	{ PRIVATE_VIEW, ~0ull, TO_SHARED },
	{ TOP, 1, TO_SHARED },
	{ TOP, 2, TO_SHARED }, /* wraps around to 0 */
	{ TOP, ~0ull, TO_SHARED },
	{ ~0ull, ~0ull, ~0u },
};

int main(unsigned vcpu, unsigned vcpus)
{
	const unsigned all = sizeof(refused) / sizeof(refused[0]);

	if (vcpu == 0) {
		assert_eq(convert(PRIVATE_VIEW, PAGES, TO_PRIVATE), 0);
		for (unsigned page = 0; page < PAGES; page++)
			write32(PRIVATE_VIEW + page * PAGE_SIZE, page + 1);
	}
	barrier();
	/* Each at another place of the list at the same time. */
	for (unsigned i = 0; i < all; i++) {
		const unsigned at = (i + vcpu * 5) % all;

		assert_eq(convert(refused[at].gpa, refused[at].pages, refused[at].state), -EINVAL);
		assert_eq(convert(PRIVATE_VIEW + vcpu % PAGES * PAGE_SIZE, 1, TO_PRIVATE), 0);
	}
	barrier();
	if (vcpu + 1 < vcpus)
		return 0;
	for (unsigned page = 0; page < PAGES; page++)
		assert_eq(read32(PRIVATE_VIEW + page * PAGE_SIZE), page + 1);
	assert_eq(convert(SHARED_VIEW, PAGES, TO_SHARED), 0);
	return 0;
}
