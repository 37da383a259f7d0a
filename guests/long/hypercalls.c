/*
 * hypercalls.c - KVM_HC_MAP_GPA_RANGE with every argument that a guest may think of
 *
 * shows:       the hypercall converts, in pages of 4 KiB and with the other page sizes that its
 *              attributes may name; what is unaligned, empty, outside a region, too long or wraps
 *              around is refused and changes nothing; unknown hypercalls, too.
 * modes:       long protected
 * vcpus:       1-64, the first one works
 * exits:       hypercall io memory
 * expect:      pass
 * skip emulated: KVM_HC_MAP_GPA_RANGE does not convert there
 * conversions --mode long: to_private=580 to_shared=580 implicit=0 explicit=1160
 * conversions --mode protected: to_private=68 to_shared=68 implicit=0 explicit=136
 */
#include "pyvmm.h"

#define MAP_GPA_RANGE 12
#define PRIVATE (1ul << 4)
#define PAGES (REGION_SIZE / PAGE_SIZE)

static u32 random = 0x2545F491;

static unsigned long next(void)
{
	random ^= random << 13;
	random ^= random >> 17;
	random ^= random << 5;
	return random;
}

static long map_range(unsigned long gpa, unsigned long pages, unsigned long attributes)
{
	return hypercall(MAP_GPA_RANGE, gpa, pages, attributes);
}

static void refused(unsigned long gpa, unsigned long pages, unsigned long attributes)
{
	assert(map_range(gpa, pages, attributes) < 0);
}

int main(unsigned vcpu, unsigned vcpus)
{
	const unsigned long most = ~0ul;

	(void)vcpus;
	if (vcpu)
		return 0;
	assert(features() & FEATURE_HYPERCALL);

	assert_eq(hypercall_convert(PRIVATE_VIEW, 4, TO_PRIVATE), 0);
	write32(PRIVATE_VIEW + 0x3000, 7);
	assert_eq(hypercall_convert(SHARED_VIEW, 4, TO_PRIVATE), 0); /* as they are: contents stay */
	assert_eq(read32(PRIVATE_VIEW + 0x3000), 7);
	assert_eq(hypercall_convert(SHARED_VIEW, 4, TO_SHARED), 0);
	assert_eq(read32(SHARED_VIEW + 0x3000), 0);
	assert_eq(hypercall_convert(PRIVATE_VIEW, PAGES, TO_PRIVATE), 0);
	write32(PRIVATE_VIEW + 0x5000, 8);

	refused(PRIVATE_VIEW + 1, 1, 0);
	refused(PRIVATE_VIEW + 0x800, 1, 0);
	refused(PRIVATE_VIEW, 0, 0);
	refused(PRIVATE_VIEW, PAGES + 1, 0);
	refused(PRIVATE_VIEW + REGION_SIZE, 1, 0);
	refused(PRIVATE_VIEW - PAGE_SIZE, 2, 0);
	refused(RAM_START, 1, 0);
	refused(RAM_START, 1, PRIVATE);
	refused(0, 1, PRIVATE);
	refused(PRIVATE_VIEW, most, 0);
	refused(PRIVATE_VIEW, most / PAGE_SIZE + 1, 0);
	refused(most - PAGE_SIZE + 1, 1, 0);
	refused(most - PAGE_SIZE + 1, 2, 0);
	for (unsigned i = 0; i < 64; i++)
		refused(next() | 1, next(), next() & PRIVATE);
	for (unsigned i = 0; i < 16; i++)
		assert(hypercall(1000 + next() % 1000, next(), next(), next()) < 0);
	assert_eq(read32(PRIVATE_VIEW + 0x5000), 8);

#ifdef __x86_64__
	refused(PRIVATE_VIEW | 1ul << 63, 1, 0);
	refused(PRIVATE_VIEW, 1ul << 52 | 1, 0);
	assert_eq(hypercall_convert(HIGH_PRIVATE_VIEW, 512, TO_PRIVATE), 0);
	write32(HIGH_PRIVATE_VIEW + 0x1FF000, 9);
	assert_eq(read32(HIGH_PRIVATE_VIEW + 0x1FF000), 9);
	assert_eq(hypercall_convert(HIGH_PRIVATE_VIEW, 512, TO_SHARED), 0);
#endif
	assert_eq(hypercall_convert(PRIVATE_VIEW, PAGES, TO_SHARED), 0);
	return 0;
}
