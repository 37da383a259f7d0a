// SPDX-License-Identifier: GPL-2.0
/*
 * Does this kernel have the private memory of the RFC of December 2021, as
 * pyvmm/lab/patches/README.md describes it?  A standalone oracle: no part of pyvmm
 * is used, only ioctls, fallocate and a real-mode guest of a few instructions.
 *
 *     gcc -O1 -static -pthread -Wall -Wextra -Werror -o memory_error_abi memory_error_abi.c
 *     ./memory_error_abi [rounds of the races, 2000] [seed, the time]
 *
 * Prints KTAP. Exit status: 0 all passed, 1 something failed, 4 not this ABI (skipped).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <linux/falloc.h>
#include <linux/kvm.h>

/* ---- the ABI under test, and what is newer than this machine's <linux/kvm.h> ---- */

#define MEM_PRIVATE          (1u << 2) /* KVM_MEM_PRIVATE */
#define MEM_SHARED_VIEW      (1u << 3) /* KVM_MEM_SHARED_VIEW */
#define EXIT_MEMORY_ERROR    36
#define MAP_TO_SHARED        1 /* KVM_EXIT_MEM_MAP_SHARED */
#define MAP_TO_PRIVATE       2 /* KVM_EXIT_MEM_MAP_PRIVATE */
#define EXIT_MEMORY_FAULT    39 /* Linux 6.8 */
#define SW_PROTECTED_VM      1 /* Linux 6.8 */

struct private_region { /* struct kvm_userspace_memory_region_ext */
	uint32_t slot, flags;
	uint64_t gpa, size, address;
	uint64_t offset;
	uint32_t fd;
	uint32_t padding[5];
};
struct region2 { /* struct kvm_userspace_memory_region2, Linux 6.8 */
	uint32_t slot, flags;
	uint64_t gpa, size, address, offset;
	uint32_t fd, pad1;
	uint64_t pad2[14];
};
struct create_guest_memfd { uint64_t size, flags, reserved[6]; };
struct memory_attributes { uint64_t gpa, size, attributes, flags; };
struct pre_fault { uint64_t gpa, size, flags, padding[5]; };
struct memory_error { /* the union of struct kvm_run, at offset 32 */
	uint32_t type, pad;
	uint64_t gpa, size;
};
_Static_assert(sizeof(struct private_region) == 64 && offsetof(struct private_region, fd) == 40,
	       "kvm_userspace_memory_region_ext");
_Static_assert(sizeof(struct region2) == 160, "kvm_userspace_memory_region2");
_Static_assert(KVM_SET_USER_MEMORY_REGION == 0x4020AE46, "the old ioctl");

#define SET_REGION2       _IOW(KVMIO, 0x49, struct region2)
#define SET_ATTRIBUTES    _IOW(KVMIO, 0xd2, struct memory_attributes)
#define CREATE_GUEST_FD   _IOWR(KVMIO, 0xd4, struct create_guest_memfd)
#define PRE_FAULT         _IOWR(KVMIO, 0xd5, struct pre_fault)

/* ---- the guest: five routines, each run from its label to HLT ---- */

extern const char guest_start[], guest_end[], guest_read[], guest_write[], guest_spin[],
	guest_race[], guest_outs[];
asm(".pushsection .rodata\n"
    ".code16\n"
    "guest_start:\n"
    "guest_read:  mov (%bx), %eax\n"  /* EAX = [DS:BX] */
    "             jmp guest_halt\n"
    "guest_write: mov %eax, (%bx)\n"  /* [DS:BX] = EAX */
    "             jmp guest_halt\n"
    "guest_spin:  mov (%bx), %eax\n"  /* until [DS:BX] is not ECX any more */
    "             cmp %ecx, %eax\n"
    "             je guest_spin\n"
    "             jmp guest_halt\n"
    "guest_race:  mov %eax, (%bx)\n"  /* ECX times: write EAX, read it back; */
    "             mov (%bx), %edx\n"  /* ESI counts what is neither EAX nor 0 */
    "             test %edx, %edx\n"
    "             jz 1f\n"
    "             cmp %eax, %edx\n"
    "             je 1f\n"
    "             inc %esi\n"
    "             mov %edx, %edi\n"
    "1:           add $0x1000, %bx\n" /* over four pages */
    "             and $0x3fff, %bx\n"
    "             dec %ecx\n"
    "             jnz guest_race\n"
    "             jmp guest_halt\n"
    "guest_outs:  outsb\n"            /* port DX from [DS:SI], by KVM's emulator */
    "             jmp guest_halt\n"
    "guest_halt:  hlt\n"             /* entering again halts again */
    "             jmp guest_halt\n"
    "guest_end:\n"
    ".code64\n"
    ".popsection\n");

#define PAGE          4096ul
#define CODE          0x1000ul
#define PRIVATE       0x40000ul  /* private view of the 256 KiB of the private fd */
#define SHARED        0xC0000ul  /* shared view of the same */
#define SHARED2       0x140000ul /* and another */
#define SIZE          0x40000ul
#define NOWHERE       0x200000ul
enum { PLAIN_SLOT, PRIVATE_SLOT, SHARED_SLOT, SHARED2_SLOT, SPARE_SLOT };
#define VCPUS         2

struct machine {
	int vm, fd, vcpu[VCPUS];
	struct kvm_run *run[VCPUS];
	char *plain;  /* backs GPA 0 */
	char *shared; /* the shared half */
	char *hole;   /* PROT_NONE: userspace_addr of the private view */
};

/* ---- small tools ---- */

static int kvm, failures;
static long rounds = 2000;
static unsigned int seed;

__attribute__((format(printf, 2, 3)))
static void fail(int line, const char *format, ...)
{
	va_list arguments;

	printf("# line %d: ", line);
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf("\n");
	__atomic_add_fetch(&failures, 1, __ATOMIC_RELAXED);
}
#define CHECK(condition, ...) do { if (!(condition)) fail(__LINE__, __VA_ARGS__); } while (0)
#define EQUAL(seen, expected, what) do { \
	long long seen_ = (long long)(seen), expected_ = (long long)(expected); \
	if (seen_ != expected_) \
		fail(__LINE__, "%s is %#llx, expected %#llx", what, seen_, expected_); \
} while (0)
/* What must not fail for the test to make sense. */
#define MUST(call) ({ __typeof__(call) r_ = (call); \
	if ((long)r_ == -1) { \
		printf("Bail out! line %d: %s: %s\n", __LINE__, #call, strerror(errno)); \
		exit(1); \
	} r_; })

static void hung(int signal)
{
	static const char text[] = "Bail out! a test hangs\n";

	(void)signal;
	if (write(1, text, sizeof(text) - 1) < 0)
		_exit(2);
	_exit(1);
}

/* No test, and no round of a race, takes two minutes, however busy the machine. */
static void still_alive(void)
{
	alarm(120);
}

static char *map(size_t size, int protection)
{
	char *address = mmap(NULL, size, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	MUST(address == MAP_FAILED ? -1 : 0);
	return address;
}

/* 0 or the errno. */
static int set_region(int vm, const struct private_region *region)
{
	return ioctl(vm, KVM_SET_USER_MEMORY_REGION, region) ? errno : 0;
}

static int add_view(struct machine *m, uint32_t slot, uint32_t flags, uint64_t gpa, char *address)
{
	struct private_region region = {
		.slot = slot, .flags = flags, .gpa = gpa, .size = SIZE,
		.address = (uintptr_t)address, .fd = (uint32_t)m->fd,
	};

	return set_region(m->vm, &region);
}

static int remove_slot(struct machine *m, uint32_t slot)
{
	struct private_region region = { .slot = slot };

	return set_region(m->vm, &region);
}

static int create_private_fd(int vm, uint64_t size)
{
	struct create_guest_memfd create = { .size = size };

	return ioctl(vm, CREATE_GUEST_FD, &create);
}

static int convert(int fd, int type, uint64_t offset, uint64_t size)
{
	int mode = type == MAP_TO_SHARED ? FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE : 0;
	int r;

	do
		r = fallocate(fd, mode, (off_t)offset, (off_t)size);
	while (r && errno == EINTR);
	return r ? errno : 0;
}

static void start_machine(struct machine *m)
{
	struct private_region plain = { .slot = PLAIN_SLOT, .size = 0x40000 };
	long run_size = MUST(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));

	m->vm = MUST(ioctl(kvm, KVM_CREATE_VM, SW_PROTECTED_VM));
	m->fd = MUST(create_private_fd(m->vm, SIZE));
	m->plain = map(plain.size, PROT_READ | PROT_WRITE);
	m->shared = map(SIZE, PROT_READ | PROT_WRITE);
	m->hole = map(SIZE, PROT_NONE);
	memcpy(m->plain + CODE, guest_start, (size_t)(guest_end - guest_start));
	plain.address = (uintptr_t)m->plain;
	EQUAL(set_region(m->vm, &plain), 0, "errno of the plain slot");
	EQUAL(add_view(m, PRIVATE_SLOT, MEM_PRIVATE, PRIVATE, m->hole), 0, "errno");
	EQUAL(add_view(m, SHARED_SLOT, MEM_PRIVATE | MEM_SHARED_VIEW, SHARED, m->shared), 0, "errno");
	for (int i = 0; i < VCPUS; i++) {
		m->vcpu[i] = MUST(ioctl(m->vm, KVM_CREATE_VCPU, i));
		m->run[i] = mmap(NULL, (size_t)run_size, PROT_READ | PROT_WRITE, MAP_SHARED,
				 m->vcpu[i], 0);
		MUST(m->run[i] == MAP_FAILED ? -1 : 0);
	}
}

