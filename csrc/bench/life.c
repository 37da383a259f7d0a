/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "life.h"

#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "../protocol.h"

#define RAM_SIZE 0x40000
#define REGION_SIZE 0x40000
#define REGION_GPA 0x40000
#define SHARED_VIEW_GPA 0xC0000
#define SHARED_VIEW_SLOT 65
#define START 0x7C00
#define LOW_MEMORY 0x600 /* interrupt vectors and stubs */
#define TSS_GPA 0xFFFBD000
#define IDENTITY_MAP_GPA 0xFFFBC000
#define CPUID_ENTRIES 128
#define TICK_NS 100000000

struct life {
	int kvm, vm, vcpu, private_fd, shared_fd;
	void *ram, *private_host, *shared_host, *buffers;
	struct kvm_run *run;
	size_t run_size;
	struct kvm_sregs sregs;
	int timer_signal;
	bool has_timer;
	timer_t timer;
};

/* Every call must succeed; which one did not is for strace to say. */
#define TRY(call)                                                                                  \
	do {                                                                                       \
		if ((long)(call) == -1)                                                            \
			return -errno;                                                             \
	} while (0)

static int create(struct life *life)
{
	TRY(life->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC));
	TRY(ioctl(life->kvm, KVM_GET_API_VERSION, 0));
	TRY(life->run_size = (size_t)ioctl(life->kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
	TRY(life->vm = ioctl(life->kvm, KVM_CREATE_VM, 0));
	return 0;
}

static int add_plain_slot(int vm, uint32_t slot, uint64_t gpa, uint64_t size, void *host)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot,
		.guest_phys_addr = gpa,
		.memory_size = size,
		.userspace_addr = (uintptr_t)host,
	};

	return ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region);
}

static int add_region(struct life *life, bool prot_none)
{
	const int hidden = prot_none ? PROT_NONE : PROT_READ | PROT_WRITE;

	TRY(life->private_fd = memfd_create("private", MFD_CLOEXEC | MFD_ALLOW_SEALING));
	TRY(ftruncate(life->private_fd, REGION_SIZE));
	TRY(life->shared_fd = memfd_create("shared", MFD_CLOEXEC | MFD_ALLOW_SEALING));
	TRY(ftruncate(life->shared_fd, REGION_SIZE));
	TRY(life->private_host = mmap(NULL, REGION_SIZE, hidden, MAP_SHARED, life->private_fd, 0));
	TRY(life->shared_host = mmap(NULL, REGION_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
				     life->shared_fd, 0));
	TRY(add_plain_slot(life->vm, SHARED_VIEW_SLOT, SHARED_VIEW_GPA, REGION_SIZE,
			   life->shared_host));
	if (prot_none)
		TRY(add_plain_slot(life->vm, 1, REGION_GPA, REGION_SIZE, life->private_host));
	return 0;
}

static int add_memory(struct life *life, bool prot_none)
{
	struct kvm_enable_cap zap_one_slot = {
		.cap = KVM_CAP_DISABLE_QUIRKS2,
		.args = { KVM_X86_QUIRK_SLOT_ZAP_ALL },
	};
	struct kvm_enable_cap tell_failing_bytes = {
		.cap = KVM_CAP_EXIT_ON_EMULATION_FAILURE,
		.args = { 1 },
	};
	uint64_t identity_map = IDENTITY_MAP_GPA;
	int has;

	if (!prot_none) {
		TRY(has = ioctl(life->vm, KVM_CHECK_EXTENSION, KVM_CAP_DISABLE_QUIRKS2));
		if (has & KVM_X86_QUIRK_SLOT_ZAP_ALL)
			TRY(ioctl(life->vm, KVM_ENABLE_CAP, &zap_one_slot));
	}
	TRY(getpid());
	TRY(ioctl(life->vm, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS));
	TRY(has = ioctl(life->vm, KVM_CHECK_EXTENSION, KVM_CAP_EXIT_ON_EMULATION_FAILURE));
	if (has)
		TRY(ioctl(life->vm, KVM_ENABLE_CAP, &tell_failing_bytes));
	TRY(ioctl(life->vm, KVM_SET_IDENTITY_MAP_ADDR, &identity_map));
	TRY(ioctl(life->vm, KVM_SET_TSS_ADDR, TSS_GPA));
	TRY(life->ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			     -1, 0));
	TRY(add_plain_slot(life->vm, 0, 0, RAM_SIZE, life->ram));
	return add_region(life, prot_none);
}

