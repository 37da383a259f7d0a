/*
 * races.c - vCPUs convert the same pages at the same time, with paging on
 *
 * shows:       1. all vCPUs convert the same pages the same way at once: each page is converted
 *              once, no write and no locked increment is lost; 2. all touch the same pages of both
 *              regions through both views at random: what is read was written through the same
 *              view since the last conversion, or is zero; afterwards nothing old comes back;
 *              3. one vCPU converts by doorbell what the others touch.
 * modes:       long protected
 * vcpus:       1-64
 * exits:       io memory
 * params:      ROUNDS=4 FIGHT_ROUNDS=40 (0 leaves parts 2 and 3 out)
 * expect:      pass
 * conversions: any
 * conversions --param FIGHT_ROUNDS=0: to_private=64 to_shared=64 implicit=128 explicit=0
 */
#include "pyvmm.h"

#ifndef ROUNDS
#define ROUNDS 4
#endif
#ifndef FIGHT_ROUNDS
#define FIGHT_ROUNDS 40
#endif

#define PAGES 16
#define COUNTER 0x80 /* behind a byte of each vCPU */
#define WORD 0x100
#define TAG_PRIVATE 0xA5000000u
#define TAG_SHARED 0x5A000000u
#define TAG 0xFF000000u

#ifdef __x86_64__
#define PRIVATE_PAGE(i) ((uintptr_t)((i) & 1 ? HIGH_PRIVATE_VIEW : PRIVATE_VIEW) + (i) * PAGE_SIZE)
#define SHARED_PAGE(i) ((uintptr_t)((i) & 1 ? HIGH_SHARED_VIEW : SHARED_VIEW) + (i) * PAGE_SIZE)
#else
#define PRIVATE_PAGE(i) (PRIVATE_VIEW + (i) * PAGE_SIZE)
#define SHARED_PAGE(i) (SHARED_VIEW + (i) * PAGE_SIZE)
#endif

static void same_way(unsigned vcpu, unsigned vcpus, bool is_private)
{
	for (unsigned i = 0; i < PAGES; i++) {
		const uintptr_t page = is_private ? PRIVATE_PAGE(i) : SHARED_PAGE(i);

		write8(page + vcpu, vcpu + 1);
		__atomic_add_fetch((u32 *)(page + COUNTER), 1, __ATOMIC_SEQ_CST);
	}
	barrier();
	for (unsigned i = 0; i < PAGES; i++) {
		const uintptr_t page = is_private ? PRIVATE_PAGE(i) : SHARED_PAGE(i);

		assert_eq(read32(page + COUNTER), vcpus);
		for (unsigned other = 0; other < vcpus; other++)
			assert_eq(read8(page + other), other + 1);
	}
	barrier();
}

static u32 next(u32 *random)
{
	*random ^= *random << 13;
	*random ^= *random >> 17;
	*random ^= *random << 5;
	return *random;
}

static void check(u32 seen, u32 tag)
{
	if (seen) /* else it was converted in between */
		assert_eq(seen & TAG, tag);
}

static void touch(u32 *random)
{
	const u32 draw = next(random);
	const unsigned i = draw >> 8 & (PAGES - 1);
	const bool is_private = draw & 1;
	const u32 tag = is_private ? TAG_PRIVATE : TAG_SHARED;
	const uintptr_t word = (is_private ? PRIVATE_PAGE(i) : SHARED_PAGE(i)) + WORD;

	if (draw & 2)
		write32(word, tag | draw >> 16);
	if (draw & 4)
		check(__atomic_exchange_n((u32 *)word, tag | draw >> 16, __ATOMIC_SEQ_CST), tag);
	check(read32(word), tag);
}

static void fight(unsigned vcpu, bool by_doorbell)
{
	u32 random = (vcpu + 1) * 0x9E3779B1u;

	for (unsigned round = 0; round < FIGHT_ROUNDS; round++) {
		if (by_doorbell && vcpu == 0) {
			const unsigned i = round % PAGES;

			assert_eq(convert(round & 1 ? PRIVATE_PAGE(i) : SHARED_PAGE(i), 1,
					  next(&random) & 1 ? TO_PRIVATE : TO_SHARED),
				  0);
		} else {
			touch(&random);
		}
	}
	barrier();
}

int main(unsigned vcpu, unsigned vcpus)
{
	for (unsigned round = 0; round < ROUNDS; round++) {
		same_way(vcpu, vcpus, true);
		same_way(vcpu, vcpus, false);
	}
	if (!FIGHT_ROUNDS)
		return 0;
	fight(vcpu, false);
	fight(vcpu, true);
	if (vcpu)
		return 0;
	for (unsigned i = 0; i < PAGES; i++) {
		assert_eq(convert(PRIVATE_PAGE(i), 1, TO_SHARED), 0);
		assert_eq(convert(PRIVATE_PAGE(i), 1, TO_PRIVATE), 0);
		assert_eq(read32(PRIVATE_PAGE(i) + WORD), 0);
		assert_eq(read32(SHARED_PAGE(i) + WORD), 0);
	}
	return 0;
}
