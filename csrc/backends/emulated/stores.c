/* SPDX-License-Identifier: MIT */
#include "stores.h"

#include "registers.h"

#define LONGEST_WRITE 8u
#define NO_SEGMENT 6

enum segment { ES, CS, SS, DS, FS, GS };

/* An instruction's code as far as it can be read, and its parts. */
struct code {
	uint8_t bytes[LONGEST_INSTRUCTION];
	uint32_t length; /* bytes that are there */
	uint32_t at; /* of the opcode, then of what is behind it */
	bool wide; /* operands of 32 bits */
	bool wide_address;
	bool repeats;
	uint32_t segment; /* enum segment, or NO_SEGMENT */
	uint32_t modrm;
	uint64_t address; /* what ModRM says, with its segment's base */
};

static uint64_t segment_base(const struct push *push, uint32_t segment)
{
	const struct kvm_sregs *sregs = push->sregs;
	const struct kvm_segment *const segments[] = { &sregs->es, &sregs->cs, &sregs->ss,
						       &sregs->ds, &sregs->fs, &sregs->gs };

	return segments[segment]->base;
}

static uint32_t segment_selector(const struct push *push, uint32_t segment)
{
	const struct kvm_sregs *sregs = push->sregs;
	const struct kvm_segment *const segments[] = { &sregs->es, &sregs->cs, &sregs->ss,
						       &sregs->ds, &sregs->fs, &sregs->gs };

	return segments[segment]->selector;
}

/* In the order in which instructions number them. */
static uint32_t general_register(const struct push *push, uint32_t number)
{
	const struct kvm_regs *regs = push->regs;
	const uint64_t registers[] = { regs->rax, regs->rcx, regs->rdx, regs->rbx,
				       regs->rsp, regs->rbp, regs->rsi, regs->rdi };

	return (uint32_t)registers[number];
}

/* The prefixes of what lies at CS:ip, which ends after at most `most` bytes. */
static bool read_code(const struct push *push, uint32_t ip, uint32_t most, struct code *code)
{
	const bool is_wide = push->bits == 32;

	*code = (struct code){ .wide = is_wide, .wide_address = is_wide, .segment = NO_SEGMENT };
	for (; code->length < most && code->length < LONGEST_INSTRUCTION; code->length++) {
		const uint64_t linear =
			push->sregs->cs.base + ((ip + code->length) & code_mask(push->sregs));

		if (!linear_peek(&push->space, linear, &code->bytes[code->length], 1))
			break;
	}
	for (; code->at < code->length; code->at++) {
		switch (code->bytes[code->at]) {
		case 0x66:
			code->wide = !is_wide;
			break;
		case 0x67:
			code->wide_address = !is_wide;
			break;
		case 0xF2:
		case 0xF3:
			code->repeats = true;
			break;
		case 0xF0:
			break;
		case 0x26:
		case 0x2E:
		case 0x36:
		case 0x3E:
			code->segment = code->bytes[code->at] >> 3 & 3;
			break;
		case 0x64:
		case 0x65:
			code->segment = code->bytes[code->at] - 0x64u + FS;
			break;
		default:
			return true;
		}
	}
	return false;
}

/* Bytes that are there, low one first. */
static bool take(struct code *code, uint32_t size, uint32_t *value)
{
	uint32_t i;

	*value = 0;
	if (size > code->length - code->at)
		return false;
	for (i = 0; i < size; i++)
		*value |= (uint32_t)code->bytes[code->at++] << 8 * i;
	return true;
}

/* Addresses of 32 bits: SIB and displacement. */
static bool take_wide_address(const struct push *push, struct code *code, uint32_t *offset,
			      bool *by_stack)
{
	const uint32_t mode = code->modrm >> 6, rm = code->modrm & 7;
	uint32_t sib, displacement = 0, base = rm;

	*offset = 0;
	if (rm == 4) {
		if (!take(code, 1, &sib))
			return false;
		base = sib & 7;
		if ((sib >> 3 & 7) != 4)
			*offset = general_register(push, sib >> 3 & 7) << (sib >> 6);
	}
	if (mode == 0 && base == 5) {
		*by_stack = false;
		if (!take(code, 4, &displacement))
			return false;
		*offset += displacement;
		return true;
	}
	*by_stack = base == 4 || base == 5;
	*offset += general_register(push, base);
	if (mode != 0 && !take(code, mode == 1 ? 1 : 4, &displacement))
		return false;
	*offset += mode == 1 ? (uint32_t)(int8_t)displacement : displacement;
	return true;
}