static void shut(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void stop_machine(struct machine *m)
{
	long run_size = MUST(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));

	for (int i = 0; i < VCPUS; i++) {
		munmap(m->run[i], (size_t)run_size);
		shut(&m->vcpu[i]);
	}
	shut(&m->fd);
	shut(&m->vm);
	munmap(m->plain, 0x40000);
	munmap(m->shared, SIZE);
	munmap(m->hole, SIZE);
}

static void set_up(struct machine *m, int vcpu, const char *routine, uint64_t gpa, uint32_t eax,
		   uint32_t ecx)
{
	struct kvm_sregs sregs;
	struct kvm_regs regs = {
		.rip = CODE + (uint64_t)(routine - guest_start), .rflags = 2,
		.rax = eax, .rbx = gpa & 0xffff, .rcx = ecx, .rdx = 0x42, .rsi = 0,
	};

	MUST(ioctl(m->vcpu[vcpu], KVM_GET_SREGS, &sregs));
	sregs.cs.base = sregs.cs.selector = 0;
	sregs.ds.base = gpa & ~0xfffful;
	sregs.ds.selector = (uint16_t)(sregs.ds.base >> 4);
	MUST(ioctl(m->vcpu[vcpu], KVM_SET_SREGS, &sregs));
	MUST(ioctl(m->vcpu[vcpu], KVM_SET_REGS, &regs));
}

static struct kvm_regs registers(struct machine *m, int vcpu)
{
	struct kvm_regs regs;

	MUST(ioctl(m->vcpu[vcpu], KVM_GET_REGS, &regs));
	return regs;
}

/*
 * The lab's QEMU must not run guests on two CPUs at once: they run on the one that it names.
 * Afterwards a thread goes to the others, where it can race with those that are still in there.
 */
static void move_to_guest_cpu(int there)
{
	const char *named = getenv("PYVMM_GUEST_CPU");
	cpu_set_t set;

	if (!named)
		return;
	CPU_ZERO(&set);
	for (int cpu = 0; cpu <= atoi(named); cpu++)
		if ((cpu == atoi(named)) == there)
			CPU_SET(cpu, &set);
	MUST(sched_setaffinity(0, sizeof(set), &set));
}

/* KVM_RUN once: 0 or the errno. */
static int enter(struct machine *m, int vcpu)
{
	int error;

	move_to_guest_cpu(1);
	m->run[vcpu]->exit_reason = 0xdead;
	memset((char *)m->run[vcpu] + 32, 0xee, sizeof(struct memory_error));
	error = ioctl(m->vcpu[vcpu], KVM_RUN, 0) ? errno : 0;
	move_to_guest_cpu(0);
	return error;
}

static const struct memory_error *error_of(struct machine *m, int vcpu)
{
	return (const void *)((const char *)m->run[vcpu] + 32);
}

#define EXPECT_ERROR(m, vcpu, wanted_type, wanted_gpa) do { \
	EQUAL(enter(m, vcpu), EPERM, "errno of KVM_RUN"); \
	EQUAL((m)->run[vcpu]->exit_reason, EXIT_MEMORY_ERROR, "exit_reason"); \
	EQUAL(error_of(m, vcpu)->type, wanted_type, "type"); \
	EQUAL(error_of(m, vcpu)->gpa, wanted_gpa, "gpa"); \
	EQUAL(error_of(m, vcpu)->size, PAGE, "size"); \
} while (0)
#define EXPECT_HLT(m, vcpu) do { \
	EQUAL(enter(m, vcpu), 0, "errno of KVM_RUN"); \
	EQUAL((m)->run[vcpu]->exit_reason, KVM_EXIT_HLT, "exit_reason"); \
} while (0)
#define EXPECT_READ(m, where, expected) do { \
	set_up(m, 0, guest_read, where, 0x5555, 0); \
	EXPECT_HLT(m, 0); \
	EQUAL(registers(m, 0).rax, expected, "what the guest read"); \
} while (0)
#define EXPECT_WRITE(m, where, value) do { \
	set_up(m, 0, guest_write, where, value, 0); \
	EXPECT_HLT(m, 0); \
} while (0)

/* Converts as the exits ask, until the guest halts or anything else happens; counts exits. */
static long serve(struct machine *m, int vcpu)
{
	long count = 0;

	for (;;) {
		int error = enter(m, vcpu);
		const struct memory_error *e = error_of(m, vcpu);

		if (error == EINTR)
			continue;
		if (!error && m->run[vcpu]->exit_reason == KVM_EXIT_HLT)
			return count;
		if (error != EPERM || m->run[vcpu]->exit_reason != EXIT_MEMORY_ERROR) {
			fail(__LINE__, "errno %d, exit %u", error, m->run[vcpu]->exit_reason);
			return count;
		}
		EQUAL(convert(m->fd, (int)e->type, e->gpa & (SIZE - 1), e->size), 0, "errno");
		count++;
	}
}

/* Of the statistics of a VM or a vCPU, one counter by name; -1 if there is no such. */
static long long counter(int of, const char *name)
{
	int fd = MUST(ioctl(of, KVM_GET_STATS_FD, 0));
	struct kvm_stats_header header;
	struct { struct kvm_stats_desc fixed; char name[64]; } one;
	uint64_t value = UINT64_MAX;

	MUST(pread(fd, &header, sizeof(header), 0));
	for (uint32_t i = 0; i < header.num_desc; i++) {
		size_t size = sizeof(one.fixed) + header.name_size;

		MUST(pread(fd, &one, size, (off_t)(header.desc_offset + i * size)));
		if (!strcmp((char *)&one + sizeof(one.fixed), name))
			MUST(pread(fd, &value, sizeof(value),
				   (off_t)(header.data_offset + one.fixed.offset)));
	}
	close(fd);
	return (long long)value;
}

static long unevictable_kib(void)
{
	char line[128];
	long kib = -1;
	FILE *file = fopen("/proc/meminfo", "r");

	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "Unevictable: %ld kB", &kib) == 1)
			break;
	if (file)
		fclose(file);
	return kib;
}

/* ---- the tests ---- */

static void test_private_access(struct machine *m)
{
	uint64_t rip;

	m->shared[PAGE] = 0x77;
	set_up(m, 0, guest_read, PRIVATE + PAGE + 8, 0x5555, 0);
	rip = registers(m, 0).rip;
	EXPECT_ERROR(m, 0, MAP_TO_PRIVATE, PRIVATE + PAGE);
	EQUAL(registers(m, 0).rip, rip, "RIP");
	EXPECT_ERROR(m, 0, MAP_TO_PRIVATE, PRIVATE + PAGE); /* entering repeats the access */
	EQUAL(convert(m->fd, MAP_TO_PRIVATE, PAGE, PAGE), 0, "errno");
	EXPECT_HLT(m, 0);
	EQUAL(registers(m, 0).rax, 0, "what the guest read");
	EXPECT_READ(m, PRIVATE + PAGE, 0); /* and not 0x77 */
	set_up(m, 0, guest_write, PRIVATE + 2 * PAGE, 1, 0);
	EXPECT_ERROR(m, 0, MAP_TO_PRIVATE, PRIVATE + 2 * PAGE);
}

