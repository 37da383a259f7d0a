/* SPDX-License-Identifier: MIT */
/*
 * Private memory on any KVM: two memfds, and a page's wrong view is absent.
 *
 * Two views: KVM_EXIT_MMIO names the GPA that was touched. Absent means
 *   prot_none  the slot stays, the host mapping behind the page is PROT_NONE
 *              (where KVM's emulator answers that with KVM_EXIT_MMIO), or
 *   slots      no memslot covers the page.
 * The kernel has decoded the access and waits for its data, so it is completed
 * here and not repeated. Two things cannot be completed, but come with RIP unmoved
 * and are repeated once the page is converted: an instruction fetch, as
 * KVM_EXIT_INTERNAL_ERROR, and in real mode the frame of an exception or interrupt,
 * as KVM_EXIT_SHUTDOWN where KVM's emulator delivers it.
 * One view: one slot, and the mapping behind a page is replaced by the other
 * file's; nothing is ever absent.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "backend.h"

#define LONGEST_INSTRUCTION 15
#define REAL_MODE_FRAME 6 /* FLAGS, CS and IP, 16 bits each */
#define CR0_PROTECTED_MODE 0x1
#define RFLAGS_SINGLE_STEP 0x100
#define RFLAGS_INTERRUPTS_ON 0x200
#define RFLAGS_RESUME 0x10000
#define DEBUG_EXCEPTION 1

static void *host_at(void *base, uint64_t first)
{
	return (char *)base + first * PYVMM_PAGE_SIZE;
}

static int attach(struct region *region)
{
	struct slot_window window = {
		.vm_fd = region->vm_fd,
		.gpa = region->private_gpa,
		.pages = region->pages,
		.host = region->private_host,
		.guest_memfd = -1,
		.slot_base = region->slot_base,
		.slot_count = region->slot_count / 2,
	};
	int error;

	if (!region_has_two_views(region))
		window.host = region->shared_host;
	region->private_window = window;
	error = slot_window_init(&region->private_window);
	if (error)
		return error;
	if (!region_has_two_views(region))
		return slot_window_fill(&region->private_window, 0, region->pages);

	window.gpa = region->shared_gpa;
	window.host = region->shared_host;
	window.slot_base += region->slot_count / 2;
	region->shared_window = window;
	error = slot_window_init(&region->shared_window);
	if (error)
		return error;
	error = slot_window_fill(&region->shared_window, 0, region->pages);
	if (error || region->mechanism == MECHANISM_SLOTS)
		return error;
	return slot_window_fill(&region->private_window, 0, region->pages);
}

/* Without the lock: only a guess at which page of an instruction to look at. */
static bool is_absent(const struct region *region, uint64_t gpa)
{
	uint64_t page;

	if (view_has(region->private_gpa, region->pages, gpa)) {
		page = (gpa - region->private_gpa) / PYVMM_PAGE_SIZE;
		return region->states[page] != PAGE_PRIVATE;
	}
	page = (gpa - region->shared_gpa) / PYVMM_PAGE_SIZE;
	return region->states[page] != PAGE_SHARED;
}

/*
 * The first byte of the next instruction that lies in an absent page, or else in
 * a region at all: its page may have been absent for the moment of a conversion.
 */
static bool find_fetch(const struct memory *memory, int vcpu_fd, uint64_t *gpa)
{
	struct kvm_sregs sregs;
	struct kvm_regs regs;
	uint64_t linear, byte;
	bool found = false;

	if (ioctl(vcpu_fd, KVM_GET_REGS, &regs) < 0 || ioctl(vcpu_fd, KVM_GET_SREGS, &sregs) < 0)
		return false;
	linear = sregs.cs.base + regs.rip;
	for (byte = 0; byte < LONGEST_INSTRUCTION; byte++) {
		struct kvm_translation translation = { .linear_address = linear + byte };
		const struct region *region;

		if (ioctl(vcpu_fd, KVM_TRANSLATE, &translation) < 0 || !translation.valid)
			break;
		region = memory_find(memory, translation.physical_address);
		if (region && region_has_two_views(region)) {
			if (!found)
				*gpa = translation.physical_address;
			found = true;
			if (is_absent(region, translation.physical_address)) {
				*gpa = translation.physical_address;
				return true;
			}
		}
		/* The page is there: go on with the first byte of the next one. */
		byte += PYVMM_PAGE_SIZE - 1 - (linear + byte) % PYVMM_PAGE_SIZE;
	}
	return found;
}

/*
 * The first byte from the top of a frame of three words that was to be pushed to an absent
 * page, or else to a region at all, as for a fetch.
 */
