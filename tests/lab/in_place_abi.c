// SPDX-License-Identifier: GPL-2.0
/*
 * Does this kernel have in-place conversion of guest_memfd, KVM_SET_MEMORY_ATTRIBUTES2, as
 * pyvmm/lab/patches/README.md describes it?  A standalone oracle: no part of pyvmm is used,
 * only ioctls, fallocate, mmap and a real-mode guest of a few instructions.
 *
 *     gcc -O1 -static -pthread -Wall -Wextra -Werror -o in_place_abi in_place_abi.c
 *     ./in_place_abi [rounds of the races, 2000] [seed, the time]
 *
 * Prints KTAP. Exit status: 0 all passed, 1 something failed, 4 not this ABI (skipped).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
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
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/falloc.h>
#include <linux/kvm.h>

/* ---- the ABI under test, and what is newer than this machine's <linux/kvm.h> ---- */

#define PRIVATE              8ull /* KVM_MEMORY_ATTRIBUTE_PRIVATE */
#define SHARED               0ull
#define MEM_GUEST_MEMFD      (1u << 2)
#define FLAG_MMAP            1ull
#define FLAG_INIT_SHARED     2ull
#define CAP_MEMORY_ATTRIBUTES 233
#define CAP_GUEST_MEMFD_FLAGS 244
#define CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES 252
#define EXIT_MEMORY_FAULT    39
#define SW_PROTECTED_VM      1

struct region2 { /* struct kvm_userspace_memory_region2 */
	uint32_t slot, flags;
	uint64_t gpa, size, address, offset;
	uint32_t fd, pad1;
	uint64_t pad2[14];
};
struct create_guest_memfd { uint64_t size, flags, reserved[6]; };
struct memory_attributes { uint64_t gpa, size, attributes, flags; };
struct memory_attributes2 {
	uint64_t offset, size, attributes, flags, error_offset, reserved[11];
};
struct pre_fault { uint64_t gpa, size, flags, padding[5]; };
struct memory_fault { uint64_t flags, gpa, size; }; /* of struct kvm_run, at offset 32 */

#define SET_REGION2       _IOW(KVMIO, 0x49, struct region2)
#define SET_ATTRIBUTES    _IOW(KVMIO, 0xd2, struct memory_attributes)
#define SET_ATTRIBUTES2   _IOWR(KVMIO, 0xd2, struct memory_attributes2)
#define CREATE_GUEST_FD   _IOWR(KVMIO, 0xd4, struct create_guest_memfd)
#define PRE_FAULT         _IOWR(KVMIO, 0xd5, struct pre_fault)

_Static_assert(SET_ATTRIBUTES2 == 0xC080AED2, "KVM_SET_MEMORY_ATTRIBUTES2");

/* ---- the guest: four routines, each run from its label to HLT ---- */

extern const char guest_start[], guest_end[], guest_read[], guest_write[], guest_spin[],
	guest_race[];
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
    "guest_halt:  hlt\n"             /* entering again halts again */
    "             jmp guest_halt\n"
    "guest_end:\n"
    ".code64\n"
    ".popsection\n");

#define PAGE          4096ul
#define CODE          0x1000ul
#define GPA           0x40000ul
#define PAGES         64ul
#define SIZE          (PAGES * PAGE)
#define ELSEWHERE     0x100000ul
#define MARK          0x5a5a5a5a5a5a5a5aull
enum { PLAIN_SLOT, SLOT, SPARE_SLOT };
#define VCPUS         2

struct machine {
	int vm, fd, vcpu[VCPUS];
	struct kvm_run *run[VCPUS];
	char *plain;  /* backs GPA 0 */
	char *memory; /* the file's mapping */
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

static __thread sigjmp_buf on_sigbus;

static void caught(int signal)
{
	(void)signal;
	siglongjmp(on_sigbus, 1);
}

/* Whether a byte there can be read, and written with what it was: 0 or SIGBUS. */
static int touch(volatile char *address)
{
	if (sigsetjmp(on_sigbus, 1))
		return SIGBUS;
	*address = *address;
	return 0;
}

static int peek(const volatile char *address)
{
	if (sigsetjmp(on_sigbus, 1))
		return -SIGBUS;
	return (unsigned char)*address;
}

static char *map(int fd, size_t size)
{
	int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
	char *address = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);

	MUST(address == MAP_FAILED ? -1 : 0);
	return address;
}

/* 0 or the errno. */
static int set_slot(struct machine *m, uint32_t slot, int fd, uint64_t gpa, uint64_t offset,
		    uint64_t size, char *address)
{
	struct region2 region = {
		.slot = slot, .flags = fd < 0 ? 0 : MEM_GUEST_MEMFD, .gpa = gpa, .size = size,
		.address = (uintptr_t)address, .offset = offset, .fd = (uint32_t)fd,
	};

	return ioctl(m->vm, SET_REGION2, &region) ? errno : 0;
}