static void test_shared_access(struct machine *m)
{
	memset(m->shared, 0x11, SIZE);
	EXPECT_READ(m, SHARED + PAGE, 0x11111111); /* absent: a mapping like any other */
	EXPECT_WRITE(m, SHARED + PAGE, 0x22222222);
	EQUAL(*(uint32_t *)(m->shared + PAGE), 0x22222222, "what the host sees");
	EQUAL(convert(m->fd, MAP_TO_PRIVATE, PAGE, PAGE), 0, "errno");
	set_up(m, 0, guest_read, SHARED + PAGE + 4, 0, 0);
	EXPECT_ERROR(m, 0, MAP_TO_SHARED, SHARED + PAGE);
	EXPECT_ERROR(m, 0, MAP_TO_SHARED, SHARED + PAGE);
	EQUAL(convert(m->fd, MAP_TO_SHARED, PAGE, PAGE), 0, "errno");
	EXPECT_HLT(m, 0);
	EQUAL(registers(m, 0).rax, 0x11111111, "what the guest read");
}

static void test_untouched_page_is_private(struct machine *m)
{
	EQUAL(fallocate(m->fd, FALLOC_FL_KEEP_SIZE, 0, SIZE), 0, "fallocate with KEEP_SIZE");
	set_up(m, 0, guest_write, SHARED + 5 * PAGE, 1, 0);
	EXPECT_ERROR(m, 0, MAP_TO_SHARED, SHARED + 5 * PAGE);
	EXPECT_READ(m, PRIVATE + 5 * PAGE, 0);
}

static void test_zero_after_conversion(struct machine *m)
{
	for (int i = 0; i < 200; i++) { /* recycled dirty pages, not fresh ones */
		uint64_t offset = (uint64_t)(i % 7) * PAGE;

		EQUAL(convert(m->fd, MAP_TO_PRIVATE, offset, PAGE), 0, "errno");
		EXPECT_READ(m, PRIVATE + offset + 0x10, 0);
		EXPECT_WRITE(m, PRIVATE + offset + 0x10, 0xdeadbeef);
		EXPECT_READ(m, PRIVATE + offset + 0x10, 0xdeadbeef);
		EQUAL(convert(m->fd, MAP_TO_SHARED, offset, PAGE), 0, "errno");
		set_up(m, 0, guest_read, PRIVATE + offset + 0x10, 0, 0);
		EXPECT_ERROR(m, 0, MAP_TO_PRIVATE, PRIVATE + offset);
	}
}

static void test_neighbours(struct machine *m)
{
	EQUAL(convert(m->fd, MAP_TO_PRIVATE, 0, 8 * PAGE), 0, "errno");
	for (uint64_t i = 0; i < 8; i++)
		EXPECT_WRITE(m, PRIVATE + i * PAGE, 0x1000 + (uint32_t)i);
	for (uint64_t i = 8; i < 16; i++)
		EXPECT_WRITE(m, SHARED + i * PAGE, 0x2000 + (uint32_t)i);
	EQUAL(convert(m->fd, MAP_TO_SHARED, 3 * PAGE, 2 * PAGE), 0, "errno");
	EQUAL(convert(m->fd, MAP_TO_PRIVATE, 11 * PAGE, PAGE), 0, "errno");
	for (uint64_t i = 0; i < 8; i++)
		if (i != 3 && i != 4)
			EXPECT_READ(m, PRIVATE + i * PAGE, 0x1000 + i);
	for (uint64_t i = 8; i < 16; i++)
		if (i != 11)
			EXPECT_READ(m, SHARED + i * PAGE, 0x2000 + i);
	EXPECT_READ(m, PRIVATE + 11 * PAGE, 0);
	EXPECT_READ(m, SHARED + 3 * PAGE, 0);
}

static void test_idempotent(struct machine *m)
{
	EQUAL(convert(m->fd, MAP_TO_PRIVATE, 0, 4 * PAGE), 0, "errno");
	EXPECT_WRITE(m, PRIVATE + PAGE, 0x1234);
	EQUAL(convert(m->fd, MAP_TO_PRIVATE, 0, 8 * PAGE), 0, "errno");
	EXPECT_READ(m, PRIVATE + PAGE, 0x1234);
	EXPECT_WRITE(m, SHARED + 9 * PAGE, 0x5678);
	EQUAL(convert(m->fd, MAP_TO_SHARED, 8 * PAGE, 4 * PAGE), 0, "errno");
	EXPECT_READ(m, SHARED + 9 * PAGE, 0x5678);
}

static void test_straddling_access(struct machine *m)
{
	EQUAL(convert(m->fd, MAP_TO_PRIVATE, PAGE, PAGE), 0, "errno");
	set_up(m, 0, guest_write, PRIVATE + PAGE - 2, 0x44332211, 0);
	EXPECT_ERROR(m, 0, MAP_TO_PRIVATE, PRIVATE);
	EQUAL(convert(m->fd, MAP_TO_PRIVATE, 0, PAGE), 0, "errno");
	EXPECT_HLT(m, 0);
	EXPECT_READ(m, PRIVATE + PAGE - 2, 0x44332211);
	set_up(m, 0, guest_read, SHARED + 2 * PAGE - 2, 0, 0);
	EXPECT_ERROR(m, 0, MAP_TO_SHARED, SHARED + PAGE);
}

static void test_fetch(struct machine *m)
{
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = 3 * PAGE, .rflags = 2 };

	MUST(ioctl(m->vcpu[0], KVM_GET_SREGS, &sregs));
	sregs.cs.base = PRIVATE;
	sregs.cs.selector = PRIVATE >> 4;
	MUST(ioctl(m->vcpu[0], KVM_SET_SREGS, &sregs));
	MUST(ioctl(m->vcpu[0], KVM_SET_REGS, &regs));
	EXPECT_ERROR(m, 0, MAP_TO_PRIVATE, PRIVATE + 3 * PAGE);
}

static void test_two_shared_views(struct machine *m)
{
	EQUAL(add_view(m, SHARED2_SLOT, MEM_PRIVATE | MEM_SHARED_VIEW, SHARED2, m->shared), 0,
	      "errno of a second shared view");
	EXPECT_WRITE(m, SHARED + PAGE, 0xabcd);
	EXPECT_READ(m, SHARED2 + PAGE, 0xabcd); /* both are mapped now */
	EQUAL(convert(m->fd, MAP_TO_PRIVATE, PAGE, PAGE), 0, "errno");
	set_up(m, 0, guest_read, SHARED2 + PAGE, 0, 0);
	EXPECT_ERROR(m, 0, MAP_TO_SHARED, SHARED2 + PAGE);
	set_up(m, 0, guest_read, SHARED + PAGE, 0, 0);
	EXPECT_ERROR(m, 0, MAP_TO_SHARED, SHARED + PAGE);
	EQUAL(remove_slot(m, SHARED_SLOT), 0, "errno");
	set_up(m, 0, guest_read, SHARED2 + PAGE, 0, 0);
	EXPECT_ERROR(m, 0, MAP_TO_SHARED, SHARED2 + PAGE);
	EQUAL(convert(m->fd, MAP_TO_SHARED, PAGE, PAGE), 0, "errno");
	EXPECT_READ(m, SHARED2 + PAGE, 0xabcd);
	EQUAL(convert(m->fd, MAP_TO_PRIVATE, PAGE, PAGE), 0, "errno");
	set_up(m, 0, guest_read, SHARED2 + PAGE, 0, 0);
	EXPECT_ERROR(m, 0, MAP_TO_SHARED, SHARED2 + PAGE);
}

