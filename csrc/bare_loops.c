/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "bare_loops.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "guest_cpu.h"
#include "page_range.h"
#include "protocol.h"

#define CALIBRATION_NS 5000000 /* more than the record clock takes to find the TSC's rate */

/* ---- exits ---- */

/* 0, or -errno. A signal is run over. */
static int enter(int vcpu, struct kvm_run *run)
{
	while (ioctl(vcpu, KVM_RUN, 0) < 0) {
		if (errno != EINTR)
			return -errno;
		run->immediate_exit = 0;
	}
	return 0;
}

static void answer(struct kvm_run *run)
{
	uint64_t kept = 0;

	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		if (run->io.direction == KVM_EXIT_IO_IN)
			memset((char *)run + run->io.data_offset, 0xFF, run->io.size);
		else
			memcpy(&kept, (char *)run + run->io.data_offset, sizeof(uint32_t));
		break;
	case KVM_EXIT_MMIO:
		if (!run->mmio.is_write)
			memset(run->mmio.data, 0xFF, sizeof(run->mmio.data));
		else
			memcpy(&kept, run->mmio.data, sizeof(kept));
		break;
	case KVM_EXIT_HYPERCALL:
		run->hypercall.ret = 0;
		break;
	default:
		break;
	}
	__asm__ volatile("" : : "r"(kept));
}

int bare_exits(int vcpu, struct kvm_run *run, uint32_t reason, uint64_t exits, uint64_t parts,
	       struct kvm_coalesced_mmio_ring *ring, struct histogram *latency)
{
	ON_GUEST_CPU;
	uint64_t start = 0;
	int error;

	for (; exits > 0; exits--) {
		if (latency)
			start = monotonic_ns();
		error = enter(vcpu, run);
		if (error)
			return error;
		if (run->exit_reason != reason)
			return -EPROTO;
		answer(run);
		if (ring)
			ring->first = ring->last;
		if (latency)
			histogram_record(latency, (monotonic_ns() - start) / parts);
	}
	return 0;
}

int bare_immediate_exits(int vcpu, struct kvm_run *run, uint64_t calls, struct histogram *latency)
{
	uint64_t start = 0;

	for (; calls > 0; calls--) {
		if (latency)
			start = monotonic_ns();
		run->immediate_exit = 1;
		if (ioctl(vcpu, KVM_RUN, 0) == 0)
			return -EPROTO;
		if (errno != EINTR)
			return -errno;
		if (latency)
			histogram_record(latency, monotonic_ns() - start);
	}
	run->immediate_exit = 0;
	return 0;
}

int bare_system_ioctls(int kvm, uint64_t calls, struct histogram *latency)
{
	uint64_t start = 0;

	for (; calls > 0; calls--) {
		if (latency)
			start = monotonic_ns();
		if (ioctl(kvm, KVM_GET_API_VERSION, 0) < 0)
			return -errno;
		if (latency)
			histogram_record(latency, monotonic_ns() - start);
	}
	return 0;
}

uint64_t bare_record_ns(uint64_t records)
{
	const uint64_t until = monotonic_ns() + CALIBRATION_NS;
	uint64_t before = 0, now, least = UINT64_MAX;
	struct record_clock clock;

	record_clock_init(&clock);
	while (monotonic_ns() < until)
		record_clock_ns(&clock);
	for (; records > 0; records--) {
		/* Where an anchor may be taken, nothing is measured. */
		if (records % 1000 == 0)
			before = record_clock_ns(&clock);
		now = record_clock_later_ns(&clock);
		if (before && now - before < least)
			least = now - before;
		before = now;
	}
	return least;
}

int bare_interrupts(int vcpu, struct kvm_run *run, uint32_t vector, uint64_t interrupts,
		    struct histogram *latency)
{
	ON_GUEST_CPU;
	struct kvm_interrupt request = { .irq = vector };
	uint64_t start = 0;
	int error;