static int remove_slot(struct machine *m, uint32_t slot)
{
	return set_slot(m, slot, -1, 0, 0, 0, NULL);
}

static int create_fd(int vm, uint64_t size, uint64_t flags)
{
	struct create_guest_memfd create = { .size = size, .flags = flags };

	return ioctl(vm, CREATE_GUEST_FD, &create);
}

static struct memory_attributes2 request(uint64_t first, uint64_t pages, uint64_t attributes)
{
	return (struct memory_attributes2){
		.offset = first * PAGE, .size = pages * PAGE, .attributes = attributes,
		.error_offset = MARK,
	};
}

static int set_attributes(int fd, struct memory_attributes2 *attributes)
{
	return ioctl(fd, SET_ATTRIBUTES2, attributes) ? errno : 0;
}

static int convert(int fd, uint64_t first, uint64_t pages, uint64_t attributes)
{
	struct memory_attributes2 wanted = request(first, pages, attributes);

	return set_attributes(fd, &wanted);
}

/* Momentary references are nobody's use: ask again for a while. */
static int convert_at_last(int fd, uint64_t first, uint64_t pages, uint64_t attributes)
{
	int error;

	for (int i = 0; i < 1000; i++) {
		error = convert(fd, first, pages, attributes);
		if (error != EAGAIN)
			break;
		sched_yield();
	}
	return error;
}

static void start_machine(struct machine *m, uint64_t flags)
{
	long run_size = MUST(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));

	m->vm = MUST(ioctl(kvm, KVM_CREATE_VM, SW_PROTECTED_VM));
	m->fd = MUST(create_fd(m->vm, SIZE, flags));
	m->plain = map(-1, GPA);
	m->memory = map(m->fd, SIZE);
	memcpy(m->plain + CODE, guest_start, (size_t)(guest_end - guest_start));
	EQUAL(set_slot(m, PLAIN_SLOT, -1, 0, 0, GPA, m->plain), 0, "errno of the plain slot");
	EQUAL(set_slot(m, SLOT, m->fd, GPA, 0, SIZE, m->memory), 0, "errno of the slot");
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
	munmap(m->memory, SIZE);
	shut(&m->fd);
	shut(&m->vm);
	munmap(m->plain, GPA);
}

static void restart_machine(struct machine *m, uint64_t flags)
{
	stop_machine(m);
	start_machine(m, flags);
}

static void set_up(struct machine *m, int vcpu, const char *routine, uint64_t gpa, uint32_t eax,
		   uint32_t ecx)
{
	struct kvm_sregs sregs;
	struct kvm_regs regs = {
		.rip = CODE + (uint64_t)(routine - guest_start), .rflags = 2,
		.rax = eax, .rbx = gpa & 0xffff, .rcx = ecx,
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
	error = ioctl(m->vcpu[vcpu], KVM_RUN, 0) ? errno : 0;
	move_to_guest_cpu(0);
	return error;
}

static const struct memory_fault *fault_of(struct machine *m, int vcpu)
{
	return (const void *)((const char *)m->run[vcpu] + 32);
}

/* Until HLT, entering again after a KVM_EXIT_MEMORY_FAULT: how many there were, or -1. */
static long run_to_the_end(struct machine *m, int vcpu)
{
	for (long faults = 0;; faults++) {
		int error = enter(m, vcpu);

		if (!error && m->run[vcpu]->exit_reason == KVM_EXIT_HLT)
			return faults;
		if (error != EFAULT || m->run[vcpu]->exit_reason != EXIT_MEMORY_FAULT)
			return -1;
	}
}

#define EXPECT_END(m, vcpu) do { \
	EQUAL(enter(m, vcpu), 0, "errno of KVM_RUN"); \
	EQUAL((m)->run[vcpu]->exit_reason, KVM_EXIT_HLT, "exit_reason"); \
} while (0)

static uint32_t guest_reads(struct machine *m, uint64_t page)
{
	set_up(m, 0, guest_read, GPA + page * PAGE, 0xbad, 0);
	EXPECT_END(m, 0);
	return (uint32_t)registers(m, 0).rax;
}

static void guest_writes(struct machine *m, uint64_t page, uint32_t value)
{
	set_up(m, 0, guest_write, GPA + page * PAGE, value, 0);
	EXPECT_END(m, 0);
}

static uint32_t host_reads(struct machine *m, uint64_t page)
{
	return *(volatile uint32_t *)(m->memory + page * PAGE);
}

/* ---- tests; the machine they get has a file that is shared at first ---- */

