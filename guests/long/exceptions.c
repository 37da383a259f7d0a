/*
 * exceptions.c - exceptions and conversions in one instruction
 *
 * shows:       an instruction that converts a page and raises an exception by what it then reads
 *              (a division by the zero of a converted page) does both, once; one that faults in
 *              the guest's own tables faults first and converts when it is done again; a handler
 *              that converts the page it came for, or another one. An access that was refused by
 *              the tables has converted nothing.
 * modes:       long
 * vcpus:       1-64, the first one works
 * exits:       io memory
 * expect:      pass
 * conversions: to_private=21 to_shared=20 implicit=40 explicit=1
 */
#include "pyvmm.h"

#define ROUNDS 8
#define ELSEWHERE 0x30000000000 /* an address that the tables do not have */
#define READ_ONLY_AT (ELSEWHERE + PAGE_SIZE)
#define WAS_PRESENT 1ul
#define WAS_WRITE 2ul

static volatile unsigned divides, faults, protections;
static volatile u64 address, error;
static u64 to_map;

static void on_divide(struct frame *frame)
{
	divides++;
	/* The page converted before: here it is converted back, and the handler's own page, too. */
	write32(SHARED_VIEW + 0x1000, divides);
	assert_eq(read32(PRIVATE_VIEW + 0x2000), 0);
	frame->rip += 2; /* divl (%rbx) */
}

static void on_page_fault(struct frame *frame)
{
	faults++;
	address = frame->cr2;
	error = frame->error_code;
	if (error & WAS_PRESENT)
		frame->rip += 2; /* movl %eax, (%rbx) */
	else
		map(frame->cr2, to_map, PTE_WRITE);
}

static void on_protection(struct frame *frame)
{
	protections++;
	frame->rip += 2; /* movl %eax, (%rbx), or wrmsr */
}

static void divide_by(u64 at)
{
	u32 quotient = 1, rest = 0;

	__asm__ volatile("divl (%2)" : "+a"(quotient), "+d"(rest) : "b"(at) : "memory");
}

static void store(u64 at, u32 value)
{
	__asm__ volatile("movl %%eax, (%%rbx)" : : "a"(value), "b"(at) : "memory");
}

int main(unsigned vcpu, unsigned vcpus)
{
	u64 cr0;

	(void)vcpus;
	if (vcpu)
		return 0;
	set_handler(0, on_divide);
	set_handler(14, on_page_fault);
	set_handler(13, on_protection);

	/* The divisor's page converts, reads zero, and #DE comes up: once for each instruction. */
	for (unsigned i = 0; i < ROUNDS; i++) {
		divide_by(PRIVATE_VIEW + 0x1000 + 4 * i);
		assert_eq(divides, i + 1);
		assert_eq(read32(SHARED_VIEW + 0x1000), i + 1);
		write32(SHARED_VIEW + 0x2000, 1);
	}

	/* #PF of the tables, then the touch that converts, in one instruction. */
	for (unsigned i = 0; i < ROUNDS; i++) {
		to_map = i & 1 ? SHARED_VIEW + 0x3000 : PRIVATE_VIEW + 0x3000;
		store(ELSEWHERE + 0x10, i + 1);
		assert_eq(faults, i + 1);
		assert_eq(address, ELSEWHERE + 0x10);
		assert_eq(error, WAS_WRITE);
		assert_eq(read32(to_map + 0x10), i + 1);
		assert_eq(read32(to_map + 0x14), 0);
		unmap(ELSEWHERE);
	}

	/* A write that the tables refuse converts nothing. */
	__asm__ volatile("mov %%cr0, %0" : "=r"(cr0));
	__asm__ volatile("mov %0, %%cr0" : : "r"(cr0 | 1 << 16)); /* CR0.WP */
	assert_eq(convert(SHARED_VIEW + 0x4000, 1, TO_PRIVATE), 0);
	write32(PRIVATE_VIEW + 0x4000, 0xCAFE);
	map(READ_ONLY_AT, SHARED_VIEW + 0x4000, 0);
	store(READ_ONLY_AT, 1);
	assert_eq(faults, ROUNDS + 1);
	assert_eq(error, WAS_WRITE | WAS_PRESENT);
	assert_eq(read32(PRIVATE_VIEW + 0x4000), 0xCAFE);

	/* #GP of an address that is not canonical, and of an MSR that is not there. */
	store(0x800000000000, 1);
	assert_eq(protections, 1);
	wrmsr(0xDEADBEEF, 1);
	assert_eq(protections, 2);
	assert_eq(read32(PRIVATE_VIEW + 0x4000), 0xCAFE);
	return 0;
}
