/* SPDX-License-Identifier: MIT */
/*
 * pyvmm.h - the guest's side of the guest protocol for guests in C
 *
 * A guest is one file with
 *
 *	#include "pyvmm.h"
 *	int main(unsigned vcpu, unsigned vcpus)
 *
 * main() runs on every vCPU, on a stack of 16 KiB; what it returns is written to the exit
 * port, and 0 passes. There is no C library, and no floating point: what is here and what
 * gcc has of its own (stdint.h, stdbool.h, stddef.h, stdarg.h, limits.h) is all. Protected
 * mode (32 bits) lacks what is said to be of long mode.
 */
#ifndef PYVMM_H
#define PYVMM_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int8_t s8;
typedef int16_t s16;
typedef int32_t s32;
typedef int64_t s64;

int main(); /* of (unsigned, unsigned) or (void) */

/* --- Memory ---------------------------------------------------------------------------- */

#define PAGE_SIZE 0x1000
#define RAM_START 0x100000 /* of the RAM that the guest is loaded into */

#define PRIVATE_VIEW 0x40000 /* GPA of the region's private view */
#define SHARED_VIEW 0xC0000 /* GPA of its shared view, when it has two */
#define REGION_SIZE 0x40000 /* bytes */
#define NOTHING 0x80000 /* GPA of memory where nothing is, up to 0xBFFFF */

#ifdef __x86_64__
#define HIGH_PRIVATE_VIEW 0x100000000 /* the same of long mode's region at 4 GiB */
#define HIGH_SHARED_VIEW 0x140000000
#define HIGH_REGION_SIZE 0x400000
#endif

/* By address, an integer or a pointer; each is one access, of 64 bits in long mode only. */
#define read8(address) ((u8)*(volatile u8 *)(uintptr_t)(address))
#define read16(address) ((u16)*(volatile u16 *)(uintptr_t)(address))
#define read32(address) ((u32)*(volatile u32 *)(uintptr_t)(address))
#define read64(address) ((u64)*(volatile u64 *)(uintptr_t)(address))
#define write8(address, value) ((void)(*(volatile u8 *)(uintptr_t)(address) = (u8)(value)))
#define write16(address, value) ((void)(*(volatile u16 *)(uintptr_t)(address) = (u16)(value)))
#define write32(address, value) ((void)(*(volatile u32 *)(uintptr_t)(address) = (u32)(value)))
#define write64(address, value) ((void)(*(volatile u64 *)(uintptr_t)(address) = (u64)(value)))

/* --- Ports ------------------------------------------------------------------------------ */

#define PORT_CONSOLE 0xE9
#define PORT_EXIT 0xF4
#define PORT_DOORBELL_GPA 0x600
#define PORT_DOORBELL_PAGES 0x604
#define PORT_DOORBELL_RING 0x608
#define PORT_DOORBELL_RESULT 0x60C
#define PORT_ASSERT 0x610
#define PORT_MEASURE 0x614
#define PORT_FEATURES 0x618
#define PORT_DOORBELL_GPA_HIGH 0x61C
#define PORT_DOORBELL_PAGES_HIGH 0x620
#define PORT_ASSERT_HIGH 0x624

