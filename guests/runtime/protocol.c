/* SPDX-License-Identifier: MIT */
/* The protocol's ports and hypercall, and the barrier. */
#include "runtime.h"

#define KVM_HC_MAP_GPA_RANGE 12 /* linux/kvm_para.h, 5.16 */
#define MAP_GPA_PRIVATE (1u << 4)
#define OF_INTEL 0x6C65746E /* "ntel" of GenuineIntel */
#define LONGEST 200

u32 pyvmm_vcpus;

void exit(int code)
{
	for (;;)
		outl(PORT_EXIT, (u32)code);
}

/* The record that the assert port is told of; the strings follow each other. */
struct record {
	u16 line;
	u16 zero;
	u64 seen;
	u64 expected;
	char strings[2 * LONGEST];
} __attribute__((packed));

static char *append(char *to, const char *from)
{
	size_t length = strlen(from);

	if (length >= LONGEST)
		length = LONGEST - 1;
	memcpy(to, from, length);
	to[length] = '\0';
	return to + length + 1;
}

void assert_failed(unsigned line, u64 seen, u64 expected, const char *file, const char *expression)
{
	struct record record = { .line = (u16)line, .seen = seen, .expected = expected };
	const u64 gpa = (uintptr_t)&record;

	append(append(record.strings, file), expression);
	for (;;) {
		if (gpa >> 32)
			outl(PORT_ASSERT_HIGH, (u32)(gpa >> 32));
		outl(PORT_ASSERT, (u32)gpa);
	}
}

u32 features(void)
{
	return inl(PORT_FEATURES);
}

int convert(u64 gpa, u64 pages, unsigned state)
{
	/* An interrupt's handler may ring the same doorbell. */
	const unsigned long flags = interrupts_off();
	int result;

	if (gpa >> 32)
		outl(PORT_DOORBELL_GPA_HIGH, (u32)(gpa >> 32));
	if (pages >> 32)
		outl(PORT_DOORBELL_PAGES_HIGH, (u32)(pages >> 32));
	outl(PORT_DOORBELL_GPA, (u32)gpa);
	outl(PORT_DOORBELL_PAGES, (u32)pages);
	outl(PORT_DOORBELL_RING, state);
	result = (int)inl(PORT_DOORBELL_RESULT);
	interrupts_back(flags);
	return result;
}

long hypercall(unsigned long number, unsigned long first, unsigned long second,
	       unsigned long third)
{
	long result;

	/* KVM rewrites a wrong choice, which a guest may not allow. */
	if (cpuid(0).ecx == OF_INTEL)
		__asm__ volatile("vmcall"
				 : "=a"(result)
				 : "0"(number), "b"(first), "c"(second), "d"(third)
				 : "memory");
	else
		__asm__ volatile("vmmcall"
				 : "=a"(result)
				 : "0"(number), "b"(first), "c"(second), "d"(third)
				 : "memory");
	return result;
}

int hypercall_convert(u64 gpa, u64 pages, unsigned state)
{
	if (!(features() & FEATURE_HYPERCALL))
		return -ENOSYS;
	return (int)hypercall(KVM_HC_MAP_GPA_RANGE, (unsigned long)gpa, (unsigned long)pages,
			      state == TO_PRIVATE ? MAP_GPA_PRIVATE : 0);
}

void barrier(void)
{
	static u32 arrived, generation;
	const u32 before = __atomic_load_n(&generation, __ATOMIC_ACQUIRE);

	if (__atomic_add_fetch(&arrived, 1, __ATOMIC_ACQ_REL) == pyvmm_vcpus) {
		__atomic_store_n(&arrived, 0, __ATOMIC_RELAXED);
		__atomic_store_n(&generation, before + 1, __ATOMIC_RELEASE);
		return;
	}
	while (__atomic_load_n(&generation, __ATOMIC_ACQUIRE) == before)
		pause();
}