static bool find_frame(const struct memory *memory, int vcpu_fd, uint64_t *gpa)
{
	struct kvm_sregs sregs;
	struct kvm_regs regs;
	uint64_t byte;
	bool found = false;

	if (ioctl(vcpu_fd, KVM_GET_REGS, &regs) < 0 || ioctl(vcpu_fd, KVM_GET_SREGS, &sregs) < 0)
		return false;
	if (sregs.cr0 & CR0_PROTECTED_MODE)
		return false;
	for (byte = 1; byte <= REAL_MODE_FRAME; byte++) {
		const uint64_t address = sregs.ss.base + ((regs.rsp - byte) & 0xFFFF);
		const struct region *region = memory_find(memory, address);

		if (!region || !region_has_two_views(region))
			continue;
		if (!found)
			*gpa = address;
		found = true;
		if (is_absent(region, address)) {
			*gpa = address;
			return true;
		}
	}
	return found;
}

/* Whether the vCPU is at a string instruction with REP, which sets RF between two rounds. */
static bool repeats_a_string(const struct memory *memory, int vcpu_fd, const struct kvm_regs *regs)
{
	struct kvm_sregs sregs;
	bool repeats = false;
	uint64_t at;

	if (ioctl(vcpu_fd, KVM_GET_SREGS, &sregs) < 0)
		return false;
	for (at = 0; at < LONGEST_INSTRUCTION; at++) {
		uint8_t code;

		if (!memory_peek(memory, sregs.cs.base + ((regs->rip + at) & 0xFFFF), &code, 1))
			return false;
		switch (code) {
		case 0xF2: case 0xF3: /* REPNE, REP */
			repeats = true;
			break;
		case 0x26: case 0x2E: case 0x36: case 0x3E: case 0x64: case 0x65: /* segments */
		case 0x66: case 0x67: /* sizes */
			break;
		case 0x6C ... 0x6F: /* INS, OUTS */
		case 0xA4 ... 0xA7: /* MOVS, CMPS */
		case 0xAA ... 0xAF: /* STOS, LODS, SCAS */
			return repeats;
		default:
			return false;
		}
	}
	return false;
}

/* Have the interrupt injected that the PIC holds for in service, if it is the last one. */
static bool find_interrupt(int vm_fd, struct kvm_vcpu_events *events)
{
	struct kvm_irqchip chip = { .chip_id = KVM_IRQCHIP_PIC_MASTER };

	for (; chip.chip_id <= KVM_IRQCHIP_PIC_SLAVE; chip.chip_id++) {
		uint32_t line;

		if (ioctl(vm_fd, KVM_GET_IRQCHIP, &chip) < 0)
			return false; /* no interrupt controller */
		line = (uint32_t)events->interrupt.nr - chip.chip.pic.irq_base;
		if (line >= 8 || !(chip.chip.pic.isr >> line & 1))
			continue;
		events->interrupt.injected = 1;
		events->interrupt.soft = 0;
		return true;
	}
	return false;
}

/*
 * What was lost with its frame, and does not come again by itself. A fault does, when its
 * instruction is repeated: KVM has set RF for it. An interrupt was taken from the PIC, and
 * with interrupts on it is the one in service. The trap of a single step lies behind its
 * instruction.
 */
static void hand_over_event(const struct memory *memory, int vm_fd, int vcpu_fd)
{
	struct kvm_vcpu_events events;
	struct kvm_regs regs;

	if (ioctl(vcpu_fd, KVM_GET_REGS, &regs) < 0 ||
	    ioctl(vcpu_fd, KVM_GET_VCPU_EVENTS, &events) < 0 || events.interrupt.injected ||
	    events.exception.injected)
		return;
	if (regs.rflags & RFLAGS_RESUME && !repeats_a_string(memory, vcpu_fd, &regs))
		return;
	if (!(regs.rflags & RFLAGS_INTERRUPTS_ON) || !find_interrupt(vm_fd, &events)) {
		if (!(regs.rflags & RFLAGS_SINGLE_STEP) || events.exception.nr != DEBUG_EXCEPTION)
			return;
		events.exception.injected = 1;
		events.exception.has_error_code = 0;
	}
	ioctl(vcpu_fd, KVM_SET_VCPU_EVENTS, &events);
}

static enum recognition recognise(const struct memory *memory, int vcpu_fd,
				  const struct kvm_run *run, int run_errno,
				  struct memory_access *access)
{
	*access = (struct memory_access){ 0 };
	if (run_errno)
		return NOT_A_MEMORY_EXIT;
	if (run->exit_reason == KVM_EXIT_MMIO) {
		*access = mmio_access(run);
		return MEMORY_EXIT;
	}
	if (run->exit_reason == KVM_EXIT_INTERNAL_ERROR &&
	    run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION &&
	    find_fetch(memory, vcpu_fd, &access->gpa)) {
		access->is_fetch = true;
		return MEMORY_EXIT;
	}
	if (run->exit_reason == KVM_EXIT_SHUTDOWN && find_frame(memory, vcpu_fd, &access->gpa)) {
		access->is_frame = true;
		access->is_write = true;
		return MEMORY_EXIT;
	}
	return NOT_A_MEMORY_EXIT;
}