static void test_offset(struct machine *m)
{
	struct private_region part = {
		.slot = PRIVATE_SLOT, .flags = MEM_PRIVATE, .gpa = PRIVATE, .size = 4 * PAGE,
		.address = (uintptr_t)m->hole, .offset = 8 * PAGE, .fd = (uint32_t)m->fd,
	};

	EQUAL(remove_slot(m, PRIVATE_SLOT), 0, "errno");
	EQUAL(set_region(m->vm, &part), 0, "errno of a slot in the middle of the fd");
	part.slot = SHARED2_SLOT;
	part.flags |= MEM_SHARED_VIEW;
	part.gpa = SHARED2;
	part.address = (uintptr_t)m->shared + 8 * PAGE;
	EQUAL(set_region(m->vm, &part), 0, "errno of a slot in the middle of the fd");
	EXPECT_WRITE(m, SHARED + 9 * PAGE, 0x9999);
	EXPECT_READ(m, SHARED2 + PAGE, 0x9999);
	EQUAL(convert(m->fd, MAP_TO_PRIVATE, 9 * PAGE, PAGE), 0, "errno");
	set_up(m, 0, guest_read, SHARED2 + PAGE, 0, 0);
	EXPECT_ERROR(m, 0, MAP_TO_SHARED, SHARED2 + PAGE);
	EXPECT_WRITE(m, PRIVATE + PAGE, 0x9000);
	set_up(m, 0, guest_read, PRIVATE, 0, 0);
	EXPECT_ERROR(m, 0, MAP_TO_PRIVATE, PRIVATE);
	set_up(m, 0, guest_read, SHARED + 9 * PAGE, 0, 0);
	EXPECT_ERROR(m, 0, MAP_TO_SHARED, SHARED + 9 * PAGE);
	EQUAL(convert(m->fd, MAP_TO_SHARED, 0, 9 * PAGE), 0, "errno"); /* ends just before */
	EXPECT_READ(m, PRIVATE + PAGE, 0x9000);
}

static void test_host_cannot_reach(struct machine *m)
{
	char byte = 1;

	CHECK(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, m->fd, 0) == MAP_FAILED, "mmap works");
	CHECK(pread(m->fd, &byte, 1, 0) < 0, "pread works");
	CHECK(pwrite(m->fd, &byte, 1, 0) < 0, "pwrite works");
}

static void test_misuse(struct machine *m)
{
	int other_vm = MUST(ioctl(kvm, KVM_CREATE_VM, SW_PROTECTED_VM));
	int plain_vm = MUST(ioctl(kvm, KVM_CREATE_VM, 0));
	int other_fd = MUST(create_private_fd(other_vm, SIZE));
	int fd = MUST(create_private_fd(m->vm, SIZE));
	const struct private_region good = {
		.slot = SPARE_SLOT, .flags = MEM_PRIVATE, .gpa = NOWHERE, .size = SIZE,
		.address = (uintptr_t)m->shared, .fd = (uint32_t)fd,
	};
	const uint64_t top = 1ull << 63;
	struct private_region r;
#define REFUSED(expected, change) do { \
	r = good; \
	change; \
	EQUAL(set_region(m->vm, &r), expected, "errno after " #change); \
} while (0)

	REFUSED(EINVAL, r.flags = MEM_SHARED_VIEW);
	REFUSED(EINVAL, r.flags |= KVM_MEM_LOG_DIRTY_PAGES);
	REFUSED(EINVAL, r.flags |= KVM_MEM_READONLY);
	for (int bit = 4; bit < 32; bit++)
		REFUSED(EINVAL, r.flags |= 1u << bit);
	for (int i = 0; i < 5; i++)
		REFUSED(EINVAL, r.padding[i] = 1);
	REFUSED(EINVAL, r.fd = UINT32_MAX);
	REFUSED(EINVAL, r.fd = 0x80000000);
	REFUSED(EINVAL, r.fd = (uint32_t)kvm);
	REFUSED(EINVAL, r.fd = (uint32_t)other_fd);
	REFUSED(EINVAL, r.offset = 1);
	REFUSED(EINVAL, r.offset = PAGE);
	REFUSED(EINVAL, r.offset = SIZE);
	REFUSED(EINVAL, r.offset = top);
	REFUSED(EINVAL, r.offset = -PAGE);
	REFUSED(EINVAL, r.offset = -SIZE);
	REFUSED(EINVAL, (r.size = top, r.offset = top));
	REFUSED(EINVAL, r.size = SIZE + PAGE);
	REFUSED(EINVAL, r.size = 1);
	REFUSED(EINVAL, r.size = -PAGE);
	REFUSED(EINVAL, r.size = 0);
	REFUSED(EINVAL, r.gpa += 1);
	REFUSED(EINVAL, r.gpa = -PAGE);
	REFUSED(EINVAL, r.address += 1);
	REFUSED(EINVAL, r.address = top);
	REFUSED(EINVAL, r.slot = 0x10000 + SPARE_SLOT);
	REFUSED(EINVAL, r.slot = 32764);
	REFUSED(EINVAL, r.slot = 0xffff);
	REFUSED(EEXIST, r.gpa = 0);
	REFUSED(EEXIST, r.gpa = SHARED - PAGE);
	REFUSED(EEXIST, (r.gpa = SHARED, r.flags |= MEM_SHARED_VIEW));
	REFUSED(EINVAL, r.fd = (uint32_t)m->fd); /* the range has a private view */
	EQUAL(set_region(plain_vm, &good), EINVAL, "errno on a VM of type 0");
	EQUAL(ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, (void *)8) ? errno : 0, EFAULT, "errno");

	/* Slots are made and deleted, not changed. */
	REFUSED(0, r.slot = SPARE_SLOT);
	REFUSED(EINVAL, r.slot = SPARE_SLOT); /* not even to the same */
	REFUSED(EINVAL, r.gpa += SIZE);
	REFUSED(EINVAL, r.flags |= MEM_SHARED_VIEW);
	REFUSED(EINVAL, r.flags = 0);
	REFUSED(EINVAL, (r.flags = 0, r.gpa += SIZE));
	REFUSED(EINVAL, r.flags = KVM_MEM_LOG_DIRTY_PAGES);
	REFUSED(EINVAL, (r.size = 0, r.padding[0] = 1));
	REFUSED(0, r.size = 0);
	REFUSED(EINVAL, r.size = 0); /* gone already */
	EQUAL(convert(fd, MAP_TO_PRIVATE, SIZE, PAGE), EINVAL, "errno past the end");
	EQUAL(convert(fd, MAP_TO_PRIVATE, SIZE - PAGE, 2 * PAGE), EINVAL, "errno over the end");
	EQUAL(convert(fd, MAP_TO_PRIVATE, 1, PAGE), EINVAL, "errno unaligned");
	EQUAL(convert(fd, MAP_TO_SHARED, 0, 1), EINVAL, "errno unaligned");
	EQUAL(convert(fd, MAP_TO_PRIVATE, 0, 0), EINVAL, "errno of nothing");
	EQUAL(fallocate(fd, FALLOC_FL_ZERO_RANGE, 0, PAGE) ? errno : 0, EOPNOTSUPP, "errno");
	EQUAL(fallocate(fd, FALLOC_FL_PUNCH_HOLE, 0, PAGE) ? errno : 0, EOPNOTSUPP, "errno");
	close(fd);
	close(other_fd);
	close(other_vm);
	close(plain_vm);
}

static void test_old_callers(struct machine *m)
{
	/* Without the flag 32 bytes are read: the page after them need not be there. */
	char *pages = map(2 * PAGE, PROT_READ | PROT_WRITE);
	struct kvm_userspace_memory_region *last = (void *)(pages + PAGE - sizeof(*last));

	MUST(mprotect(pages + PAGE, PAGE, PROT_NONE));
	*last = (struct kvm_userspace_memory_region) {
		.slot = SPARE_SLOT, .guest_phys_addr = NOWHERE, .memory_size = SIZE,
		.userspace_addr = (uintptr_t)m->shared,
	};
	EQUAL(ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, last), 0, "the old ioctl");
	last->memory_size = 0;
	EQUAL(ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, last), 0, "the old ioctl");
	last->memory_size = SIZE;
	last->flags = MEM_PRIVATE;
	EQUAL(ioctl(m->vm, KVM_SET_USER_MEMORY_REGION, last) ? errno : 0, EFAULT, "errno");
	munmap(pages, 2 * PAGE);
}

