/* SPDX-License-Identifier: MIT */
#include "far_calls.h"

#include <string.h>

#define FAR_CALL 0x9A
#define GROUP_5 0xFF
#define CALL_FAR_POINTER 3u /* of group 5 */
#define RPL 3u

/* What a look at memory found. */
enum look {
	LOOK_READ,
	LOOK_NOTHING, /* neither code nor a pointer can have been there */
	LOOK_HIDDEN, /* a page of a region, which had it before it was converted */
};

static enum look look_at(const struct push *push, uint64_t linear, void *bytes, uint64_t size)
{
	uint64_t gpa, at;

	if (linear_peek(&push->space, linear, bytes, size))
		return LOOK_READ;
	for (at = 0; at < size; at++) {
		if (linear_to_gpa(&push->space, linear + at, &gpa) &&
		    memory_find(push->space.memory, gpa))
			return LOOK_HIDDEN;
	}
	return LOOK_NOTHING;
}

/* An instruction that ends right where the pushed IP points. */
struct code {
	const uint8_t *bytes;
	uint32_t length;
	uint32_t at;
	uint32_t operand_bits;
	uint32_t address_bits;
	uint32_t rex;
	const struct kvm_segment *segment; /* of a prefix, or NULL */
};

static uint64_t of_bits(uint64_t value, uint32_t bits)
{
	return bits == 64 ? value : value & ((1ull << bits) - 1);
}

static uint64_t general_register(const struct push *push, uint32_t number)
{
	const struct kvm_regs *regs = push->regs;
	/* The call has moved the stack pointer by two words. */
	const uint64_t registers[] = {
		regs->rax, regs->rcx, regs->rdx, regs->rbx, regs->rsp + 2ull * push->size,
		regs->rbp, regs->rsi, regs->rdi, regs->r8,  regs->r9,
		regs->r10, regs->r11, regs->r12, regs->r13, regs->r14,
		regs->r15
	};

	return registers[number & 15];
}

static void take_prefixes(const struct push *push, struct code *code)
{
	const struct kvm_sregs *sregs = push->sregs;

	for (; code->at < code->length; code->at++) {
		switch (code->bytes[code->at]) {
		case 0x66:
			code->operand_bits = push->bits == 16 ? 32 : 16;
			break;
		case 0x67:
			code->address_bits = push->bits == 32 ? 16 : 32;
			break;
		case 0x26:
			code->segment = &sregs->es;
			break;
		case 0x2E:
			code->segment = &sregs->cs;
			break;
		case 0x36:
			code->segment = &sregs->ss;
			break;
		case 0x3E:
			code->segment = &sregs->ds;
			break;
		case 0x64:
			code->segment = &sregs->fs;
			break;
		case 0x65:
			code->segment = &sregs->gs;
			break;
		case 0xF0:
		case 0xF2:
		case 0xF3:
			break;
		default:
			if (push->bits == 64 && (code->bytes[code->at] & 0xF0) == 0x40)
				code->rex = code->bytes[code->at++];
			if (code->rex & 8)
				code->operand_bits = 64;
			return;
		}
	}
}

/* A displacement that is all that is left of the code. */
static bool take_rest(const struct code *code, uint32_t size, uint64_t *value)
{
	uint64_t found = 0;

	if (code->length - code->at != size)
		return false;
	memcpy(&found, code->bytes + code->at, size);
	*value = size == 1   ? (uint64_t)(int8_t)found
		 : size == 2 ? (uint64_t)(int16_t)found
			     : (uint64_t)(int32_t)found;
	return true;
}

/* Addresses of 16 bits. */
static bool take_short_address(const struct push *push, struct code *code, uint32_t modrm,
			       uint64_t *offset, bool *by_stack)
{
	const struct kvm_regs *regs = push->regs;
	const uint64_t bases[] = { regs->rbx + regs->rsi,
				   regs->rbx + regs->rdi,
				   regs->rbp + regs->rsi,
				   regs->rbp + regs->rdi,
				   regs->rsi,
				   regs->rdi,
				   regs->rbp,
				   regs->rbx };
	const uint32_t mode = modrm >> 6, rm = modrm & 7;
	const bool is_plain = mode == 0 && rm == 6;
	uint64_t displacement = 0;

	*by_stack = !is_plain && (rm == 2 || rm == 3 || rm == 6);
	if (!take_rest(code, is_plain || mode == 2 ? 2 : mode, &displacement))
		return false;
	*offset = (is_plain ? 0 : bases[rm]) + displacement;
	return true;
}