static void test_capabilities(struct machine *m)
{
	int plain = MUST(ioctl(kvm, KVM_CREATE_VM, 0));

	EQUAL(ioctl(kvm, KVM_CHECK_EXTENSION, CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES), 8, "252 of KVM");
	EQUAL(ioctl(m->vm, KVM_CHECK_EXTENSION, CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES), 8, "252 of a VM");
	EQUAL(ioctl(plain, KVM_CHECK_EXTENSION, CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES), 0,
	      "252 of a VM without private memory");
	EQUAL(ioctl(kvm, KVM_CHECK_EXTENSION, CAP_MEMORY_ATTRIBUTES), 0, "233 of KVM");
	EQUAL(ioctl(m->vm, KVM_CHECK_EXTENSION, CAP_MEMORY_ATTRIBUTES), 0, "233 of a VM");
	EQUAL(ioctl(m->vm, KVM_CHECK_EXTENSION, CAP_GUEST_MEMFD_FLAGS), 3, "244 of a VM");
	EQUAL(ioctl(plain, KVM_CHECK_EXTENSION, CAP_GUEST_MEMFD_FLAGS), 3, "244 of a plain VM");
	close(plain);
}

static void test_misuse(struct machine *m)
{
	struct memory_attributes old = { .gpa = GPA, .size = PAGE, .attributes = PRIVATE };
	struct memory_attributes2 wanted = request(0, 1, PRIVATE);
	int plain = MUST(ioctl(kvm, KVM_CREATE_VM, 0));
	int file = MUST(create_fd(plain, SIZE, FLAG_MMAP | FLAG_INIT_SHARED));

#define REFUSED(change, error) do { \
	struct memory_attributes2 bad = wanted; \
	bad.change; \
	EQUAL(set_attributes(m->fd, &bad), error, "errno with " #change); \
	EQUAL(bad.error_offset, MARK, "error_offset"); \
} while (0)
	REFUSED(flags = 1, EINVAL);
	for (int i = 0; i < 11; i++)
		REFUSED(reserved[i] = 1, EINVAL);
	REFUSED(attributes = 1, EINVAL);
	REFUSED(attributes = 9, EINVAL);
	REFUSED(size = 0, EINVAL);
	REFUSED(size = PAGE + 1, EINVAL);
	REFUSED(size = -PAGE, EINVAL);
	REFUSED(size = SIZE + PAGE, EINVAL);
	REFUSED(offset = 1, EINVAL);
	REFUSED(offset = SIZE, EINVAL);
	REFUSED(offset = -PAGE, EINVAL);
	EQUAL(ioctl(m->fd, SET_ATTRIBUTES2, NULL) ? errno : 0, EFAULT, "errno without a structure");
	EQUAL(ioctl(m->fd, SET_ATTRIBUTES, &old) ? errno : 0, ENOTTY, "errno of the old ioctl");
	EQUAL(ioctl(m->vm, SET_ATTRIBUTES, &old) ? errno : 0, EINVAL, "errno on the VM");
	EQUAL(set_attributes(m->vm, &wanted), ENOTTY, "errno of the new one on the VM");
	EQUAL(convert(file, 0, 1, PRIVATE), EINVAL, "errno for a plain VM's file");
	EQUAL(convert(file, 0, 1, SHARED), EINVAL, "errno for a plain VM's file");
	EQUAL(touch(m->memory), 0, "a touch after all of that");
	EQUAL(set_attributes(m->fd, &wanted), 0, "errno");
	EQUAL(wanted.error_offset, MARK, "error_offset after success");
	close(file);
	close(plain);
}

static void test_contents_stay(struct machine *m)
{
	guest_writes(m, 3, 0x11111111);
	EQUAL(host_reads(m, 3), 0x11111111, "what the host reads");
	*(uint32_t *)(m->memory + 4 * PAGE) = 0x22222222;
	EQUAL(convert_at_last(m->fd, 2, 3, PRIVATE), 0, "errno");
	for (uint64_t page = 0; page < 8; page++)
		EQUAL(touch(m->memory + page * PAGE), page >= 2 && page < 5 ? SIGBUS : 0, "a touch");
	EQUAL(guest_reads(m, 2), 0, "a page that nobody had touched");
	EQUAL(guest_reads(m, 3), 0x11111111, "a page that the guest wrote");
	EQUAL(guest_reads(m, 4), 0x22222222, "a page that the host wrote");
	guest_writes(m, 4, 0x33333333);
	EQUAL(convert(m->fd, 0, PAGES, SHARED), 0, "errno");
	EQUAL(host_reads(m, 3), 0x11111111, "what the host reads");
	EQUAL(host_reads(m, 4), 0x33333333, "what the host reads");
}