/* The interface of Linux 6.8 in the same VM, and that a file serves one of the two. */
static void test_beside_guest_memfd(struct machine *m)
{
	int fd = MUST(create_private_fd(m->vm, SIZE));
	struct region2 r = {
		.slot = SPARE_SLOT, .flags = MEM_PRIVATE, .gpa = NOWHERE, .size = SIZE / 2,
		.address = (uintptr_t)m->shared, .fd = (uint32_t)m->fd,
	};
	struct private_region mine = {
		.slot = SPARE_SLOT + 1, .flags = MEM_PRIVATE | MEM_SHARED_VIEW,
		.gpa = NOWHERE + SIZE, .size = SIZE / 2, .address = (uintptr_t)m->shared,
		.offset = SIZE / 2, .fd = (uint32_t)fd,
	};
	struct memory_attributes attributes = {
		.gpa = NOWHERE, .size = SIZE / 2, .attributes = 1 << 3,
	};

	EQUAL(ioctl(m->vm, SET_REGION2, &r) ? errno : 0, EINVAL, "errno of a fd in use");
	r.fd = (uint32_t)fd;
	for (int bit = 3; bit < 32; bit++) {
		r.flags = MEM_PRIVATE | 1u << bit;
		EQUAL(ioctl(m->vm, SET_REGION2, &r) ? errno : 0, EINVAL, "errno of unknown flags");
	}
	r.flags = MEM_PRIVATE;
	EQUAL(ioctl(m->vm, SET_REGION2, &r), 0, "a slot of the merged interface");
	EQUAL(set_region(m->vm, &mine), EINVAL, "errno of a fd in use");
	mine.flags = MEM_PRIVATE;
	EQUAL(set_region(m->vm, &mine), EINVAL, "errno of a fd in use");
	EXPECT_WRITE(m, NOWHERE, 0x31);
	EQUAL(ioctl(m->vm, SET_ATTRIBUTES, &attributes), 0, "setting attributes");
	EXPECT_READ(m, NOWHERE, 0); /* allocated by the access, no exit */
	r.size = 0;
	EQUAL(ioctl(m->vm, SET_REGION2, &r), 0, "deleting");
	mine.flags = MEM_PRIVATE | MEM_SHARED_VIEW;
	EQUAL(set_region(m->vm, &mine), 0, "errno of a fd that is free again");
	close(fd);

	/* Attributes mean nothing in our slots. */
	EXPECT_WRITE(m, SHARED, 0x32);
	attributes.gpa = SHARED;
	attributes.size = SIZE;
	EQUAL(ioctl(m->vm, SET_ATTRIBUTES, &attributes), 0, "setting attributes");
	attributes.gpa = PRIVATE;
	EQUAL(ioctl(m->vm, SET_ATTRIBUTES, &attributes), 0, "setting attributes");
	EXPECT_READ(m, SHARED, 0x32);
	set_up(m, 0, guest_read, PRIVATE, 0, 0);
	EXPECT_ERROR(m, 0, MAP_TO_PRIVATE, PRIVATE);
}

static void test_pre_fault(struct machine *m)
{
	static const uint64_t view[] = { PRIVATE, SHARED };
	struct pre_fault range;

	set_up(m, 0, guest_read, 0, 0, 0);
	EQUAL(convert(m->fd, MAP_TO_PRIVATE, 0, 2 * PAGE), 0, "errno");
	for (int i = 0; i < 2; i++) {
		/* Two private pages, then shared ones. */
		m->run[0]->exit_reason = 0xdead;
		range = (struct pre_fault) { .gpa = view[i], .size = 4 * PAGE };
		EQUAL(ioctl(m->vcpu[0], PRE_FAULT, &range) ? errno : 0, i ? EPERM : 0, "errno");
		EQUAL(range.gpa, view[i] + (i ? 0 : 2 * PAGE), "where it stopped");
		range = (struct pre_fault) { .gpa = view[i] + 2 * PAGE, .size = 4 * PAGE };
		EQUAL(ioctl(m->vcpu[0], PRE_FAULT, &range) ? errno : 0, i ? 0 : EPERM, "errno");
		EQUAL(m->run[0]->exit_reason, 0xdead, "exit_reason");
	}
	range = (struct pre_fault) { .gpa = NOWHERE, .size = PAGE };
	EQUAL(ioctl(m->vcpu[0], PRE_FAULT, &range) ? errno : 0, ENOENT, "errno without a slot");
}

static void test_dirty_log(struct machine *m)
{
	char bitmap[PAGE];
	struct kvm_dirty_log log = { .dirty_bitmap = bitmap };

	for (log.slot = PRIVATE_SLOT; log.slot <= SHARED_SLOT; log.slot++)
		EQUAL(ioctl(m->vm, KVM_GET_DIRTY_LOG, &log) ? errno : 0, ENOENT, "errno");
}

static void test_delete_and_make_again(struct machine *m)
{
	for (int order = 0; order < 2; order++) {
		EQUAL(convert(m->fd, MAP_TO_PRIVATE, 0, PAGE), 0, "errno");
		EXPECT_WRITE(m, PRIVATE, 0x7000);
		EXPECT_WRITE(m, SHARED + PAGE, 0x7001);
		EQUAL(remove_slot(m, order ? SHARED_SLOT : PRIVATE_SLOT), 0, "errno");
		set_up(m, 0, guest_read, order ? SHARED + PAGE : PRIVATE, 0, 0);
		EQUAL(enter(m, 0), 0, "errno");
		EQUAL(m->run[0]->exit_reason, KVM_EXIT_MMIO, "exit_reason where no slot is");
		EQUAL(enter(m, 0), 0, "errno"); /* completes the instruction */
		if (order) /* the other view works alone */
			EXPECT_READ(m, PRIVATE, 0x7000);
		else
			EXPECT_READ(m, SHARED + PAGE, 0x7001);
		EQUAL(remove_slot(m, order ? PRIVATE_SLOT : SHARED_SLOT), 0, "errno");
		EQUAL(convert(m->fd, MAP_TO_PRIVATE, 2 * PAGE, PAGE), 0, "errno without slots");
		EQUAL(add_view(m, SHARED_SLOT, MEM_PRIVATE | MEM_SHARED_VIEW, SHARED, m->shared), 0,
		      "errno");
		EQUAL(add_view(m, PRIVATE_SLOT, MEM_PRIVATE, PRIVATE, m->hole), 0, "errno");
		EXPECT_READ(m, PRIVATE, 0x7000); /* the state is the fd's, not the slot's */
		EXPECT_READ(m, PRIVATE + 2 * PAGE, 0);
		EXPECT_READ(m, SHARED + PAGE, 0x7001);
		set_up(m, 0, guest_read, SHARED + 2 * PAGE, 0, 0);
		EXPECT_ERROR(m, 0, MAP_TO_SHARED, SHARED + 2 * PAGE);
		EQUAL(convert(m->fd, MAP_TO_SHARED, 0, SIZE), 0, "errno");
	}
}

static void test_fd_closed_early(struct machine *m)
{
	int others[64];

	EQUAL(convert(m->fd, MAP_TO_PRIVATE, 0, 2 * PAGE), 0, "errno");
	EXPECT_WRITE(m, PRIVATE, 0x8000);
	EXPECT_WRITE(m, SHARED + 2 * PAGE, 0x8002);
	shut(&m->fd);
	EXPECT_READ(m, SHARED + 2 * PAGE, 0x8002);
	EXPECT_READ(m, SHARED, 0); /* a file that was closed has no pages */
	for (int i = 0; i < 64; i++) { /* nor those of a file that is now where it was */
		others[i] = MUST(create_private_fd(m->vm, SIZE));
		EQUAL(convert(others[i], MAP_TO_PRIVATE, 0, SIZE), 0, "errno");
	}
	EXPECT_READ(m, SHARED + 3 * PAGE, 0);
	for (int i = 0; i < 64; i++)
		close(others[i]);
	set_up(m, 0, guest_read, PRIVATE, 0, 0);
	EQUAL(enter(m, 0), EFAULT, "errno of a private access"); /* nothing could convert it */
	EQUAL(m->run[0]->exit_reason, EXIT_MEMORY_FAULT, "exit_reason");
	EQUAL(remove_slot(m, PRIVATE_SLOT), 0, "errno");
	EQUAL(remove_slot(m, SHARED_SLOT), 0, "errno");
}

static void test_vm_closed_early(struct machine *m)
{
	EQUAL(convert(m->fd, MAP_TO_PRIVATE, 0, SIZE), 0, "errno");
	EXPECT_WRITE(m, PRIVATE, 1);
	shut(&m->vm);
	EXPECT_READ(m, PRIVATE, 1); /* the vCPU keeps the VM */
	shut(&m->vcpu[0]);
	shut(&m->vcpu[1]);
	EQUAL(convert(m->fd, MAP_TO_SHARED, 0, SIZE), 0, "errno after the VM was closed");
	EQUAL(convert(m->fd, MAP_TO_PRIVATE, 0, SIZE), 0, "errno after the VM was closed");
}