static bool take_short_address(const struct push *push, struct code *code, uint32_t *offset,
			       bool *by_stack)
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
	const uint32_t mode = code->modrm >> 6, rm = code->modrm & 7;
	const bool is_plain = mode == 0 && rm == 6; /* only a displacement */
	uint32_t displacement = 0;

	*by_stack = !is_plain && (rm == 2 || rm == 3 || rm == 6);
	if (mode != 0 || is_plain) {
		if (!take(code, mode == 1 ? 1 : 2, &displacement))
			return false;
	}
	if (mode == 1)
		displacement = (uint32_t)(int8_t)displacement;
	*offset = ((is_plain ? 0 : (uint32_t)bases[rm]) + displacement) & 0xFFFF;
	return true;
}

/* ModRM and its address, which is 0 for a register. */
static bool take_modrm(const struct push *push, struct code *code)
{
	bool by_stack = false, taken;
	uint32_t offset = 0;

	if (!take(code, 1, &code->modrm))
		return false;
	code->address = 0;
	if (code->modrm >> 6 == 3)
		return true;
	taken = code->wide_address ? take_wide_address(push, code, &offset, &by_stack)
				   : take_short_address(push, code, &offset, &by_stack);
	if (code->segment == NO_SEGMENT)
		code->segment = by_stack ? SS : DS;
	code->address = segment_base(push, code->segment) + offset;
	return taken;
}

/* The word may be a part of what was written from there: KVM splits at pages. */
static bool is_there(const struct push *push, uint64_t address)
{
	return push->linear - address < LONGEST_WRITE;
}

/* STOS, MOVS and INS have moved DI on by the size of what they wrote. */
static bool is_string_store(const struct push *push, const struct code *code, uint8_t opcode)
{
	const uint32_t mask = code->wide_address ? UINT32_MAX : 0xFFFF;
	const uint32_t size = opcode & 1 ? (code->wide ? 4 : 2) : 1;
	const uint32_t di = (uint32_t)push->regs->rdi;

	if (opcode != 0xA4 && opcode != 0xA5 && opcode != 0xAA && opcode != 0xAB &&
	    opcode != 0x6C && opcode != 0x6D)
		return false;
	return is_there(push, push->sregs->es.base + ((di - size) & mask)) ||
	       is_there(push, push->sregs->es.base + ((di + size) & mask));
}

/* Bytes of the immediate operand behind ModRM. */
static uint32_t immediate_size(const struct code *code, uint8_t opcode)
{
	const uint32_t operation = code->modrm >> 3 & 7, word = code->wide ? 4 : 2;

	switch (opcode) {
	case 0x80:
	case 0x82:
	case 0x83:
	case 0xC0:
	case 0xC1:
	case 0xC6:
		return 1;
	case 0x81:
	case 0xC7:
		return word;
	case 0xF6:
		return operation < 2 ? 1 : 0;
	case 0xF7:
		return operation < 2 ? word : 0;
	default:
		return 0;
	}
}

/* KVM splits a word at the end of a page: the exit may tell of its lower part. */
static bool size_fits(const struct push *push, uint32_t size)
{
	return size == push->size ||
	       (size > push->size && (push->gpa + push->size) % PYVMM_PAGE_SIZE == 0);
}

/* PUSH of what is in a register or in the code, and ENTER; the pushed word must be this one. */
static bool is_push(const struct push *push, struct code *code, uint8_t opcode)
{
	const uint32_t size = code->wide ? 4 : 2;
	uint32_t value, number = opcode & 7u;

	if (!size_fits(push, size))
		return false;
	if (opcode == 0xC8) /* BP is where the word is, which holds what BP was */
		return take(code, 3, &value) && code->at == code->length && value >> 16 == 0 &&
		       push->linear ==
			       push->sregs->ss.base + (push->regs->rbp & stack_mask(push->sregs));
	if (push->at != 0)
		return false;
	if (opcode >= 0x50 && opcode <= 0x57) {
		value = general_register(push, number) + (number == 4 ? size : 0);
	} else if (opcode == 0x06 || opcode == 0x0E || opcode == 0x16 || opcode == 0x1E) {
		value = segment_selector(push, opcode >> 3 & 3);
		/* A push of a segment may leave the upper half as it was. */
		return code->at == code->length && (push->value & 0xFFFF) == value;
	} else if (opcode == 0x9C) {
		value = (uint32_t)push->regs->rflags;
		return code->at == code->length && ((push->value ^ value) & 0xFFFF) == 0;
	} else if (opcode == 0x68) {
		if (!take(code, size, &value))
			return false;
	} else if (opcode == 0x6A) {
		if (!take(code, 1, &value))
			return false;
		value = (uint32_t)(int8_t)value;
	} else {
		return false;
	}
	return code->at == code->length && (value & word_mask(push)) == push->value;
}