static inline void outb(u16 port, u8 value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline void outw(u16 port, u16 value)
{
	__asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline void outl(u16 port, u32 value)
{
	__asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline u8 inb(u16 port)
{
	u8 value;

	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
	return value;
}

static inline u16 inw(u16 port)
{
	u16 value;

	__asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port) : "memory");
	return value;
}

static inline u32 inl(u16 port)
{
	u32 value;

	__asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
	return value;
}

/* --- Ends, asserts, console, measures ---------------------------------------------------- */

/* Ends this vCPU with a code, as main()'s return does. */
void exit(int code) __attribute__((noreturn));

/* The assert's file and line go into the report, and what was seen and expected. */
#define assert(condition) \
	((condition) ? (void)0 : assert_failed(__LINE__, 0, 1, __FILE__, #condition))
#define assert_eq(seen, expected)                                                         \
	do {                                                                              \
		__auto_type seen_ = (seen);                                               \
		__auto_type expected_ = (expected);                                       \
		if (!(seen_ == expected_))                                                \
			assert_failed(__LINE__, (u64)seen_, (u64)expected_, __FILE__,     \
				      #seen " == " #expected);                            \
	} while (0)
void assert_failed(unsigned line, u64 seen, u64 expected, const char *file,
		   const char *expression) __attribute__((noreturn, cold));

/* The line and its end, as C has it. */
int puts(const char *text);
int putchar(int character);
/*
 * %d %i %u %x %X %p %s %c %%, with l, ll, z, h or hh, a width (or *), zeros or - in front, and a
 * precision for %s. What one call prints, up to 256 bytes, stays together on the console.
 */
int printf(const char *format, ...) __attribute__((format(printf, 1, 2)));
int vprintf(const char *format, va_list arguments);
int snprintf(char *text, size_t size, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
int vsnprintf(char *text, size_t size, const char *format, va_list arguments);

/* A number that goes into the report, in order. */
static inline void measure(u32 number)
{
	outl(PORT_MEASURE, number);
}

/* --- Conversions -------------------------------------------------------------------------- */

#define TO_SHARED 1
#define TO_PRIVATE 2

#define FEATURE_HYPERCALL (1u << 0) /* hypercall_convert() converts here */
#define FEATURE_TWO_VIEWS (1u << 1)
#define FEATURE_KEEPS_CONTENTS (1u << 2) /* a page keeps its contents when it is converted */

#define EINVAL 22
#define ENOSYS 38

u32 features(void);
/* By the doorbell, and by KVM_HC_MAP_GPA_RANGE; 0 or -errno (-ENOSYS without FEATURE_HYPERCALL). */
int convert(u64 gpa, u64 pages, unsigned state);
int hypercall_convert(u64 gpa, u64 pages, unsigned state);
/* The hypercall as it is, with any arguments. */
long hypercall(unsigned long number, unsigned long first, unsigned long second,
	       unsigned long third);

/* --- Exceptions and interrupts ------------------------------------------------------------ */

/* What was interrupted. A handler may change it: it goes on with what is here. */
struct frame {
	unsigned long cr2;
#ifdef __x86_64__
	unsigned long r15, r14, r13, r12, r11, r10, r9, r8;
	unsigned long rdi, rsi, rbp, rbx, rdx, rcx, rax;
#else
	unsigned long edi, esi, ebp, ebx, edx, ecx, eax;
#endif
	unsigned long vector;
	unsigned long error_code; /* 0 where the CPU pushes none */
#ifdef __x86_64__
	union {
		unsigned long rip, ip;
	};
	unsigned long cs, rflags, rsp, ss;
#else
	union {
		unsigned long eip, ip;
	};
	unsigned long cs, eflags;
#endif
};

/* For all vCPUs; NULL gives the vector back to whom it belonged at the start. */
void set_handler(unsigned vector, void (*handler)(struct frame *));

/* --- Page tables, in long mode ------------------------------------------------------------ */

#ifdef __x86_64__
#define PTE_PRESENT (1ull << 0)
#define PTE_WRITE (1ull << 1)
#define PTE_USER (1ull << 2)
#define PTE_ACCESSED (1ull << 5)
#define PTE_DIRTY (1ull << 6)
#define PTE_HUGE (1ull << 7) /* for map(): 2 MiB */

/*
 * 4 KiB, or 2 MiB with PTE_HUGE, at virtual address `va`; PTE_PRESENT is added. A 2 MiB page that
 * lies there is split first. This vCPU's TLB is flushed for it; others have to flush() themselves.
 */
void map(u64 va, u64 gpa, u64 flags);
void unmap(u64 va);
static inline void flush(u64 va)
{
	__asm__ volatile("invlpg (%0)" : : "r"(va) : "memory");
}
#endif

/* --- vCPUs and CPU ------------------------------------------------------------------------ */

/* Waits until every vCPU has come here. */
void barrier(void);

static inline void pause(void)
{
	__asm__ volatile("pause" : : : "memory");
}

static inline u64 rdtsc(void)
{
	u32 low, high;

	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
	return (u64)high << 32 | low;
}

struct cpuid {
	u32 eax, ebx, ecx, edx;
};

/* cpuid(leaf) or cpuid(leaf, subleaf): a struct cpuid. */
#define cpuid(leaf, ...) cpuid_leaf((leaf), (0, ##__VA_ARGS__))
static inline struct cpuid cpuid_leaf(u32 leaf, u32 subleaf)
{
	struct cpuid found;

	__asm__ volatile("cpuid"
			 : "=a"(found.eax), "=b"(found.ebx), "=c"(found.ecx), "=d"(found.edx)
			 : "0"(leaf), "2"(subleaf)
			 : "memory");
	return found;
}

static inline u64 rdmsr(u32 msr)
{
	u32 low, high;

	__asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr) : "memory");
	return (u64)high << 32 | low;
}

static inline void wrmsr(u32 msr, u64 value)
{
	__asm__ volatile("wrmsr"
			 :
			 : "c"(msr), "a"((u32)value), "d"((u32)(value >> 32))
			 : "memory");
}

/* --- Strings, as C has them ---------------------------------------------------------------- */

void *memcpy(void *to, const void *from, size_t size);
void *memmove(void *to, const void *from, size_t size);
void *memset(void *to, int byte, size_t size);
int memcmp(const void *one, const void *other, size_t size);
void *memchr(const void *where, int byte, size_t size);
size_t strlen(const char *text);
int strcmp(const char *one, const char *other);
int strncmp(const char *one, const char *other, size_t size);
char *strcpy(char *to, const char *from);
char *strchr(const char *text, int character);

#endif