static void test_initial_state(struct machine *m)
{
	restart_machine(m, FLAG_MMAP);
	EQUAL(touch(m->memory), SIGBUS, "a touch of a private file");
	EQUAL(guest_reads(m, 0), 0, "what the guest reads");
	guest_writes(m, 0, 0x44444444);
	EQUAL(convert(m->fd, 0, 1, SHARED), 0, "errno");
	EQUAL(host_reads(m, 0), 0x44444444, "what the host reads");
	EQUAL(touch(m->memory + PAGE), SIGBUS, "a touch of its neighbour");
	for (uint64_t flags = 0; flags < 4; flags++) {
		int fd = create_fd(m->vm, PAGE, flags);

		EQUAL(fd < 0, 0, "a refusal");
		shut(&fd);
	}
	EQUAL(create_fd(m->vm, PAGE, 4), -1, "a file with an unknown flag");
}

static void test_syscalls_on_private_pages(struct machine *m)
{
	struct iovec here = { m->memory, 8 }, other = { &(char [8]){ 0 }, 8 };
	int pipes[2];

	EQUAL(convert(m->fd, 0, 1, PRIVATE), 0, "errno");
	MUST(pipe(pipes));
	EQUAL(write(pipes[1], m->memory, 8) < 0 ? errno : 0, EFAULT, "errno of write()");
	MUST(write(pipes[1], "12345678", 8));
	EQUAL(read(pipes[0], m->memory, 8) < 0 ? errno : 0, EFAULT, "errno of read()");
	EQUAL(vmsplice(pipes[1], &here, 1, 0) < 0 ? errno : 0, EFAULT, "errno of vmsplice()");
	EQUAL(process_vm_readv(getpid(), &other, 1, &here, 1, 0) < 0 ? errno : 0, EFAULT,
	      "errno of process_vm_readv()");
	close(pipes[0]);
	close(pipes[1]);
}

static void test_in_use(struct machine *m)
{
	struct iovec pinned = { m->memory + 5 * PAGE, 8 };
	struct memory_attributes2 wanted = request(2, 8, PRIVATE);
	char bytes[8];
	int pipes[2];

	MUST(pipe(pipes));
	memset(m->memory, 0x55, SIZE);
	EQUAL(vmsplice(pipes[1], &pinned, 1, 0), 8, "what vmsplice() took");
	EQUAL(set_attributes(m->fd, &wanted), EAGAIN, "errno with a page in a pipe");
	EQUAL(wanted.error_offset, 5 * PAGE, "error_offset");
	for (uint64_t page = 0; page < PAGES; page++)
		EQUAL(touch(m->memory + page * PAGE), 0, "a touch after EAGAIN");
	EQUAL(convert(m->fd, 2, 3, PRIVATE), 0, "errno of the pages before");
	EQUAL(convert(m->fd, 6, 4, PRIVATE), 0, "errno of the pages after");
	wanted = request(5, 1, PRIVATE);
	EQUAL(set_attributes(m->fd, &wanted), EAGAIN, "errno of the page itself");
	EQUAL(wanted.error_offset, 5 * PAGE, "error_offset");
	EQUAL(convert(m->fd, 5, 1, SHARED), 0, "errno of the state that it has");
	EQUAL(convert(m->fd, 0, PAGES, SHARED), 0, "errno to shared");
	MUST(read(pipes[0], bytes, 8));
	EQUAL(convert(m->fd, 0, PAGES, PRIVATE), 0, "errno when the pipe is empty");
	EQUAL(guest_reads(m, 5), 0x55555555, "what the guest reads");
	close(pipes[0]);
	close(pipes[1]);
	wanted = request(0, PAGES, SHARED);
	EQUAL(set_attributes(m->fd, &wanted), 0, "errno");
	/* Where the answer cannot be written, EFAULT, and nothing has changed. */
	MUST(pipe(pipes));
	EQUAL(vmsplice(pipes[1], &pinned, 1, 0), 8, "what vmsplice() took");
	struct memory_attributes2 *read_only = (void *)map(-1, PAGE);
	*read_only = request(0, PAGES, PRIVATE);
	mprotect(read_only, PAGE, PROT_READ);
	EQUAL(set_attributes(m->fd, read_only), EFAULT, "errno with a read-only structure");
	EQUAL(touch(m->memory), 0, "a touch");
	munmap(read_only, PAGE);
	close(pipes[0]);
	close(pipes[1]);
}

static void test_punch_keeps_the_state(struct machine *m)
{
	int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

	guest_writes(m, 0, 0x66666666);
	guest_writes(m, 1, 0x77777777);
	EQUAL(convert(m->fd, 1, 1, PRIVATE), 0, "errno");
	MUST(fallocate(m->fd, mode, 0, 2 * PAGE));
	EQUAL(peek(m->memory), 0, "a shared page after the punch");
	EQUAL(peek(m->memory + PAGE), -SIGBUS, "a private page after the punch");
	EQUAL(guest_reads(m, 0), 0, "a shared page after the punch");
	EQUAL(guest_reads(m, 1), 0, "a private page after the punch");
	MUST(fallocate(m->fd, FALLOC_FL_KEEP_SIZE, 0, SIZE));
	EQUAL(peek(m->memory + PAGE), -SIGBUS, "a private page after fallocate()");
	EQUAL(peek(m->memory + 2 * PAGE), 0, "a shared page after fallocate()");
}

