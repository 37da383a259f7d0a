/* SPDX-License-Identifier: MIT */
#include "frames.h"

#include <string.h>
#include <sys/ioctl.h>

#include "linear.h"
#include "registers.h"

#define REAL_MODE_FRAME 6 /* FLAGS, CS and IP, 16 bits each */
#define PROTECTED_MODE_FRAME 16 /* the same and an error code, 32 bits each */
#define LONG_MODE_FRAME 48 /* SS, RSP, FLAGS, CS, RIP and an error code, 64 bits each */
#define RFLAGS_SINGLE_STEP 0x100
#define RFLAGS_INTERRUPTS_ON 0x200
#define RFLAGS_RESUME 0x10000
#define DEBUG_EXCEPTION 1
#define LAPIC_IN_SERVICE 0x100 /* eight words, 16 bytes apart */

/*
 * The first byte of the next instruction that lies in an absent page, or else in
 * a region at all: its page may have been absent for the moment of a conversion.
 */
bool find_fetch(const struct memory *memory, struct memory_exit *exit)
{
	struct registers registers;
	uint64_t linear, byte;
	bool found = false;

	if (!get_registers(exit, &registers))
		return false;
	linear = code_base(registers.sregs) + registers.regs->rip;
	for (byte = 0; byte < LONGEST_INSTRUCTION; byte++) {
		struct kvm_translation translation = { .linear_address = linear + byte };
		const struct region *region;

		if (ioctl(exit->vcpu_fd, KVM_TRANSLATE, &translation) < 0 || !translation.valid)
			break;
		region = memory_find(memory, translation.physical_address);
		if (region && region_has_two_views(region)) {
			if (!found)
				exit->access.gpa = translation.physical_address;
			found = true;
			if (region_is_absent(region, translation.physical_address)) {
				exit->access.gpa = translation.physical_address;
				return true;
			}
		}
		/* The page is there: go on with the first byte of the next one. */
		byte += PYVMM_PAGE_SIZE - 1 - (linear + byte) % PYVMM_PAGE_SIZE;
	}
	return found;
}

/* Bytes that an event pushes at most, from a stack pointer that long mode aligns first. */
static uint64_t frame_size(const struct registers *registers, uint64_t *pointer)
{
	*pointer = registers->regs->rsp;
	if (!(registers->sregs->cr0 & CR0_PROTECTED_MODE))
		return REAL_MODE_FRAME;
	if (!(registers->sregs->efer & EFER_LONG_MODE_ACTIVE))
		return PROTECTED_MODE_FRAME;
	*pointer &= ~(uint64_t)15;
	return LONG_MODE_FRAME;
}

/*
 * The first byte from the top of a frame that was to be pushed to an absent page, or else to a
 * region at all, as for a fetch. In protected and long mode it is one of privilege level 0: at
 * another the frame is on a stack that the TSS names.
 */
bool find_frame(const struct memory *memory, struct memory_exit *exit)
{
	struct registers registers;
	struct address_space space;
	uint64_t byte, size, pointer;
	bool found = false;

	if (!get_registers(exit, &registers))
		return false;
	if (registers.sregs->cr0 & CR0_PROTECTED_MODE && registers.sregs->ss.dpl != 0)
		return false;
	size = frame_size(&registers, &pointer);
	space = address_space(memory, exit->vcpu_fd, registers.sregs);
	for (byte = 1; byte <= size; byte++) {
		const uint64_t linear = stack_base(registers.sregs) +
					((pointer - byte) & stack_mask(registers.sregs));
		const struct region *region;
		uint64_t address;

		if (!linear_to_gpa(&space, linear, &address))
			return found;
		region = memory_find(memory, address);
		if (!region || !region_has_two_views(region))
			continue;
		if (!found)
			exit->access.gpa = address;
		found = true;
		if (region_is_absent(region, address)) {
			exit->access.gpa = address;
			return true;
		}
	}
	return found;
}

/* Whether the vCPU is at a string instruction with REP, which sets RF between two rounds. */
static bool repeats_a_string(const struct address_space *space, const struct registers *registers)
{
	const uint64_t base = code_base(registers->sregs), mask = code_mask(registers->sregs);
	bool repeats = false;
	uint64_t at;

	for (at = 0; at < LONGEST_INSTRUCTION; at++) {
		uint8_t code;

		if (!linear_peek(space, base + ((registers->regs->rip + at) & mask), &code, 1))
			return false;
		switch (code) {
		case 0xF2:
		case 0xF3: /* REPNE, REP */
			repeats = true;
			break;
		case 0x26:
		case 0x2E:
		case 0x36:
		case 0x3E:
		case 0x64:
		case 0x65: /* segments */
		case 0x66:
		case 0x67: /* sizes */
			break;
		case 0x40 ... 0x4F: /* REX */
			if (mask != UINT64_MAX)
				return false;
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

static bool is_in_service_of_pic(int vm_fd, uint32_t vector)
{
	struct kvm_irqchip chip = { .chip_id = KVM_IRQCHIP_PIC_MASTER };

	for (; chip.chip_id <= KVM_IRQCHIP_PIC_SLAVE; chip.chip_id++) {
		uint32_t line;

		if (ioctl(vm_fd, KVM_GET_IRQCHIP, &chip) < 0)
			return false; /* no interrupt controller */
		line = vector - chip.chip.pic.irq_base;
		if (line < 8 && chip.chip.pic.isr >> line & 1)
			return true;
	}
	return false;
}

static bool is_in_service_of_lapic(int vcpu_fd, uint32_t vector)
{
	struct kvm_lapic_state lapic;
	uint32_t word;

	if (ioctl(vcpu_fd, KVM_GET_LAPIC, &lapic) < 0)
		return false;
	memcpy(&word, lapic.regs + LAPIC_IN_SERVICE + vector / 32 * 16, sizeof(word));
	return word >> vector % 32 & 1;
}

/*
 * What was lost with its frame, and does not come again by itself. A fault does, when its
 * instruction is repeated: KVM has set RF for it. An interrupt was taken from the PIC or the
 * LAPIC, and with interrupts on it is the last one in service. The trap of a single step lies behind its
 * instruction.
 */
void hand_over_event(const struct memory *memory, int vm_fd, const struct memory_exit *exit)
{
	struct kvm_vcpu_events events;
	struct registers registers;
	struct address_space space;
	uint64_t flags;

	if (!get_registers(exit, &registers) ||
	    ioctl(exit->vcpu_fd, KVM_GET_VCPU_EVENTS, &events) < 0 || events.interrupt.injected ||
	    events.exception.injected)
		return;
	flags = registers.regs->rflags;
	space = address_space(memory, exit->vcpu_fd, registers.sregs);
	if (flags & RFLAGS_RESUME && !repeats_a_string(&space, &registers))
		return;
	if (flags & RFLAGS_INTERRUPTS_ON &&
	    (is_in_service_of_pic(vm_fd, events.interrupt.nr) ||
	     is_in_service_of_lapic(exit->vcpu_fd, events.interrupt.nr))) {
		events.interrupt.injected = 1;
		events.interrupt.soft = 0;
	} else {
		if (!(flags & RFLAGS_SINGLE_STEP) || events.exception.nr != DEBUG_EXCEPTION)
			return;
		events.exception.injected = 1;
		events.exception.has_error_code = 0;
	}
	ioctl(exit->vcpu_fd, KVM_SET_VCPU_EVENTS, &events);
}