/* Every order of closing what is open, with mappings in both views; nothing may be left. */
static void test_close_in_any_order(struct machine *unused)
{
	long before = unevictable_kib(), after;

	(void)unused;
	for (int round = 0; round < 64; round++) {
		struct machine m;
		int *open[4] = { &m.vm, &m.fd, &m.vcpu[0], &m.vcpu[1] };

		start_machine(&m);
		EQUAL(convert(m.fd, MAP_TO_PRIVATE, 0, SIZE - PAGE), 0, "errno");
		EXPECT_WRITE(&m, PRIVATE, 1);
		EXPECT_WRITE(&m, SHARED + SIZE - PAGE, 1);
		for (int left = 4, choice = round; left; choice /= left, left--) {
			shut(open[choice % left]);
			open[choice % left] = open[left - 1];
		}
		stop_machine(&m);
	}
	for (int i = 0; i < 50; i++) { /* freeing lags behind closing */
		after = unevictable_kib();
		if (after <= before)
			break;
		usleep(100000);
	}
	CHECK(after <= before, "Unevictable grew from %ld to %ld KiB", before, after);
}

/* KVM's emulator goes where the guest's own access would go, and exits where that would. */
static void test_emulated_access(struct machine *m)
{
	set_up(m, 0, guest_outs, PRIVATE, 0, 0);
	EXPECT_ERROR(m, 0, MAP_TO_PRIVATE, PRIVATE);
	EQUAL(convert(m->fd, MAP_TO_PRIVATE, 0, PAGE), 0, "errno");
	EXPECT_WRITE(m, PRIVATE, 0x5a);
	set_up(m, 0, guest_outs, SHARED, 0, 0);
	EXPECT_ERROR(m, 0, MAP_TO_SHARED, SHARED);
	set_up(m, 0, guest_outs, PRIVATE, 0, 0);
	EQUAL(enter(m, 0), 0, "errno");
	EQUAL(m->run[0]->exit_reason, KVM_EXIT_IO, "exit_reason of outs");
	EQUAL(*((uint8_t *)m->run[0] + m->run[0]->io.data_offset), 0x5a, "what outs reads");
}