static void test_patterns(struct machine *m)
{
	for (uint64_t page = 0; page < PAGES; page++)
		*(uint32_t *)(m->memory + page * PAGE) = (uint32_t)(page + 1);
	for (uint64_t page = 0; page < PAGES; page += 2)
		EQUAL(convert(m->fd, page, 1, PRIVATE), 0, "errno");
	for (uint64_t page = 0; page < PAGES; page++)
		EQUAL(touch(m->memory + page * PAGE), page % 2 ? 0 : SIGBUS, "a touch");
	EQUAL(convert(m->fd, 7, 20, PRIVATE), 0, "errno");
	for (uint64_t page = 0; page < PAGES; page++)
		EQUAL(touch(m->memory + page * PAGE),
		      page % 2 && (page < 7 || page >= 27) ? 0 : SIGBUS, "a touch");
	EQUAL(convert(m->fd, PAGES - 1, 1, PRIVATE), 0, "errno");
	EQUAL(convert(m->fd, 0, PAGES, SHARED), 0, "errno");
	for (uint64_t page = 0; page < PAGES; page++)
		EQUAL(host_reads(m, page), page + 1, "what the host reads");
	EQUAL(convert(m->fd, 0, PAGES, PRIVATE), 0, "errno");
	for (uint64_t page = 0; page < PAGES; page++) {
		EQUAL(touch(m->memory + page * PAGE), SIGBUS, "a touch");
		EQUAL(guest_reads(m, page), page + 1, "what the guest reads");
	}
}

static void test_every_mapping(struct machine *m)
{
	char *second = map(m->fd, SIZE);
	int ready[2], go[2], status;
	char byte;
	pid_t child;

	memset(m->memory, 0x33, SIZE);
	EQUAL(touch(second), 0, "a touch");
	MUST(pipe(ready));
	MUST(pipe(go));
	child = MUST(fork());
	if (child == 0) {
		int seen = touch(m->memory);

		if (write(ready[1], "", 1) != 1 || read(go[0], &byte, 1) != 1)
			_exit(9);
		_exit(seen ? 8 : touch(m->memory) == SIGBUS && touch(second) == SIGBUS ? 0 : 7);
	}
	MUST(read(ready[0], &byte, 1));
	EQUAL(convert_at_last(m->fd, 0, 1, PRIVATE), 0, "errno");
	EQUAL(touch(m->memory), SIGBUS, "a touch");
	EQUAL(touch(second), SIGBUS, "a touch of the second mapping");
	MUST(write(go[1], "", 1));
	MUST(waitpid(child, &status, 0));
	EQUAL(status, 0, "status of the child");
	/* From another process, and for a VM whose fd is closed. */
	child = MUST(fork());
	if (child == 0)
		_exit(convert(m->fd, 0, 1, SHARED));
	MUST(waitpid(child, &status, 0));
	EQUAL(status, 0, "errno in the child");
	EQUAL(peek(m->memory), 0x33, "what the host reads");
	munmap(second, SIZE);
	for (int i = 0; i < 2; i++) {
		close(ready[i]);
		close(go[i]);
	}
}

static void test_vm_closed_early(struct machine *m)
{
	for (int i = 0; i < VCPUS; i++)
		shut(&m->vcpu[i]);
	shut(&m->vm);
	*m->memory = 0x12;
	EQUAL(convert(m->fd, 0, PAGES, PRIVATE), 0, "errno");
	EQUAL(touch(m->memory), SIGBUS, "a touch");
	EQUAL(convert(m->fd, 0, PAGES, SHARED), 0, "errno");
	EQUAL(peek(m->memory), 0x12, "what the host reads");
}

