/*
 * borders.c - accesses that lie in two pages, of which both, one or none has to convert
 *
 * shows:       reads and writes of 16, 32 and (in long mode) 64 bits across the border of two pages
 *              of one view convert those of the two that are in the other state, and see the
 *              bytes of both.
 * modes:       long protected
 * vcpus:       1-64, the first one works
 * exits:       io memory
 * expect:      pass
 * conversions --mode long: to_private=352 to_shared=352 implicit=176 explicit=528
 * conversions --mode protected: to_private=128 to_shared=128 implicit=64 explicit=192
 */
#include "pyvmm.h"

static const uintptr_t views[2] = { PRIVATE_VIEW, SHARED_VIEW };
static const unsigned states[2] = { TO_PRIVATE, TO_SHARED };

/* Both pages zero, the first in the state of view `first`, the second in that of `second`. */
static void set(unsigned first, unsigned second)
{
	assert_eq(convert(PRIVATE_VIEW, 1, states[!first]), 0);
	assert_eq(convert(PRIVATE_VIEW, 1, states[first]), 0);
	assert_eq(convert(PRIVATE_VIEW + PAGE_SIZE, 1, states[!second]), 0);
	assert_eq(convert(PRIVATE_VIEW + PAGE_SIZE, 1, states[second]), 0);
}

static void write(uintptr_t at, unsigned bits, unsigned long value)
{
	if (bits == 16)
		write16(at, value);
	else if (bits == 32)
		write32(at, value);
	else
		*(volatile unsigned long *)at = value;
}

static unsigned long read(uintptr_t at, unsigned bits)
{
	return bits == 16   ? read16(at)
	       : bits == 32 ? read32(at)
			    : *(volatile unsigned long *)at;
}

/* An access of so many bits at `at`, from every state of the two pages. */
static void try_at(uintptr_t at, unsigned bits)
{
	const unsigned long value = ~0ul / 15 * 7 >> (8 * sizeof(long) - bits);

	for (unsigned before = 0; before < 4; before++) {
		set(before & 1, before >> 1);
		write(at, bits, value);
		assert_eq(read(at, bits), value);
		for (unsigned byte = 0; byte < bits / 8; byte++)
			assert_eq(read8(at + byte), 0x77);
		set(before & 1, before >> 1);
		assert_eq(read(at, bits), 0);
	}
}

int main(unsigned vcpu, unsigned vcpus)
{
	(void)vcpus;
	if (vcpu)
		return 0;
	for (unsigned view = 0; view < 2; view++)
		for (unsigned bits = 16; bits <= 8 * sizeof(long); bits *= 2)
			for (unsigned in_first = 1; in_first < bits / 8; in_first++)
				try_at(views[view] + PAGE_SIZE - in_first, bits);
	return 0;
}
