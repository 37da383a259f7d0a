/*
 * selfmodifying.c - code that is changed while it runs, in RAM and in both views
 *
 * shows:       code in a private and in a shared page runs, is changed and runs anew; code that
 *              changes the instruction behind its own store; code written through one mapping and
 *              run through another (long mode). A page that has converted holds other code.
 * modes:       long protected
 * vcpus:       1-64, the first one works
 * exits:       io memory
 * expect:      pass
 * conversions: to_private=3 to_shared=2 implicit=2 explicit=3
 */
#include "pyvmm.h"

#define CODE PRIVATE_VIEW
#define SHARED_CODE SHARED_VIEW
#define ELSEWHERE 0x20000000 /* above RAM; no page of the region is there */

typedef u32 (*function)(void);

/* mov $value, %eax; ret */
static void write_function(uintptr_t at, u32 value)
{
	write8(at, 0xB8);
	write8(at + 1, value);
	write8(at + 2, value >> 8);
	write8(at + 3, value >> 16);
	write8(at + 4, value >> 24);
	write8(at + 5, 0xC3);
}

static u32 call(uintptr_t at)
{
	return ((function)at)();
}

/* movb $0x42, 1+target; target: mov $0, %eax; ret: the store changes what comes next. */
static void write_changing_function(uintptr_t at)
{
	const uintptr_t target = at + 7;
#ifdef __x86_64__
	const u32 distance = 1; /* from the store's end, which is target, to its operand */
#else
	const u32 distance = (u32)target + 1;
#endif

	write8(at, 0xC6);
	write8(at + 1, 0x05);
	for (unsigned i = 0; i < 4; i++)
		write8(at + 2 + i, distance >> 8 * i);
	write8(at + 6, 0x42);
	write_function(target, 0);
}

static void try_at(uintptr_t at)
{
	for (u32 value = 1; value < 2000000000; value *= 7) {
		write_function(at, value);
		assert_eq(call(at), value);
	}
	for (unsigned i = 0; i < 3; i++) {
		write_changing_function(at + 64);
		assert_eq(call(at + 64), 0x42);
	}
}

static u8 in_ram[256];

int main(unsigned vcpu, unsigned vcpus)
{
	(void)vcpus;
	if (vcpu)
		return 0;
	try_at((uintptr_t)in_ram);

	assert_eq(convert(CODE, 1, TO_PRIVATE), 0);
	try_at(CODE);
	write_function(CODE, 111);

	/* The shared page with the same offset is another one: converted, it is zero. */
	assert_eq(read32(SHARED_CODE), 0);
	try_at(SHARED_CODE);
	write_function(SHARED_CODE, 222);
	assert_eq(call(SHARED_CODE), 222);

	/* Converted under code that has run: what ran before is gone. */
	assert_eq(convert(CODE, 1, TO_PRIVATE), 0);
	write_function(CODE, 333);
	assert_eq(call(CODE), 333);
	write_function(SHARED_CODE, 444);
	assert_eq(call(SHARED_CODE), 444);
	assert_eq(convert(CODE, 1, TO_PRIVATE), 0);
	write_function(CODE, 555);
	assert_eq(call(CODE), 555);
#ifdef __x86_64__
	map(ELSEWHERE, CODE, PTE_WRITE);
	for (u32 value = 1; value < 2000000000; value *= 5) {
		write_function(CODE, value);
		assert_eq(call(ELSEWHERE), value);
		write_function(ELSEWHERE, value + 1);
		assert_eq(call(CODE), value + 1);
	}
#endif
	return 0;
}