static int set_boot_state(struct life *life)
{
	struct kvm_regs regs = { .rbx = 1, .rsp = START, .rip = START, .rflags = 2 };
	struct kvm_sregs sregs;

	TRY(ioctl(life->vcpu, KVM_GET_SREGS, &sregs));
	sregs.cs.base = sregs.cs.selector = 0;
	TRY(ioctl(life->vcpu, KVM_SET_SREGS, &sregs));
	TRY(ioctl(life->vcpu, KVM_SET_REGS, &regs));
	return 0;
}

static int add_vcpu(struct life *life, const void *image, uint64_t size)
{
	struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entries[CPUID_ENTRIES];
	} cpuid;

	TRY(life->buffers = mmap(NULL, sizeof(struct protocol_buffers), PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	TRY(ioctl(life->vm, KVM_CHECK_EXTENSION, KVM_CAP_SYNC_REGS));
	cpuid.head.nent = CPUID_ENTRIES;
	TRY(ioctl(life->kvm, KVM_GET_SUPPORTED_CPUID, &cpuid));
	TRY(life->vcpu = ioctl(life->vm, KVM_CREATE_VCPU, 0));
	TRY(life->run =
		    mmap(NULL, life->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, life->vcpu, 0));
	TRY(ioctl(life->vcpu, KVM_SET_CPUID2, &cpuid));
	memset(life->ram, 0x5A, LOW_MEMORY);
	memcpy((char *)life->ram + START, image, size);
	return set_boot_state(life);
}

static int arm(struct life *life)
{
	struct sigevent event = {
		.sigev_notify = SIGEV_THREAD_ID,
		.sigev_signo = life->timer_signal,
	};
	const struct itimerspec ticks = { { 0, TICK_NS }, { 0, TICK_NS } };
	sigset_t ticking;

	sigemptyset(&ticking);
	sigaddset(&ticking, life->timer_signal);
	TRY(sigprocmask(SIG_UNBLOCK, &ticking, NULL));
	event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
	TRY(timer_create(CLOCK_MONOTONIC, &event, &life->timer));
	life->has_timer = true;
	TRY(timer_settime(life->timer, 0, &ticks, NULL));
	return 0;
}

static int run_to_exit(struct life *life)
{
	const int error = bare_run(life->vcpu, life->run);

	if (error)
		return error;
	return life->run->exit_reason == KVM_EXIT_IO ? 0 : -EPROTO;
}

static int first_exit(struct life *life)
{
	const int error = arm(life);

	return error ? error : run_to_exit(life);
}

static int reset(struct life *life)
{
	const int error = set_boot_state(life);

	return error ? error : run_to_exit(life);
}

static void unmap(void *address, size_t size)
{
	if (address && address != MAP_FAILED)
		munmap(address, size);
}

static void close_fd(int fd)
{
	if (fd >= 0)
		close(fd);
}

static void close_all(struct life *life)
{
	if (life->has_timer)
		timer_delete(life->timer);
	unmap(life->run, life->run_size);
	close_fd(life->vcpu);
	unmap(life->private_host, REGION_SIZE);
	unmap(life->shared_host, REGION_SIZE);
	close_fd(life->private_fd);
	close_fd(life->shared_fd);
	unmap(life->ram, RAM_SIZE);
	close_fd(life->vm);
	close_fd(life->kvm);
	unmap(life->buffers, sizeof(struct protocol_buffers));
}

int bare_life(const void *image, uint64_t size, int timer_signal, bool prot_none, bool with_reset,
	      uint64_t phases_ns[BARE_PHASES])
{
	ON_GUEST_CPU;
	struct life life = {
		.kvm = -1,
		.vm = -1,
		.vcpu = -1,
		.private_fd = -1,
		.shared_fd = -1,
		.timer_signal = timer_signal,
	};
	uint64_t at[BARE_PHASES + 1];
	int error, phase;

	if (size > RAM_SIZE - START)
		return -EINVAL;
	at[BARE_CREATE] = monotonic_ns();
	error = create(&life);
	at[BARE_SLOTS] = monotonic_ns();
	if (!error)
		error = add_memory(&life, prot_none);
	at[BARE_VCPU] = monotonic_ns();
	if (!error)
		error = add_vcpu(&life, image, size);
	at[BARE_FIRST_EXIT] = monotonic_ns();
	if (!error)
		error = first_exit(&life);
	at[BARE_RESET] = monotonic_ns();
	if (!error && with_reset)
		error = reset(&life);
	at[BARE_CLOSE] = monotonic_ns();
	close_all(&life);
	at[BARE_PHASES] = monotonic_ns();
	for (phase = 0; phase < BARE_PHASES; phase++)
		phases_ns[phase] = at[phase + 1] - at[phase];
	return error;
}