/* Addresses of 32 and 64 bits: SIB, displacement, relative to IP. */
static bool take_long_address(const struct push *push, struct code *code, uint32_t modrm,
			      uint64_t *offset, bool *by_stack)
{
	const uint32_t mode = modrm >> 6, rm = modrm & 7;
	uint32_t base = rm, index;
	uint64_t displacement = 0;
	bool has_base = true;

	*offset = 0;
	if (rm == 4) {
		const uint32_t sib = code->at < code->length ? code->bytes[code->at] : 0;

		if (code->at++ >= code->length)
			return false;
		base = sib & 7;
		index = (sib >> 3 & 7) | (code->rex & 2) << 2;
		if (index != 4)
			*offset = general_register(push, index) << (sib >> 6);
	}
	if (mode == 0 && base == 5) {
		has_base = false;
		if (!take_rest(code, 4, &displacement))
			return false;
		if (rm == 5 && push->bits == 64)
			displacement += push->value; /* the next instruction's address */
	} else if (!take_rest(code, mode == 2 ? 4 : mode, &displacement)) {
		return false;
	}
	*by_stack = has_base && !(code->rex & 1) && (base == 4 || base == 5);
	if (has_base)
		*offset += general_register(push, base | (code->rex & 1) << 3);
	*offset += displacement;
	return true;
}

static uint64_t segment_base(const struct push *push, const struct code *code, bool by_stack)
{
	const struct kvm_sregs *sregs = push->sregs;
	const struct kvm_segment *segment = code->segment;

	if (!segment)
		segment = by_stack ? &sregs->ss : &sregs->ds;
	if (push->bits == 64 && segment != &sregs->fs && segment != &sregs->gs)
		return 0;
	return segment->base;
}

/* Whether a far pointer leads to where the vCPU is. */
static bool leads_here(const struct push *push, const uint8_t *pointer, uint32_t bits)
{
	uint64_t offset = 0;
	uint16_t selector;

	memcpy(&offset, pointer, bits / 8);
	memcpy(&selector, pointer + bits / 8, sizeof(selector));
	return offset == of_bits(push->regs->rip, bits) &&
	       (selector | RPL) == (push->sregs->cs.selector | RPL);
}

/* Whether the code, all of it, may be a far call that has led here. */
static bool may_have_called(const struct push *push, struct code *code)
{
	uint8_t pointer[sizeof(uint64_t) + sizeof(uint16_t)];
	uint64_t offset = 0, linear;
	bool by_stack = false, taken;
	uint32_t opcode, modrm;

	take_prefixes(push, code);
	if (code->length - code->at < 2)
		return false;
	opcode = code->bytes[code->at++];
	if (opcode == FAR_CALL && push->bits != 64)
		return code->length - code->at == code->operand_bits / 8 + sizeof(uint16_t) &&
		       leads_here(push, code->bytes + code->at, code->operand_bits);
	modrm = code->bytes[code->at++];
	if (opcode != GROUP_5 || (modrm >> 3 & 7) != CALL_FAR_POINTER || modrm >> 6 == 3)
		return false;
	taken = code->address_bits == 16 ? take_short_address(push, code, modrm, &offset, &by_stack)
					 : take_long_address(push, code, modrm, &offset, &by_stack);
	if (!taken)
		return false;
	linear = segment_base(push, code, by_stack) + of_bits(offset, code->address_bits);
	switch (look_at(push, linear, pointer, code->operand_bits / 8 + sizeof(uint16_t))) {
	case LOOK_READ:
		return leads_here(push, pointer, code->operand_bits);
	case LOOK_HIDDEN:
		return true;
	default:
		return false;
	}
}

bool may_be_far_call(const struct push *push)
{
	uint8_t before[LONGEST_INSTRUCTION];
	enum look look = LOOK_READ;
	uint32_t length, known = 0;
	struct code code;

	/* Byte by byte: the page before may be missing, and with it the beginning. */
	for (; known < LONGEST_INSTRUCTION; known++) {
		const uint64_t at = (push->value - known - 1) & code_mask(push->sregs);

		look = look_at(push, code_base(push->sregs) + at,
			       &before[LONGEST_INSTRUCTION - 1 - known], 1);
		if (look != LOOK_READ)
			break;
	}
	for (length = 2; length <= known; length++) {
		code = (struct code){
			.bytes = before + LONGEST_INSTRUCTION - length,
			.length = length,
			.operand_bits = push->bits == 16 ? 16 : 32,
			.address_bits = push->bits,
		};
		if (may_have_called(push, &code))
			return true;
	}
	return look == LOOK_HIDDEN;
}