	for (; interrupts > 0; interrupts--) {
		if (latency)
			start = monotonic_ns();
		if (ioctl(vcpu, KVM_INTERRUPT, &request) < 0)
			return -errno;
		error = enter(vcpu, run);
		if (error)
			return error;
		if (run->exit_reason != KVM_EXIT_IO)
			return -EPROTO;
		answer(run);
		if (latency)
			histogram_record(latency, monotonic_ns() - start);
	}
	return 0;
}

/* ---- kick ---- */

#define KICK_LEAST_DELAY_NS 8000
#define KICK_DELAYS 16384 /* a span of ns, longer than most exits take from one to the next */
#define KICK_STEP 10007	  /* no divisor of it: successive delays cover the span evenly */
#define KICK_NO_MORE UINT64_MAX

/* What the kicking thread is told; `loop` is NULL for the bare kick. */
struct kicker {
	struct vcpu_loop *loop;
	struct kvm_run *run;
	pid_t vcpu_thread;
	int signal;
	bool alone; /* on its CPU */
	uint64_t wanted; /* the number of the kick that the vCPU waits for; KICK_NO_MORE ends */
	uint64_t sent;	 /* when it was sent, CLOCK_MONOTONIC ns; 0: not yet */
};

static void wait_a_little(const struct kicker *kicker)
{
	if (kicker->alone)
		__builtin_ia32_pause();
	else
		sched_yield();
}