static void test_slots(struct machine *m)
{
	struct memory_fault fault;

	/* The whole file is bound. */
	EQUAL(set_slot(m, SPARE_SLOT, m->fd, ELSEWHERE, 0, PAGE, m->memory), EEXIST, "errno");
	guest_writes(m, 1, 0x1234);
	EQUAL(convert(m->fd, 1, 1, PRIVATE), 0, "errno");
	EQUAL(remove_slot(m, SLOT), 0, "errno");
	set_up(m, 0, guest_read, GPA + PAGE, 0, 0);
	EQUAL(enter(m, 0), 0, "errno of KVM_RUN");
	EQUAL(m->run[0]->exit_reason, KVM_EXIT_MMIO, "exit_reason without a slot");
	EQUAL(m->run[0]->mmio.phys_addr, GPA + PAGE, "phys_addr");
	EXPECT_END(m, 0);
	/* In two slots, the other way round; the state is the file's. */
	EQUAL(set_slot(m, SLOT, m->fd, GPA, SIZE / 2, SIZE / 2, m->memory + SIZE / 2), 0, "errno");
	EQUAL(set_slot(m, SPARE_SLOT, m->fd, GPA + SIZE / 2, 0, SIZE / 2, m->memory), 0, "errno");
	EQUAL(guest_reads(m, PAGES / 2 + 1), 0x1234, "what the guest reads");
	EQUAL(touch(m->memory + PAGE), SIGBUS, "a touch");
	guest_writes(m, 1, 0x4321);
	EQUAL(convert(m->fd, PAGES / 2 - 1, 3, PRIVATE), 0, "errno over the border");
	EQUAL(guest_reads(m, 1), 0x4321, "what the guest reads");
	EQUAL(convert(m->fd, 0, PAGES, SHARED), 0, "errno");
	EQUAL(host_reads(m, PAGES / 2 + 1), 0x4321, "what the host reads");
	/* Without the file there is no page, private or shared. */
	munmap(m->memory, SIZE);
	m->memory = map(-1, SIZE);
	shut(&m->fd);
	set_up(m, 0, guest_read, GPA, 0, 0);
	EQUAL(enter(m, 0), EFAULT, "errno of KVM_RUN");
	EQUAL(m->run[0]->exit_reason, EXIT_MEMORY_FAULT, "exit_reason");
	fault = *fault_of(m, 0);
	EQUAL(fault.flags, 0, "flags");
	EQUAL(fault.gpa, GPA, "gpa");
	EQUAL(fault.size, PAGE, "size");
}

static void test_shared_pages_come_from_the_file(struct machine *m)
{
	char *other = map(-1, SIZE);
	int file = MUST(create_fd(m->vm, SIZE, FLAG_INIT_SHARED)); /* without MMAP */

	memset(other, 0x77, SIZE);
	EQUAL(set_slot(m, SPARE_SLOT, file, ELSEWHERE, 0, SIZE, other), 0, "errno");
	set_up(m, 0, guest_read, ELSEWHERE, 0, 0);
	EXPECT_END(m, 0);
	EQUAL(registers(m, 0).rax, 0, "what the guest reads");
	EQUAL(mmap(NULL, SIZE, PROT_READ, MAP_SHARED, file, 0) == MAP_FAILED ? errno : 0, ENODEV,
	      "errno of mmap()");
	close(file);
	munmap(other, SIZE);
}

static void test_pre_fault(struct machine *m)
{
	struct pre_fault range = { .gpa = GPA, .size = SIZE };

	EQUAL(convert(m->fd, 0, PAGES / 2, PRIVATE), 0, "errno");
	EQUAL(ioctl(m->vcpu[0], PRE_FAULT, &range) ? errno : 0, 0, "errno");
	EQUAL(range.size, 0, "what is left");
	EQUAL(convert(m->fd, 0, PAGES, PRIVATE), 0, "errno with every page mapped by a vCPU");
	EQUAL(guest_reads(m, PAGES - 1), 0, "what the guest reads");
}

/* ---- races ---- */

struct thread {
	struct machine *m;
	int vcpu;
	uint32_t tag;
	volatile int *stop;
	long wrong, faults, busy, done;
	unsigned int seed;
};

static void *spinning(void *argument)
{
	struct thread *t = argument;

	t->faults = run_to_the_end(t->m, t->vcpu);
	return NULL;
}

/* What the guest spins on is written by the host, which has to make the page shared for that. */
static void test_conversion_reaches_running_vcpus(struct machine *m)
{
	for (uint32_t round = 0; round < 20; round++) {
		struct thread t = { .m = m };
		pthread_t id;

		*(uint32_t *)m->memory = round;
		EQUAL(convert_at_last(m->fd, 0, 1, PRIVATE), 0, "errno");
		set_up(m, 0, guest_spin, GPA, 0, round);
		MUST(pthread_create(&id, NULL, spinning, &t) ? -1 : 0);
		usleep(1000 * (round % 4));
		EQUAL(convert(m->fd, 0, 1, SHARED), 0, "errno");
		*(volatile uint32_t *)m->memory = round + 1;
		pthread_join(id, NULL);
		EQUAL(t.faults < 0, 0, "an end that is no HLT");
		EQUAL(registers(m, 0).rax, round + 1, "what the guest read");
	}
}