/* With two bytes of opcode: those with ModRM, and PUSH of FS and GS. */
static bool is_long_store(const struct push *push, struct code *code)
{
	uint32_t opcode, immediate;

	if (!take(code, 1, &opcode))
		return false;
	if (opcode == 0xA0 || opcode == 0xA8)
		return code->at == code->length && push->at == 0 &&
		       (push->value & 0xFFFF) == segment_selector(push, opcode == 0xA0 ? FS : GS);
	if (!take_modrm(push, code) || code->modrm >> 6 == 3 || !is_there(push, code->address))
		return false;
	immediate = opcode == 0xA4 || opcode == 0xAC || opcode == 0xBA || opcode == 0xC5;
	return code->at + immediate == code->length;
}

static bool writes_by_modrm(uint8_t opcode)
{
	if (opcode < 0x40)
		return (opcode & 7) < 2; /* ADD ... XOR to memory */
	return (opcode >= 0x80 && opcode <= 0x8F && opcode != 0x8A && opcode != 0x8B &&
		opcode != 0x8D && opcode != 0x84 && opcode != 0x85 && opcode != 0x8E) ||
	       opcode == 0xC0 || opcode == 0xC1 || opcode == 0xC6 || opcode == 0xC7 ||
	       (opcode >= 0xD0 && opcode <= 0xD3) || (opcode >= 0xD8 && opcode <= 0xDF) ||
	       opcode == 0xF6 || opcode == 0xF7 || opcode >= 0xFE;
}

/* Whether the code, all of it, is an instruction that wrote the word. */
static bool wrote_it(const struct push *push, struct code *code)
{
	const uint8_t opcode = code->bytes[code->at++];
	uint32_t offset;

	if (opcode == 0x0F)
		return is_long_store(push, code);
	if (code->at == code->length && is_string_store(push, code, opcode))
		return true;
	if (opcode == 0xA2 || opcode == 0xA3) {
		const uint32_t segment = code->segment == NO_SEGMENT ? DS : code->segment;

		return take(code, code->wide_address ? 4 : 2, &offset) &&
		       code->at == code->length &&
		       is_there(push, segment_base(push, segment) + offset);
	}
	if (!writes_by_modrm(opcode))
		return is_push(push, code, opcode);
	if (!take_modrm(push, code) || code->at + immediate_size(code, opcode) != code->length)
		return false;
	if (opcode == 0xFF && (code->modrm >> 3 & 7) >= 2)
		return (code->modrm >> 3 & 7) == 6 && push->at == 0 &&
		       size_fits(push, code->wide ? 4 : 2);
	return code->modrm >> 6 != 3 && is_there(push, code->address);
}

bool is_store(const struct push *push)
{
	const uint32_t ip = (uint32_t)push->regs->rip;
	struct code code;
	uint32_t length;

	for (length = 1; length <= LONGEST_INSTRUCTION; length++) {
		if (read_code(push, ip - length, length, &code) && code.length == length &&
		    wrote_it(push, &code))
			return true;
	}
	/* Between two rounds of REP the vCPU is at the instruction. */
	return read_code(push, ip, LONGEST_INSTRUCTION, &code) && code.repeats &&
	       is_string_store(push, &code, code.bytes[code.at]);
}

/* Whether the code, all of it, is a near call to where the vCPU is. */
static bool calls(const struct push *push, struct code *code)
{
	const uint32_t size = code->wide ? 4 : 2, mask = code->wide ? UINT32_MAX : 0xFFFF;
	const uint8_t opcode = code->bytes[code->at++];
	struct kvm_regs before = *push->regs; /* by which it found its target */
	struct push call = *push;
	uint32_t target = 0;

	if (!size_fits(push, size))
		return false;
	if (opcode == 0xE8)
		return take(code, size, &target) && code->at == code->length &&
		       ((push->value + target) & mask) == push->regs->rip;
	before.rsp += size;
	call.regs = &before;
	if (opcode != 0xFF || !take_modrm(&call, code) || code->at != code->length ||
	    (code->modrm >> 3 & 7) != 2)
		return false;
	if (code->modrm >> 6 == 3)
		target = general_register(&call, code->modrm & 7) & mask;
	else if (!linear_peek(&push->space, code->address, &target, size))
		return false;
	return target == push->regs->rip;
}

bool is_near_call(const struct push *push)
{
	struct code code;
	uint32_t length;

	if (push->at != 0)
		return false;
	for (length = 2; length <= LONGEST_INSTRUCTION; length++) {
		if (read_code(push, (uint32_t)push->value - length, length, &code) &&
		    code.length == length && calls(push, &code))
			return true;
	}
	return false;
}
