/* SPDX-License-Identifier: MIT */
/*
 * The floor of a machine's life: every system call that pyvmm's Machine makes on the
 * emulated backend with PROT_NONE windows, in the same order, for a guest that writes 0
 * to the exit port. `strace -f` of both shows the same calls.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define RAM_SIZE 0x40000
#define REGION_SIZE 0x40000
#define BUFFERS_SIZE 0x106000 /* console, measures, port table */
#define START 0x7C00
#define CPUID_ENTRIES 128
#define TICK_NS 100000000

struct phases {
	uint64_t create_ns;
	uint64_t run_ns;
	uint64_t close_ns;
};

struct machine {
	int kvm, vm, vcpu, private_fd, shared_fd;
	void *ram, *private_host, *shared_host, *buffers;
	struct kvm_run *run;
	size_t run_size;
};

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000ull + (uint64_t)time.tv_nsec;
}

/* Every call must succeed; which one did not is for strace to say. */
#define TRY(call) \
	do { \
		if ((long)(call) == -1) \
			return -errno; \
	} while (0)

static int add_slot(int vm, uint32_t slot, uint64_t gpa, uint64_t size, void *host)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot,
		.guest_phys_addr = gpa,
		.memory_size = size,
		.userspace_addr = (uintptr_t)host,
	};

	return ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region);
}

static int add_region(struct machine *machine)
{
	TRY(machine->private_fd = (int)syscall(SYS_memfd_create, "private", 3));
	TRY(ftruncate(machine->private_fd, REGION_SIZE));
	TRY(machine->shared_fd = (int)syscall(SYS_memfd_create, "shared", 3));
	TRY(ftruncate(machine->shared_fd, REGION_SIZE));
	TRY(machine->private_host =
		    mmap(NULL, REGION_SIZE, PROT_NONE, MAP_SHARED, machine->private_fd, 0));
	TRY(machine->shared_host = mmap(NULL, REGION_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
					machine->shared_fd, 0));
	TRY(add_slot(machine->vm, 65, 0xC0000, REGION_SIZE, machine->shared_host));
	TRY(add_slot(machine->vm, 1, 0x40000, REGION_SIZE, machine->private_host));
	return 0;
}

static int set_boot_state(int vcpu)
{
	struct kvm_regs regs = { .rbx = 1, .rsp = START, .rip = START, .rflags = 2 };
	struct kvm_sregs sregs;

	TRY(ioctl(vcpu, KVM_GET_SREGS, &sregs));
	sregs.cs.base = sregs.cs.selector = 0;
	TRY(ioctl(vcpu, KVM_SET_SREGS, &sregs));
	TRY(ioctl(vcpu, KVM_SET_REGS, &regs));
	return 0;
}

static int create(struct machine *machine, const char *image, size_t size)
{
	static struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entries[CPUID_ENTRIES];
	} cpuid;
	struct kvm_enable_cap tell_failing_bytes = {
		.cap = KVM_CAP_EXIT_ON_EMULATION_FAILURE,
		.args = { 1 },
	};
	uint64_t identity_map = 0xFFFBC000;
	int error;

	TRY(machine->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC));
	TRY(ioctl(machine->kvm, KVM_GET_API_VERSION, 0));
	TRY(machine->vm = ioctl(machine->kvm, KVM_CREATE_VM, 0));
	TRY(machine->run_size = (size_t)ioctl(machine->kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
	TRY(getpid());
	TRY(ioctl(machine->vm, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS));
	TRY(ioctl(machine->vm, KVM_CHECK_EXTENSION, KVM_CAP_EXIT_ON_EMULATION_FAILURE));
	TRY(ioctl(machine->vm, KVM_ENABLE_CAP, &tell_failing_bytes));
	TRY(ioctl(machine->vm, KVM_SET_IDENTITY_MAP_ADDR, &identity_map));
	TRY(ioctl(machine->vm, KVM_SET_TSS_ADDR, 0xFFFBD000));
	TRY(machine->ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	TRY(add_slot(machine->vm, 0, 0, RAM_SIZE, machine->ram));
	memset(machine->ram, 0x5A, 0x600); /* interrupt vectors and stubs */
	memcpy((char *)machine->ram + START, image, size);
	error = add_region(machine);
	if (error)
		return error;
	TRY(machine->buffers = mmap(NULL, BUFFERS_SIZE, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	TRY(ioctl(machine->vm, KVM_CHECK_EXTENSION, KVM_CAP_SYNC_REGS));
	cpuid.head.nent = CPUID_ENTRIES;
	TRY(ioctl(machine->kvm, KVM_GET_SUPPORTED_CPUID, &cpuid));
	TRY(machine->vcpu = ioctl(machine->vm, KVM_CREATE_VCPU, 0));
	TRY(ioctl(machine->vm, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2));
	TRY(machine->run = mmap(NULL, machine->run_size, PROT_READ | PROT_WRITE, MAP_SHARED,
				machine->vcpu, 0));
	TRY(ioctl(machine->vcpu, KVM_SET_CPUID2, &cpuid));
	return set_boot_state(machine->vcpu);
}

static int run(struct machine *machine, int timer_signal)
{
	static pid_t thread;
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = timer_signal };
	const struct itimerspec ticks = { { 0, TICK_NS }, { 0, TICK_NS } };
	sigset_t ticking;
	timer_t timer;
	int result;

	sigemptyset(&ticking);
	sigaddset(&ticking, timer_signal);
	TRY(sigprocmask(SIG_UNBLOCK, &ticking, NULL));
	if (thread == 0)
		thread = (pid_t)syscall(SYS_gettid);
	event._sigev_un._tid = thread;
	TRY(timer_create(CLOCK_MONOTONIC, &event, &timer));
	TRY(timer_settime(timer, 0, &ticks, NULL));
	do
		result = ioctl(machine->vcpu, KVM_RUN, 0);
	while (result < 0 && errno == EINTR);
	if (result < 0)
		return -errno;
	timer_delete(timer);
	if (machine->run->exit_reason != KVM_EXIT_IO || machine->run->io.port != 0xF4)
		return -EPROTO;
	return 0;
}

static int close_all(struct machine *machine)
{
	TRY(munmap(machine->run, machine->run_size));
	TRY(close(machine->vcpu));
	TRY(munmap(machine->private_host, REGION_SIZE));
	TRY(munmap(machine->shared_host, REGION_SIZE));
	TRY(close(machine->private_fd));
	TRY(close(machine->shared_fd));
	TRY(munmap(machine->ram, RAM_SIZE));
	TRY(close(machine->vm));
	TRY(close(machine->kvm));
	TRY(munmap(machine->buffers, BUFFERS_SIZE));
	return 0;
}

/* One life: 0 or -errno. A failure leaves everything open. */
int lifecycle(const char *image, size_t size, int timer_signal, struct phases *phases)
{
	const uint64_t start = now();
	struct machine machine = { 0 };
	uint64_t created, ran;
	int error;

	error = create(&machine, image, size);
	created = now();
	if (!error)
		error = run(&machine, timer_signal);
	ran = now();
	if (!error)
		error = close_all(&machine);
	phases->create_ns = created - start;
	phases->run_ns = ran - created;
	phases->close_ns = now() - ran;
	return error;
}