/* A vCPU writes and reads four pages, and nobody else writes anything but zeros (by punching). */
static void *racing(void *argument)
{
	struct thread *t = argument;

	while (!*t->stop) {
		long faults;

		set_up(t->m, t->vcpu, guest_race, GPA, t->tag, 3000);
		faults = run_to_the_end(t->m, t->vcpu);
		if (faults < 0) {
			fail(__LINE__, "a vCPU ended with exit reason %u",
			     t->m->run[t->vcpu]->exit_reason);
			break;
		}
		t->faults += faults;
		t->wrong += (long)(uint32_t)registers(t->m, t->vcpu).rsi;
		t->done++;
	}
	return NULL;
}

/* A page that reads at all while the host looks has a vCPU's tag in it, or nothing yet. */
static void *looking(void *argument)
{
	struct thread *t = argument;

	while (!*t->stop) {
		const volatile char *address = t->m->memory + (uint64_t)(t->done++ % 4) * PAGE;
		int seen = peek(address);

		if (seen == -SIGBUS)
			t->faults++;
		else if (seen != 0 && seen != (int)(t->tag & 0xff))
			t->wrong++;
	}
	return NULL;
}

static void *converting(void *argument)
{
	struct thread *t = argument;
	unsigned int state = t->seed;

	for (long round = 0; round < rounds; round++) {
		uint64_t first = (uint64_t)(rand_r(&state) % 4);
		uint64_t pages = 1 + (uint64_t)rand_r(&state) % (4 - first);
		int error = convert(t->m->fd, first, pages, rand_r(&state) % 2 ? PRIVATE : SHARED);

		still_alive();
		if (error == EAGAIN)
			t->busy++;
		else
			EQUAL(error, 0, "errno");
	}
	return NULL;
}

static void *punching(void *argument)
{
	struct thread *t = argument;
	unsigned int state = t->seed;
	int mode = FALLOC_FL_KEEP_SIZE;

	while (!*t->stop) {
		mode ^= FALLOC_FL_PUNCH_HOLE;
		if (fallocate(t->m->fd, mode, (off_t)((uint64_t)(rand_r(&state) % 4) * PAGE), PAGE) &&
		    errno != EINTR)
			t->wrong++;
		t->done++;
	}
	return NULL;
}

/* A slot beside, whose part of the file nobody converts, comes and goes. */
static void *rebinding(void *argument)
{
	struct thread *t = argument;
	struct machine *m = t->m;

	while (!*t->stop) {
		int error = set_slot(m, SPARE_SLOT, m->fd, ELSEWHERE, SIZE / 2, SIZE / 2, m->memory);

		if (error || remove_slot(m, SPARE_SLOT))
			t->wrong++;
		t->done++;
	}
	return NULL;
}

static void race(struct machine *m, void *(*other)(void *))
{
	volatile int stop = 0;
	struct thread vcpu = { .m = m, .tag = 0xa5a5a5a5, .stop = &stop };
	struct thread host = { .m = m, .tag = 0xa5a5a5a5, .stop = &stop };
	struct thread third = { .m = m, .stop = &stop, .seed = seed + 1 };
	struct thread converter = { .m = m, .seed = seed }, second = { .m = m, .seed = seed + 2 };
	pthread_t id[5];

	MUST(remove_slot(m, SLOT) ? -1 : 0);
	MUST(set_slot(m, SLOT, m->fd, GPA, 0, SIZE / 2, m->memory) ? -1 : 0);
	MUST(pthread_create(&id[0], NULL, racing, &vcpu) ? -1 : 0);
	MUST(pthread_create(&id[1], NULL, looking, &host) ? -1 : 0);
	MUST(pthread_create(&id[2], NULL, other, &third) ? -1 : 0);
	MUST(pthread_create(&id[3], NULL, converting, &converter) ? -1 : 0);
	MUST(pthread_create(&id[4], NULL, converting, &second) ? -1 : 0);
	pthread_join(id[3], NULL);
	pthread_join(id[4], NULL);
	stop = 1;
	for (int i = 0; i < 3; i++)
		pthread_join(id[i], NULL);
	EQUAL(vcpu.wrong, 0, "wrong values that the guest read");
	EQUAL(host.wrong, 0, "wrong values that the host read");
	EQUAL(third.wrong, 0, "errors beside the race");
	printf("# seed %u; 2 x %ld conversions, EAGAIN %ld + %ld; guest: %ld runs, %ld faults; "
	       "host: %ld looks, %ld SIGBUS; beside: %ld rounds\n", seed, rounds, converter.busy,
	       second.busy, vcpu.done, vcpu.faults, host.done, host.faults, third.done);
}

static void test_race_with_punching(struct machine *m)
{
	race(m, punching);
}

static void test_race_with_slots(struct machine *m)
{
	race(m, rebinding);
}

/* Two threads want opposite states of one range: in the end all of it has one of them. */
static void *opposing(void *argument)
{
	struct thread *t = argument;

	for (long round = 0; round < rounds; round++)
		convert(t->m->fd, 0, PAGES, t->tag);
	return NULL;
}