static void *send_kicks(void *argument)
{
	struct kicker *kicker = argument;
	uint64_t number, wanted, until;

	for (number = 1;; number++) {
		while ((wanted = __atomic_load_n(&kicker->wanted, __ATOMIC_SEQ_CST)) < number)
			wait_a_little(kicker);
		if (wanted == KICK_NO_MORE)
			return NULL;
		until = monotonic_ns() + KICK_LEAST_DELAY_NS + number * KICK_STEP % KICK_DELAYS;
		while (monotonic_ns() < until)
			wait_a_little(kicker);
		__atomic_store_n(&kicker->sent, monotonic_ns(), __ATOMIC_SEQ_CST);
		if (kicker->loop) {
			loop_kick(kicker->loop);
		} else {
			__atomic_store_n(&kicker->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
			syscall(SYS_tgkill, getpid(), kicker->vcpu_thread, kicker->signal);
		}
	}
}

/* Start send_kicks() on a CPU of its own, or with -1 wherever it may run. 0 or -errno. */
static int start_kicker(pthread_t *thread, struct kicker *kicker, int cpu)
{
	pthread_attr_t attributes;
	cpu_set_t set;
	int error;

	kicker->alone = cpu >= 0;
	error = pthread_attr_init(&attributes);
	if (error)
		return -error;
	if (kicker->alone) {
		CPU_ZERO(&set);
		CPU_SET(cpu, &set);
		error = pthread_attr_setaffinity_np(&attributes, sizeof(set), &set);
	}
	if (!error)
		error = pthread_create(thread, &attributes, send_kicks, kicker);
	pthread_attr_destroy(&attributes);
	return -error;
}

static void want_kick(struct kicker *kicker, uint64_t number)
{
	__atomic_store_n(&kicker->sent, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&kicker->wanted, number, __ATOMIC_SEQ_CST);
}

/* The nanoseconds from the kick until `now`; 0: it was not that kick which ended KVM_RUN. */
static uint64_t since_kick(struct kicker *kicker, uint64_t now)
{
	const uint64_t sent = __atomic_load_n(&kicker->sent, __ATOMIC_SEQ_CST);

	return sent && now > sent ? now - sent : 0;
}

static void add_latency(uint64_t nanoseconds, uint64_t *sum, struct histogram *latency)
{
	*sum += nanoseconds;
	if (latency)
		histogram_record(latency, nanoseconds);
}

int bare_kicks(int vcpu, struct kvm_run *run, int kick_signal, int kicker_cpu, uint64_t kicks,
	       uint64_t *sum, struct histogram *latency)
{
	ON_GUEST_CPU;
	struct kicker kicker = {
		.run = run,
		.vcpu_thread = (pid_t)syscall(SYS_gettid),
		.signal = kick_signal,
	};
	uint64_t number, now, taken;
	pthread_t thread;
	int error;

	error = start_kicker(&thread, &kicker, kicker_cpu);
	if (error)
		return error;
	for (number = 1; !error && number <= kicks; number++) {
		want_kick(&kicker, number);
		do {
			error = ioctl(vcpu, KVM_RUN, 0) < 0 ? errno : 0;
			now = monotonic_ns();
			if (error && error != EINTR)
				break;
			taken = error == EINTR ? since_kick(&kicker, now) : 0;
			error = 0;
		} while (!taken);
		run->immediate_exit = 0;
		if (!error)
			add_latency(taken, sum, latency);
	}
	want_kick(&kicker, KICK_NO_MORE);
	pthread_join(thread, NULL);
	return -error;
}

int loop_kicks(struct vcpu_loop *loop, int kicker_cpu, uint64_t kicks, uint64_t *sum,
	       struct histogram *latency)
{
	struct kicker kicker = { .loop = loop };
	enum loop_stop stop;
	uint64_t number, now;
	pthread_t thread;
	int error;

	error = start_kicker(&thread, &kicker, kicker_cpu);
	if (error)
		return error;
	for (number = 1; !error && number <= kicks; number++) {
		want_kick(&kicker, number);
		do {
			stop = loop_run(loop);
			now = monotonic_ns();
		} while (stop == STOP_SIGNAL);
		if (stop == STOP_KICK)
			add_latency(since_kick(&kicker, now), sum, latency);
		else
			error = -EPROTO;
	}
	want_kick(&kicker, KICK_NO_MORE);
	pthread_join(thread, NULL);
	return error;
}

/* ---- conversions ---- */

static int set_slot(const struct bare_step *step, uint64_t size)
{
	struct kvm_userspace_memory_region2 with_file = {
		.slot = step->slot,
		.flags = KVM_MEM_GUEST_MEMFD,
		.guest_phys_addr = step->gpa,
		.memory_size = size,
		.userspace_addr = (uintptr_t)step->host,
		.guest_memfd_offset = step->offset,
		.guest_memfd = (uint32_t)step->guest_memfd,
	};
	struct kvm_userspace_memory_region plain = {
		.slot = step->slot,
		.guest_phys_addr = step->gpa,
		.memory_size = size,
		.userspace_addr = (uintptr_t)step->host,
	};

	if (step->guest_memfd >= 0 && size > 0)
		return ioctl(step->fd, KVM_SET_USER_MEMORY_REGION2, &with_file);
	return ioctl(step->fd, KVM_SET_USER_MEMORY_REGION, &plain);
}

static int take_step(const struct bare_step *step)
{
	struct kvm_memory_attributes attributes = {
		.address = step->gpa,
		.size = step->size,
		.attributes = step->attributes,
	};

	switch (step->call) {
	case BARE_ALLOCATE:
		return fallocate(step->fd, FALLOC_FL_KEEP_SIZE, (off_t)step->offset,
				 (off_t)step->size);
	case BARE_PUNCH:
		return fallocate(step->fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE,
				 (off_t)step->offset, (off_t)step->size);
	case BARE_PROTECT:
		return mprotect(step->host, step->size, step->protection);
	case BARE_ADD_SLOT:
		return set_slot(step, step->size);
	case BARE_DELETE_SLOT:
		return set_slot(step, 0);
	case BARE_ATTRIBUTES:
		return ioctl(step->fd, KVM_SET_MEMORY_ATTRIBUTES, &attributes);
	default:
		errno = EINVAL;
		return -1;
	}
}

static int convert(struct bare_direction *direction, enum bare_timing timing)
{
	const bool timed = timing == BARE_TIME_PARTS;
	uint64_t at, start = timed ? record_clock_ns(&direction->clock) : 0, end;

	for (at = 0; at < direction->step_count; at++) {
		const struct bare_step *step = &direction->steps[at];

		while (take_step(step) < 0) {
			if (errno != EINTR && errno != EAGAIN)
				return -errno;
		}
		if (timed && step->part < BARE_PARTS) {
			end = record_clock_later_ns(&direction->clock);
			direction->parts_ns[step->part] += end - start;
			start = end;
		}
	}
	direction->conversions++;
	return 0;
}

static bool touched(const struct bare_direction *direction, uint64_t gpa)
{
	return gpa >= direction->gpa && gpa - direction->gpa < direction->size;
}

/* Run to the next request for a conversion: 0 and the direction, or -errno. */
static int run_to_request(int vcpu, struct kvm_run *run, struct bare_direction *to_private,
			  struct bare_direction *to_shared, struct bare_direction **wanted)
{
	const struct pyvmm_memory_fault *fault = PYVMM_EXIT_PAYLOAD(run);
	const struct pyvmm_memory_error *error = PYVMM_EXIT_PAYLOAD(run);
	int failed = enter(vcpu, run);
	uint64_t gpa;

	while (!failed && run->exit_reason == KVM_EXIT_IO) {
		const uint32_t *value = (uint32_t *)((char *)run + run->io.data_offset);

		if (run->io.port == PORT_DOORBELL_RING) {
			*wanted = *value == DOORBELL_TO_PRIVATE ? to_private : to_shared;
			return 0;
		}
		failed = enter(vcpu, run);
	}
	if (!failed && run->exit_reason == KVM_EXIT_MMIO)
		gpa = run->mmio.phys_addr;
	else if (failed == -EFAULT && run->exit_reason == KVM_EXIT_MEMORY_FAULT)
		gpa = fault->gpa;
	else if (failed == -EPERM && run->exit_reason == KVM_EXIT_MEMORY_ERROR)
		gpa = error->gpa;
	else
		return failed ? failed : -EPROTO;
	*wanted = touched(to_private, gpa) ? to_private : to_shared;
	if (!touched(*wanted, gpa))
		return -EPROTO;
	if ((*wanted)->host && run->exit_reason == KVM_EXIT_MMIO)
		return (int)(gpa - (*wanted)->gpa) + 1;
	return 0;
}

int bare_conversions(int vcpu, struct kvm_run *run, struct bare_direction *to_private,
		     struct bare_direction *to_shared, uint64_t conversions,
		     enum bare_timing timing)
{
	ON_GUEST_CPU;
	struct bare_direction *direction = NULL, *previous;
	uint64_t start = 0, now;
	int offset, error;

	for (;;) {
		previous = direction;
		offset = run_to_request(vcpu, run, to_private, to_shared, &direction);
		if (offset < 0)
			return offset;
		if (timing == BARE_TIME_WHOLE) {
			now = monotonic_ns();
			if (previous)
				previous->whole_ns += now - start;
			start = now;
		}
		error = convert(direction, timing);
		if (error)
			return error;
		if (offset > 0) /* one more than the offset of an access to complete */
			memcpy((char *)direction->host + (offset - 1), run->mmio.data,
			       run->mmio.len);
		if (--conversions == 0)
			break;
	}
	/* The last one ends here: its own whole time is not known, so it is not counted. */
	if (timing == BARE_TIME_WHOLE)
		direction->conversions--;
	return 0;
}

int bare_convert_pairs(struct bare_direction *to_private, struct bare_direction *to_shared,
		       uint64_t pairs, enum bare_timing timing)
{
	uint64_t start, middle;
	int error;

	for (; pairs > 0; pairs--) {
		start = monotonic_ns();
		error = convert(to_private, timing);
		if (error)
			return error;
		middle = monotonic_ns();
		to_private->whole_ns += middle - start;
		error = convert(to_shared, timing);
		if (error)
			return error;
		to_shared->whole_ns += monotonic_ns() - middle;
	}
	return 0;
}

int memory_convert_pairs(struct memory *memory, uint64_t gpa, uint64_t pages, uint64_t pairs,
			 uint64_t *private_ns, uint64_t *shared_ns,
			 struct histogram *to_private, struct histogram *to_shared)
{
	uint64_t start, middle, end, converted;
	int error;

	for (; pairs > 0; pairs--) {
		start = monotonic_ns();
		error = memory_convert(memory, gpa, pages, PAGE_PRIVATE, &converted);
		if (error)
			return error;
		middle = monotonic_ns();
		error = memory_convert(memory, gpa, pages, PAGE_SHARED, &converted);
		if (error)
			return error;
		end = monotonic_ns();
		*private_ns += middle - start;
		*shared_ns += end - middle;
		if (to_private)
			histogram_record(to_private, middle - start);
		if (to_shared)
			histogram_record(to_shared, end - middle);
	}
	return 0;
}

int page_range_pairs(int file, uint64_t size, uint64_t pairs, uint64_t *allocate_ns,
		     uint64_t *discard_ns, struct histogram *allocate, struct histogram *discard)
{
	uint64_t start, middle, end;
	int error;

	for (; pairs > 0; pairs--) {
		start = monotonic_ns();
		error = page_range_allocate(file, 0, size);
		if (error)
			return error;
		middle = monotonic_ns();
		error = page_range_punch(file, 0, size);
		if (error)
			return error;
		end = monotonic_ns();
		*allocate_ns += middle - start;
		*discard_ns += end - middle;
		if (allocate)
			histogram_record(allocate, middle - start);
		if (discard)
			histogram_record(discard, end - middle);
	}
	return 0;
}

/* ---- a machine's life ---- */

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
#define TRY(call) \
	do { \
		if ((long)(call) == -1) \
			return -errno; \
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

static int add_memory(struct life *life, const void *image, uint64_t size, bool prot_none)
{
	struct kvm_enable_cap tell_failing_bytes = {
		.cap = KVM_CAP_EXIT_ON_EMULATION_FAILURE,
		.args = { 1 },
	};
	uint64_t identity_map = IDENTITY_MAP_GPA;
	int has;

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
	memset(life->ram, 0x5A, LOW_MEMORY);
	memcpy((char *)life->ram + START, image, size);
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

static int add_vcpu(struct life *life)
{
	struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entries[CPUID_ENTRIES];
	} cpuid;

	TRY(life->buffers = mmap(NULL, sizeof(struct protocol), PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	TRY(ioctl(life->vm, KVM_CHECK_EXTENSION, KVM_CAP_SYNC_REGS));
	cpuid.head.nent = CPUID_ENTRIES;
	TRY(ioctl(life->kvm, KVM_GET_SUPPORTED_CPUID, &cpuid));
	TRY(ioctl(life->vm, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2));
	TRY(life->vcpu = ioctl(life->vm, KVM_CREATE_VCPU, 0));
	TRY(life->run = mmap(NULL, life->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, life->vcpu,
			     0));
	TRY(ioctl(life->vcpu, KVM_SET_CPUID2, &cpuid));
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
	const int error = enter(life->vcpu, life->run);

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
	unmap(life->buffers, sizeof(struct protocol));
}

int bare_life(const void *image, uint64_t size, int timer_signal, bool prot_none, bool with_reset,
	      uint64_t phases_ns[BARE_PHASES])
{
	ON_GUEST_CPU;
	struct life life = {
		.kvm = -1, .vm = -1, .vcpu = -1, .private_fd = -1, .shared_fd = -1,
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
		error = add_memory(&life, image, size, prot_none);
	at[BARE_VCPU] = monotonic_ns();
	if (!error)
		error = add_vcpu(&life);
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