#define FLUSHES(expected, call) do { \
	before = counter(m->vm, "remote_tlb_flush_requests"); \
	EQUAL(call, 0, #call); \
	before = counter(m->vm, "remote_tlb_flush_requests") - before; \
	printf("# %lld flush(es): %s\n", before, #call); \
	EQUAL(before, expected, "TLB flushes of " #call); \
} while (0)

static void test_flush_counts(struct machine *m)
{
	long long before;

	for (uint64_t i = 0; i < 16; i++)
		EXPECT_WRITE(m, SHARED + i * PAGE, 1);
	FLUSHES(1, convert(m->fd, MAP_TO_PRIVATE, 0, 16 * PAGE));
	FLUSHES(0, convert(m->fd, MAP_TO_PRIVATE, 0, 16 * PAGE)); /* private already */
	FLUSHES(0, madvise(m->shared, 16 * PAGE, MADV_DONTNEED)); /* the stale half */
	for (uint64_t i = 0; i < 16; i++)
		EXPECT_WRITE(m, PRIVATE + i * PAGE, 1);
	FLUSHES(0, convert(m->fd, MAP_TO_PRIVATE, 0, 16 * PAGE)); /* private and mapped */
	FLUSHES(0, madvise(m->shared, 16 * PAGE, MADV_DONTNEED));
	FLUSHES(1, convert(m->fd, MAP_TO_SHARED, 0, 16 * PAGE));
	FLUSHES(0, convert(m->fd, MAP_TO_SHARED, 0, 16 * PAGE)); /* shared already */
	FLUSHES(0, convert(m->fd, MAP_TO_PRIVATE, 0, 16 * PAGE)); /* nothing was mapped */
	FLUSHES(0, convert(m->fd, MAP_TO_SHARED, 0, 16 * PAGE));
	for (uint64_t i = 0; i < 16; i++)
		EXPECT_WRITE(m, SHARED + i * PAGE, 1);
	FLUSHES(0, convert(m->fd, MAP_TO_SHARED, 0, 16 * PAGE)); /* shared and mapped */
	FLUSHES(1, madvise(m->shared, 16 * PAGE, MADV_DONTNEED)); /* discard, then allocate: */
	FLUSHES(0, convert(m->fd, MAP_TO_PRIVATE, 0, 16 * PAGE)); /* one flush as well */
	for (uint64_t i = 0; i < 16; i++)
		EXPECT_WRITE(m, PRIVATE + i * PAGE, 1);
	for (uint64_t i = 0; i < 2; i++)
		FLUSHES(1, convert(m->fd, MAP_TO_SHARED, (3 + i) * PAGE, PAGE)); /* one per call */

	/* The neighbours are still mapped. */
	before = counter(m->vcpu[0], "pf_taken");
	for (uint64_t i = 0; i < 16; i++)
		if (i != 3 && i != 4)
			EXPECT_READ(m, PRIVATE + i * PAGE, 1);
	EQUAL(counter(m->vcpu[0], "pf_taken"), before, "faults taken");
}

/* The RFC has one address for both halves: discarding one must not unmap the other. */
static void test_same_address(struct machine *m)
{
	long long before;

	EQUAL(remove_slot(m, PRIVATE_SLOT), 0, "errno");
	EQUAL(add_view(m, PRIVATE_SLOT, MEM_PRIVATE, PRIVATE, m->shared), 0, "errno");
	memset(m->shared, 0x61, SIZE);
	EQUAL(convert(m->fd, MAP_TO_PRIVATE, 0, SIZE), 0, "errno");
	EXPECT_WRITE(m, PRIVATE, 0x62);
	FLUSHES(0, madvise(m->shared, SIZE, MADV_DONTNEED));
	EXPECT_READ(m, PRIVATE, 0x62);
}

/* A shared half of huge pages is mapped by 4 KiB: else one would cover private pages. */
static void test_huge_pages(struct machine *m)
{
	const uint64_t huge = 2ul << 20, gpa = 4ul << 20;
	char *memory = map(3 * huge, PROT_READ | PROT_WRITE);
	char *address = (char *)(((uintptr_t)memory + huge - 1) & -huge);
	int fd = MUST(create_private_fd(m->vm, 2 * huge));
	struct private_region view = {
		.slot = SPARE_SLOT, .flags = MEM_PRIVATE | MEM_SHARED_VIEW, .gpa = gpa,
		.size = 2 * huge, .address = (uintptr_t)address, .fd = (uint32_t)fd,
	};

	if (madvise(address, 2 * huge, MADV_HUGEPAGE))
		printf("# no huge pages here\n");
	memset(address, 0x71, 2 * huge);
	EQUAL(set_region(m->vm, &view), 0, "errno");
	EXPECT_READ(m, gpa, 0x71717171);
	EQUAL(convert(fd, MAP_TO_PRIVATE, 3 * PAGE, PAGE), 0, "errno");
	EXPECT_READ(m, gpa + 2 * PAGE, 0x71717171);
	EXPECT_READ(m, gpa + huge + 4 * PAGE, 0x71717171);
	set_up(m, 0, guest_read, gpa + 3 * PAGE, 0, 0);
	EXPECT_ERROR(m, 0, MAP_TO_SHARED, gpa + 3 * PAGE);
	EQUAL(convert(fd, MAP_TO_PRIVATE, huge + 5 * PAGE, PAGE), 0, "errno");
	set_up(m, 0, guest_read, gpa + huge + 5 * PAGE, 0, 0);
	EXPECT_ERROR(m, 0, MAP_TO_SHARED, gpa + huge + 5 * PAGE);
	EQUAL(remove_slot(m, SPARE_SLOT), 0, "errno");
	close(fd);
	munmap(memory, 3 * huge);
}

/* A conversion is two steps: one half is discarded, the page changes state. */
static void test_between_the_two_steps(struct machine *m)
{
	EXPECT_WRITE(m, SHARED, 0x21);
	MUST(madvise(m->shared, PAGE, MADV_DONTNEED));
	EXPECT_READ(m, SHARED, 0); /* shared still, the contents are gone already */
	set_up(m, 0, guest_read, PRIVATE, 0, 0);
	EXPECT_ERROR(m, 0, MAP_TO_PRIVATE, PRIVATE);
	EQUAL(convert(m->fd, MAP_TO_PRIVATE, 0, PAGE), 0, "errno");
	EXPECT_WRITE(m, PRIVATE, 0x22);

	/* The other way round no guest sees the page without its contents. */
	EXPECT_WRITE(m, SHARED + PAGE, 0x23);
	EQUAL(convert(m->fd, MAP_TO_PRIVATE, PAGE, PAGE), 0, "errno");
	set_up(m, 0, guest_read, SHARED + PAGE, 0, 0);
	EXPECT_ERROR(m, 0, MAP_TO_SHARED, SHARED + PAGE);
	EXPECT_WRITE(m, PRIVATE + PAGE, 0x24);
	EQUAL(*(uint32_t *)(m->shared + PAGE), 0x23, "the shared half");
	MUST(madvise(m->shared + PAGE, PAGE, MADV_DONTNEED));
	EXPECT_READ(m, PRIVATE + PAGE, 0x24);

	/* What is not discarded comes back. */
	EXPECT_WRITE(m, SHARED + 2 * PAGE, 0x25);
	EQUAL(convert(m->fd, MAP_TO_PRIVATE, 2 * PAGE, PAGE), 0, "errno");
	EXPECT_READ(m, PRIVATE + 2 * PAGE, 0);
	EQUAL(convert(m->fd, MAP_TO_SHARED, 0, 3 * PAGE), 0, "errno");
	EXPECT_READ(m, SHARED, 0);
	EXPECT_READ(m, SHARED + PAGE, 0);
	EXPECT_READ(m, SHARED + 2 * PAGE, 0x25);
}

struct thread {
	struct machine *m;
	int vcpu;
	int result;           /* of entering() */
	uint32_t tag;         /* what racing() writes */
	uint64_t view;        /* and where */
	long exits, wrong;    /* of racing() */
	volatile int *stop;
	volatile int done;
};

/* Writes and reads four pages, converting as the exits ask, until told to stop. */
static void *racing(void *argument)
{
	struct thread *t = argument;

	while (!*t->stop) {
		set_up(t->m, t->vcpu, guest_race, t->view, t->tag, 500);
		t->exits += serve(t->m, t->vcpu);
		t->wrong += (long)registers(t->m, t->vcpu).rsi;
	}
	return NULL;
}

static void *entering(void *argument)
{
	struct thread *t = argument;

	t->result = enter(t->m, t->vcpu);
	t->done = 1;
	return NULL;
}

/* A conversion reaches vCPUs that never leave the guest by themselves. */
static void test_conversion_reaches_running_vcpus(struct machine *m)
{
	static const uint64_t view[VCPUS][2] = { { SHARED, PRIVATE }, { SHARED2, PRIVATE } };
	pthread_t id[VCPUS];

	EQUAL(add_view(m, SHARED2_SLOT, MEM_PRIVATE | MEM_SHARED_VIEW, SHARED2, m->shared), 0,
	      "errno");
	for (int private = 0; private < 2; private++) {
		struct thread t[VCPUS] = { { .m = m }, { .m = m, .vcpu = 1 } };
		uint32_t old = private ? 0 : 0x51515151;

		memset(m->shared, 0x51, PAGE);
		EQUAL(convert(m->fd, private ? MAP_TO_PRIVATE : MAP_TO_SHARED, 0, PAGE), 0, "errno");
		for (int i = 0; i < VCPUS; i++) {
			set_up(m, i, guest_spin, view[i][private], 0, old);
			MUST(pthread_create(&id[i], NULL, entering, &t[i]) ? -1 : 0);
		}
		usleep(200000); /* they spin by now; if not, the test is only weaker */
		CHECK(!t[0].done && !t[1].done, "a vCPU left the guest too early");
		EQUAL(convert(m->fd, private ? MAP_TO_SHARED : MAP_TO_PRIVATE, 0, PAGE), 0, "errno");
		for (int i = 0; i < VCPUS; i++) {
			pthread_join(id[i], NULL);
			EQUAL(t[i].result, EPERM, "errno of KVM_RUN");
			EQUAL(error_of(m, i)->type, private ? MAP_TO_PRIVATE : MAP_TO_SHARED, "type");
			EQUAL(error_of(m, i)->gpa, view[i][private], "gpa");
		}
	}
}

struct watcher {
	struct machine *m;
	uint64_t view;
	uint32_t seen;
	volatile int stop;
};

/* Reads one page for ever, and enters again after every exit without converting. */
static void *watching(void *argument)
{
	struct watcher *w = argument;

	set_up(w->m, 0, guest_spin, w->view, 0, 0);
	while (!w->stop) {
		int error = enter(w->m, 0);

		if (!error) { /* it halted: the page was not zero */
			w->seen = (uint32_t)registers(w->m, 0).rax;
			return NULL;
		}
		CHECK(error == EPERM || error == EINTR, "errno %d", error);
	}
	return NULL;
}

static void wait_a_little(unsigned int *state)
{
	for (volatile int wait = rand_r(state) % 3000; wait; wait--)
		;
}

/*
 * A vCPU that is just about to map the page must not keep what it maps. In each state
 * the half that is out of reach is not zero, so that a stale mapping shows.
 */
static void test_conversion_reaches_faulting_vcpus(struct machine *m)
{
	unsigned int state = seed;

	for (int private = 0; private < 2; private++) {
		struct watcher w = { .m = m, .view = private ? PRIVATE : SHARED };
		pthread_t id;

		EQUAL(convert(m->fd, MAP_TO_SHARED, 0, PAGE), 0, "errno");
		*(volatile uint32_t *)m->shared = 0;
		MUST(pthread_create(&id, NULL, watching, &w) ? -1 : 0);
		for (long round = 0; round < 5 * rounds && !w.seen; round++) {
			still_alive();
			if (private) {
				char *page;

				EQUAL(convert(m->fd, MAP_TO_PRIVATE, 0, PAGE), 0, "errno");
				wait_a_little(&state);
				EQUAL(convert(m->fd, MAP_TO_SHARED, 0, PAGE), 0, "errno");
				page = map(PAGE, PROT_READ | PROT_WRITE);
				memset(page, 0x99, PAGE); /* likely the page that was freed */
				wait_a_little(&state);
				munmap(page, PAGE);
			} else {
				EQUAL(convert(m->fd, MAP_TO_PRIVATE, 0, PAGE), 0, "errno");
				*(volatile uint32_t *)m->shared = 0x99;
				wait_a_little(&state);
				*(volatile uint32_t *)m->shared = 0;
				EQUAL(convert(m->fd, MAP_TO_SHARED, 0, PAGE), 0, "errno");
				wait_a_little(&state);
			}
		}
		w.stop = 1;
		EQUAL(convert(m->fd, private ? MAP_TO_SHARED : MAP_TO_PRIVATE, 0, PAGE), 0, "errno");
		pthread_join(id, NULL);
		EQUAL(w.seen, 0, private ? "in a private page that was freed" :
					   "in the shared half of a private page");
	}
	printf("# seed %u\n", seed);
}

struct allocation {
	int fd, error;
	uint64_t size;
	volatile int done;
};

static void *allocating(void *argument)
{
	struct allocation *a = argument;

	a->error = convert(a->fd, MAP_TO_PRIVATE, 0, a->size);
	a->done = 1;
	return NULL;
}

/* Pages become private one by one, but none can be used as shared once it began. */
static void test_within_one_conversion(struct machine *m)
{
	const uint64_t size = 256ul << 20, gpa[2] = { 1ul << 30, 2ul << 30 };
	char *memory = map(size, PROT_READ | PROT_WRITE);
	struct allocation a = { .fd = MUST(create_private_fd(m->vm, size)), .size = size };
	struct private_region view = {
		.slot = SPARE_SLOT, .flags = MEM_PRIVATE, .gpa = gpa[0], .size = size,
		.address = (uintptr_t)memory, .fd = (uint32_t)a.fd,
	};
	pthread_t id;
	int last;

	EQUAL(set_region(m->vm, &view), 0, "errno");
	view.slot++;
	view.flags |= MEM_SHARED_VIEW;
	view.gpa = gpa[1];
	EQUAL(set_region(m->vm, &view), 0, "errno");
	EXPECT_READ(m, gpa[1] + size - PAGE, 0);
	set_up(m, 0, guest_read, gpa[0], 0x5555, 0);
	MUST(pthread_create(&id, NULL, allocating, &a) ? -1 : 0);
	while (enter(m, 0)) /* until the first page is private */
		CHECK(error_of(m, 0)->type == MAP_TO_PRIVATE, "type %u", error_of(m, 0)->type);
	set_up(m, 0, guest_read, gpa[0] + size - PAGE, 0x5555, 0);
	last = enter(m, 0);
	printf("# the first page was private, %s the last\n", last ? "before" : "and");
	set_up(m, 0, guest_read, gpa[1] + size - PAGE, 0x5555, 0);
	EXPECT_ERROR(m, 0, MAP_TO_SHARED, gpa[1] + size - PAGE);
	printf("# the shared access exited %s\n", a.done ? "afterwards" : "meanwhile or at once");
	pthread_join(id, NULL);
	EQUAL(a.error, 0, "errno");
	EQUAL(remove_slot(m, SPARE_SLOT), 0, "errno");
	EQUAL(remove_slot(m, SPARE_SLOT + 1), 0, "errno");
	close(a.fd);
	munmap(memory, size);
}

/*
 * One vCPU wants four pages private, the other wants them shared, the host converts too.
 * Neither may ever see what the other wrote.
 */
static void test_race(struct machine *m)
{
	volatile int stop = 0;
	struct thread t[VCPUS] = {
		{ .m = m, .vcpu = 0, .view = PRIVATE, .tag = 0xaaaaaaaa, .stop = &stop },
		{ .m = m, .vcpu = 1, .view = SHARED, .tag = 0xbbbbbbbb, .stop = &stop },
	};
	unsigned int state = seed;
	pthread_t id[VCPUS];

	for (int i = 0; i < VCPUS; i++)
		MUST(pthread_create(&id[i], NULL, racing, &t[i]) ? -1 : 0);
	for (long round = 0; round < rounds; round++) {
		uint64_t offset = (uint64_t)(rand_r(&state) % 4) * PAGE;

		still_alive();
		EQUAL(convert(m->fd, 1 + rand_r(&state) % 2, offset, PAGE), 0, "errno");
		wait_a_little(&state);
	}
	stop = 1;
	for (int i = 0; i < VCPUS; i++) {
		pthread_join(id[i], NULL);
		EQUAL(t[i].wrong, 0, "number of wrong values");
	}
	printf("# seed %u; %ld conversions by the host, %ld to private, %ld to shared by vCPUs\n",
	       seed, rounds, t[0].exits, t[1].exits);
}

/* Slots come and go while pages are converted and used, and the fd goes in the end. */
static void test_race_with_slots(struct machine *m)
{
	volatile int stop = 0;
	struct thread t = { .m = m, .view = PRIVATE, .tag = 0xaaaaaaaa, .stop = &stop };
	pthread_t id;

	MUST(pthread_create(&id, NULL, racing, &t) ? -1 : 0);
	for (long round = 0; round < rounds / 10; round++) {
		EQUAL(add_view(m, SHARED2_SLOT, MEM_PRIVATE | MEM_SHARED_VIEW, SHARED2, m->shared),
		      0, "errno");
		EQUAL(convert(m->fd, MAP_TO_SHARED, 0, 4 * PAGE), 0, "errno");
		EQUAL(remove_slot(m, SHARED2_SLOT), 0, "errno");
	}
	stop = 1;
	pthread_join(id, NULL);
	EQUAL(t.wrong, 0, "number of wrong values");
	printf("# %ld exits, %ld slots made and deleted\n", t.exits, rounds / 10);
}

/* The fd is closed, which unbinds its slots, while another thread deletes them. */
static void *deleting(void *argument)
{
	struct machine *m = argument;

	EQUAL(remove_slot(m, SHARED_SLOT), 0, "errno");
	EQUAL(remove_slot(m, PRIVATE_SLOT), 0, "errno");
	return NULL;
}

static void test_close_while_deleting(struct machine *unused)
{
	(void)unused;
	for (long round = 0; round < rounds / 20; round++) {
		struct machine m;
		pthread_t id;

		start_machine(&m);
		EQUAL(convert(m.fd, MAP_TO_PRIVATE, 0, SIZE / 2), 0, "errno");
		MUST(pthread_create(&id, NULL, deleting, &m) ? -1 : 0);
		for (volatile long wait = (round % 16) * 500; wait; wait--)
			;
		shut(&m.fd);
		pthread_join(id, NULL);
		stop_machine(&m);
	}
}

/* ---- */

static const struct test {
	const char *name;
	void (*run)(struct machine *m);
} tests[] = {
	{ "private access to a shared page", test_private_access },
	{ "shared access to a private page", test_shared_access },
	{ "allocated is private, untouched or not", test_untouched_page_is_private },
	{ "a page is zero after a conversion", test_zero_after_conversion },
	{ "neighbours keep state and contents", test_neighbours },
	{ "conversions are idempotent", test_idempotent },
	{ "an access across two pages", test_straddling_access },
	{ "an instruction fetch", test_fetch },
	{ "two shared views", test_two_shared_views },
	{ "a slot in the middle of the fd", test_offset },
	{ "the host cannot reach private pages", test_host_cannot_reach },
	{ "misuse", test_misuse },
	{ "callers of the old ioctl", test_old_callers },
	{ "beside the merged interface", test_beside_guest_memfd },
	{ "KVM_PRE_FAULT_MEMORY", test_pre_fault },
	{ "KVM_GET_DIRTY_LOG", test_dirty_log },
	{ "slots deleted and made again", test_delete_and_make_again },
	{ "private fd closed early", test_fd_closed_early },
	{ "VM closed early", test_vm_closed_early },
	{ "closing in any order", test_close_in_any_order },
	{ "an access by KVM's emulator", test_emulated_access },
	{ "TLB flushes of a conversion", test_flush_counts },
	{ "one address for both halves", test_same_address },
	{ "a shared half of huge pages", test_huge_pages },
	{ "between the two steps of a conversion", test_between_the_two_steps },
	{ "within one conversion", test_within_one_conversion },
	{ "a conversion reaches running vCPUs", test_conversion_reaches_running_vcpus },
	{ "a conversion reaches faulting vCPUs", test_conversion_reaches_faulting_vcpus },
	{ "two vCPUs and the host race", test_race },
	{ "slots come and go meanwhile", test_race_with_slots },
	{ "the fd is closed while slots are deleted", test_close_while_deleting },
};
#define TESTS (sizeof(tests) / sizeof(tests[0]))

/* Ask what the kernel does: the flags have had other meanings. */
static const char *missing(void)
{
	struct private_region region = { .flags = MEM_PRIVATE, .size = PAGE };
	const char *reason = NULL;
	int vm, fd = -1;

	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		return "no /dev/kvm";
	vm = ioctl(kvm, KVM_CREATE_VM, SW_PROTECTED_VM);
	if (vm < 0)
		return "no VM type KVM_X86_SW_PROTECTED_VM";
	fd = create_private_fd(vm, PAGE);
	region.address = (uintptr_t)map(PAGE, PROT_NONE);
	region.fd = (uint32_t)fd;
	if (fd < 0)
		reason = "no KVM_CREATE_GUEST_MEMFD";
	else if (set_region(vm, &region))
		reason = "KVM_SET_USER_MEMORY_REGION does not take KVM_MEM_PRIVATE";
	munmap((void *)(uintptr_t)region.address, PAGE);
	close(fd);
	close(vm);
	return reason;
}

int main(int argc, char **argv)
{
	const char *reason;
	int failed = 0;

	if (argc > 1)
		rounds = atol(argv[1]);
	seed = argc > 2 ? (unsigned int)atol(argv[2]) : (unsigned int)time(NULL);
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("KTAP version 1\n");
	reason = missing();
	if (reason) {
		printf("1..0 # SKIP %s\n", reason);
		return 4;
	}
	printf("1..%zu\n", TESTS);
	signal(SIGALRM, hung);
	for (size_t i = 0; i < TESTS; i++) {
		struct machine m;

		failures = 0;
		still_alive();
		start_machine(&m);
		tests[i].run(&m);
		stop_machine(&m);
		printf("%sok %zu - %s\n", failures ? "not " : "", i + 1, tests[i].name);
		failed += failures != 0;
	}
	return failed != 0;
}
