/*
 * widths.c - converts every page in every width, with paging on
 *
 * shows:       each page of the region becomes private and shared again by reads and writes of 8,
 *              16, 32 and (in long mode) 64 bits through the other view; a converted page reads
 *              zero but for what was written, and its neighbours keep what they have. In long
 *              mode the same happens in 16 pages of the region at 4 GiB.
 * modes:       long protected
 * vcpus:       1-64, the first one works
 * exits:       io memory
 * expect:      pass
 * conversions --mode long: to_private=320 to_shared=320 implicit=640 explicit=0
 * conversions --mode protected: to_private=192 to_shared=192 implicit=384 explicit=0
 */
#include "pyvmm.h"

#define JUNK 0xDEADBEEFu
#define WRITTEN 0x1122334455667788ull
#define PAGES (REGION_SIZE / PAGE_SIZE)
#define HIGH_PAGES 16

/* What lies at `at` in a page that was converted by a write of so many bits. */
static void check_page(uintptr_t page, unsigned at, unsigned bits)
{
	volatile u32 *words = (u32 *)page;
	const u64 written = bits ? WRITTEN & ~0ull >> (64 - bits) : 0;

	for (unsigned i = 0; i < PAGE_SIZE / 4; i += 31)
		if (i * 4 != at && i * 4 != at + 4)
			assert_eq(words[i], 0);
	assert_eq(words[at / 4], (u32)written);
	assert_eq(words[at / 4 + 1], (u32)(written >> 32));
	for (unsigned i = 0; i < PAGE_SIZE / 4; i += 31)
		words[i] = JUNK;
}

static void write_bits(uintptr_t address, unsigned bits)
{
	if (bits == 8)
		write8(address, WRITTEN);
	else if (bits == 16)
		write16(address, WRITTEN);
	else if (bits == 32)
		write32(address, WRITTEN);
	else
		write64(address, WRITTEN);
}

static u64 read_bits(uintptr_t address, unsigned bits)
{
	return bits == 8    ? read8(address)
	       : bits == 16 ? read16(address)
	       : bits == 32 ? read32(address)
			    : read64(address);
}

static void there_and_back(uintptr_t private, uintptr_t shared, unsigned pages, unsigned bits)
{
	for (unsigned page = 0; page < pages; page++) {
		const unsigned at = (page * 72) % (PAGE_SIZE - 8) & ~7u;
		const uintptr_t views[2] = { private + page * PAGE_SIZE, shared + page * PAGE_SIZE };
		const bool writes = page & 1;

		for (unsigned view = 0; view < 2; view++) {
			if (writes)
				write_bits(views[view] + at, bits);
			else
				assert_eq(read_bits(views[view] + at, bits), 0);
			check_page(views[view], at, writes ? bits : 0);
		}
	}
}

int main(unsigned vcpu, unsigned vcpus)
{
	(void)vcpus;
	if (vcpu)
		return 0;
	for (unsigned bits = 8; bits <= 8 * sizeof(long); bits *= 2)
		there_and_back(PRIVATE_VIEW, SHARED_VIEW, PAGES, bits);
#ifdef __x86_64__
	for (unsigned bits = 8; bits <= 64; bits *= 2)
		there_and_back(HIGH_PRIVATE_VIEW, HIGH_SHARED_VIEW, HIGH_PAGES, bits);
#endif
	return 0;
}