static void test_opposite_directions(struct machine *m)
{
	struct thread t[2] = { { .m = m, .tag = PRIVATE }, { .m = m, .tag = SHARED } };
	pthread_t id[2];
	int first;

	memset(m->memory, 1, SIZE);
	for (int i = 0; i < 2; i++)
		MUST(pthread_create(&id[i], NULL, opposing, &t[i]) ? -1 : 0);
	for (int i = 0; i < 2; i++)
		pthread_join(id[i], NULL);
	first = touch(m->memory);
	for (uint64_t page = 1; page < PAGES; page++)
		EQUAL(touch(m->memory + page * PAGE), first, "a touch");
}

/* The file goes while a conversion, a slot's deletion and a vCPU are under way. */
static void *converting_quietly(void *argument)
{
	struct thread *t = argument;

	while (!*t->stop)
		convert(t->m->fd, 0, PAGES, t->done++ % 2 ? PRIVATE : SHARED);
	return NULL;
}

static void *running_quietly(void *argument)
{
	struct thread *t = argument;

	set_up(t->m, 0, guest_race, GPA, 1, 2000);
	for (int i = 0; i < 50 && !*t->stop; i++)
		enter(t->m, 0);
	return NULL;
}

static void test_close_while_converting(struct machine *m)
{
	unsigned int state = seed;

	for (long round = 0; round < rounds / 20 + 1; round++) {
		volatile int stop = 0;
		struct thread t = { .m = m, .stop = &stop };
		pthread_t id[2];

		still_alive();
		MUST(pthread_create(&id[0], NULL, converting_quietly, &t) ? -1 : 0);
		MUST(pthread_create(&id[1], NULL, running_quietly, &t) ? -1 : 0);
		usleep((useconds_t)rand_r(&state) % 2000);
		munmap(m->memory, SIZE);
		m->memory = map(-1, SIZE);
		close(m->fd);
		remove_slot(m, SLOT);
		stop = 1;
		pthread_join(id[0], NULL);
		pthread_join(id[1], NULL);
		m->fd = -1;
		restart_machine(m, FLAG_MMAP | FLAG_INIT_SHARED);
	}
}

/* ---- all of it ---- */

static const struct {
	const char *name;
	void (*run)(struct machine *m);
} tests[] = {
	{ "capabilities", test_capabilities },
	{ "misuse", test_misuse },
	{ "contents stay, and the host is kept out", test_contents_stay },
	{ "the initial state", test_initial_state },
	{ "system calls on private pages", test_syscalls_on_private_pages },
	{ "pages in use", test_in_use },
	{ "punching keeps the state", test_punch_keeps_the_state },
	{ "patterns of states", test_patterns },
	{ "every mapping in every process", test_every_mapping },
	{ "VM closed early", test_vm_closed_early },
	{ "slots come, go and split the file", test_slots },
	{ "shared pages come from the file", test_shared_pages_come_from_the_file },
	{ "KVM_PRE_FAULT_MEMORY", test_pre_fault },
	{ "a conversion reaches running vCPUs", test_conversion_reaches_running_vcpus },
	{ "conversions race with a vCPU, the host and punches", test_race_with_punching },
	{ "conversions race with a vCPU, the host and slots", test_race_with_slots },
	{ "conversions race with their opposite", test_opposite_directions },
	{ "the file is closed while it is converted", test_close_while_converting },
};
#define TESTS (sizeof(tests) / sizeof(tests[0]))

/* Ask what the kernel does: the number of the capability has had other values. */
static const char *missing(void)
{
	struct memory_attributes2 nothing = { 0 };
	const char *reason = NULL;
	int vm, fd;

	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		return "no /dev/kvm";
	vm = ioctl(kvm, KVM_CREATE_VM, SW_PROTECTED_VM);
	if (vm < 0)
		return "no VM type KVM_X86_SW_PROTECTED_VM";
	fd = create_fd(vm, PAGE, 0);
	if (fd < 0)
		reason = "no KVM_CREATE_GUEST_MEMFD";
	else if (set_attributes(fd, &nothing) == ENOTTY)
		reason = "no KVM_SET_MEMORY_ATTRIBUTES2 on a guest_memfd";
	shut(&fd);
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
	signal(SIGBUS, caught);
	for (size_t i = 0; i < TESTS; i++) {
		struct machine m;

		failures = 0;
		still_alive();
		start_machine(&m, FLAG_MMAP | FLAG_INIT_SHARED);
		tests[i].run(&m);
		stop_machine(&m);
		printf("%sok %zu - %s\n", failures ? "not " : "", i + 1, tests[i].name);
		failed += failures != 0;
	}
	return failed != 0;
}