/* Let a range of the single window show the other file. */
static int show(struct region *region, int fd, uint64_t first, uint64_t pages)
{
	void *address = host_at(region->shared_host, first);
	void *mapped = mmap(address, pages * PYVMM_PAGE_SIZE, PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_FIXED, fd, (off_t)(first * PYVMM_PAGE_SIZE));

	return mapped == MAP_FAILED ? -errno : 0;
}

static int protect(void *base, uint64_t first, uint64_t pages, int protection)
{
	return mprotect(host_at(base, first), pages * PYVMM_PAGE_SIZE, protection) < 0 ? -errno : 0;
}

/* One of a region's two sides: its file, its mapping and its window. */
struct side {
	int fd;
	void *host;
	struct slot_window *window;
};

static int make_present(struct region *region, const struct side *side, uint64_t first,
			uint64_t pages)
{
	if (!region_has_two_views(region))
		return show(region, side->fd, first, pages);
	if (region->mechanism == MECHANISM_SLOTS)
		return slot_window_fill(side->window, first, pages);
	return protect(side->host, first, pages, PROT_READ | PROT_WRITE);
}

static int make_absent(struct region *region, const struct side *side, uint64_t first,
		       uint64_t pages)
{
	if (!region_has_two_views(region))
		return 0; /* show() has replaced it */
	if (region->mechanism == MECHANISM_SLOTS)
		return slot_window_clear(side->window, first, pages);
	return protect(side->host, first, pages, PROT_NONE);
}

/* What can fail for want of memory comes first, and is undone. */
static int move_pages(struct region *region, const struct side *from, const struct side *to,
		      enum page_state state, uint64_t first, uint64_t pages)
{
	const uint64_t offset = first * PYVMM_PAGE_SIZE, size = pages * PYVMM_PAGE_SIZE;
	uint64_t page;
	int error;

	error = page_range_allocate(to->fd, offset, size);
	if (!error)
		error = make_present(region, to, first, pages);
	if (!error)
		error = make_absent(region, from, first, pages);
	if (!error)
		error = page_range_punch(from->fd, offset, size);
	if (!error)
		return 0;
	for (page = first; page < first + pages; page++) {
		if (region->states[page] == state)
			continue;
		make_absent(region, to, page, 1);
		make_present(region, from, page, 1);
		page_range_punch(to->fd, page * PYVMM_PAGE_SIZE, PYVMM_PAGE_SIZE);
	}
	return error;
}

static int to_private(struct region *region, uint64_t first, uint64_t pages)
{
	const struct side from = { region->shared_fd, region->shared_host, &region->shared_window };
	const struct side to = { region->private_fd, region->private_host,
				 &region->private_window };

	return move_pages(region, &from, &to, PAGE_PRIVATE, first, pages);
}

static int to_shared(struct region *region, uint64_t first, uint64_t pages)
{
	const struct side from = { region->private_fd, region->private_host,
				   &region->private_window };
	const struct side to = { region->shared_fd, region->shared_host, &region->shared_window };

	return move_pages(region, &from, &to, PAGE_SHARED, first, pages);
}

static void complete(const struct memory *memory, struct region *region, int vcpu_fd,
		     struct kvm_run *run, const struct memory_access *access)
{
	const bool is_private = view_has(region->private_gpa, region->pages, access->gpa) &&
				region_has_two_views(region);
	const uint64_t view = is_private ? region->private_gpa : region->shared_gpa;
	char *host = is_private ? region->private_host : region->shared_host;
	const uint64_t offset = access->gpa - view;
	const uint64_t room = region->pages * PYVMM_PAGE_SIZE - offset;
	uint64_t size = access->size;

	if (access->is_frame)
		hand_over_event(memory, region->vm_fd, vcpu_fd);
	if (access->is_frame || access->is_fetch)
		return;
	if (size > sizeof(run->mmio.data))
		size = sizeof(run->mmio.data);
	if (size > room)
		size = room;
	if (access->is_write)
		memcpy(host + offset, run->mmio.data, size);
	else
		memcpy(run->mmio.data, host + offset, size);
}

const struct backend backend_emulated = {
	.name = "emulated",
	.synced_registers = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS,
	.attach = attach,
	.detach = delete_windows,
	.recognise = recognise,
	.to_private = to_private,
	.to_shared = to_shared,
	.complete = complete,
	.find_rest = find_pushed_words,
};
