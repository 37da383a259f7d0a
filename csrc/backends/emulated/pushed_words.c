/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "pushed_words.h"

#include <string.h>

#include "registers.h"

#define MOST_PUSHED_WORDS 8u
#define RFLAGS_INTERRUPTS_ON 0x200u
#define VECTORS 256u
#define TABLE_SIZE (VECTORS * 4u)
#define LONGEST_CODE 7u
#define LONGEST_WRITE 8u
#define LONGEST_STORE 12u /* bytes of an instruction that are looked at */

#define OPERAND_SIZE 0x66
#define PUSHA 0x60
#define PUSH_WORD 0x68
#define PUSH_BYTE 0x6A
#define MOV_FROM_AL 0xA2
#define MOV_FROM_AX 0xA3
#define GROUP_5 0xFF /* PUSH, with 6 in its ModRM */
#define CALL_FAR 0x9A
#define INT3 0xCC
#define INT 0xCD
#define INTO 0xCE

struct pushed_word {
	uint64_t gpa;
	uint32_t size;
	uint32_t value;
};

/* A vCPU behind an instruction whose last write was `value` at SS:SP + at * size. */
struct push {
	const struct memory *memory;
	const struct kvm_regs *regs;
	const struct kvm_sregs *sregs;
	uint32_t size;
	uint32_t at;
	uint32_t value;
	bool raced; /* pages may have changed since */
};

static uint64_t stack_gpa(const struct push *push, uint32_t at)
{
	return push->sregs->ss.base + ((push->regs->rsp + at * push->size) & 0xFFFF);
}

/* The words from `first` on; values[0] is on top of the stack. */
static uint32_t words_above(const struct push *push, const uint32_t *values, uint32_t count,
			    struct pushed_word *words)
{
	uint32_t at, found = 0;

	for (at = push->at + 1; at < count; at++)
		words[found++] = (struct pushed_word){ stack_gpa(push, at), push->size, values[at] };
	return found;
}

static uint64_t code_gpa(const struct push *push, uint32_t before)
{
	return push->sregs->cs.base + ((push->regs->rip - before) & 0xFFFF);
}

/* The word may be a part of what was written from there: KVM splits at pages. */
static bool is_where_it_wrote(const struct push *push, uint64_t offset)
{
	const struct kvm_sregs *sregs = push->sregs;
	const struct kvm_segment *segments[] = { &sregs->ss, &sregs->ds, &sregs->es,
						 &sregs->fs, &sregs->gs, &sregs->cs };
	uint32_t i;

	for (i = 0; i < sizeof(segments) / sizeof(segments[0]); i++) {
		if (stack_gpa(push, push->at) - (segments[i]->base + offset) < LONGEST_WRITE)
			return true;
	}
	return false;
}

/* Whether an instruction of which code[modrm], code[modrm - 1] ... code[0] is the end wrote there. */
static bool writes_by_modrm(const struct push *push, const uint8_t *code, uint32_t modrm)
{
	const struct kvm_regs *regs = push->regs;
	const uint64_t base16[] = { regs->rbx + regs->rsi, regs->rbx + regs->rdi,
				    regs->rbp + regs->rsi, regs->rbp + regs->rdi,
				    regs->rsi, regs->rdi, regs->rbp, regs->rbx };
	const uint64_t base32[] = { regs->rax, regs->rcx, regs->rdx, regs->rbx,
				    0, regs->rbp, regs->rsi, regs->rdi };
	const uint32_t mode = code[modrm] >> 6, rm = code[modrm] & 7;
	const bool is_plain = mode == 0 && rm == 6; /* only a displacement */
	const uint32_t length = mode == 1 ? 1 : mode == 2 || is_plain ? 2 : 0;
	int64_t offset = 0;

	if (mode == 3 || length > modrm)
		return false;
	if (length == 1)
		offset = (int8_t)code[modrm - 1];
	if (length == 2)
		offset = (int16_t)(code[modrm - 1] | code[modrm - 2] << 8);
	if (mode < 2 && rm != 4 && !(mode == 0 && rm == 5) &&
	    is_where_it_wrote(push, (uint32_t)(base32[rm] + (uint64_t)offset)))
		return true;
	return is_where_it_wrote(push, ((is_plain ? 0 : base16[rm]) + (uint64_t)offset) & 0xFFFF);
}

/* Whether the byte before IP can be an operand: of an instruction that wrote just this word. */
static bool is_operand(const struct push *push)
{
	uint8_t code[LONGEST_STORE]; /* code[0] lies right before IP */
	uint32_t length, size, i;

	for (length = 0; length < LONGEST_STORE; length++) {
		if (!memory_peek(push->memory, code_gpa(push, length + 1), &code[length], 1))
			break;
	}
	if (push->at == 0 && length > 1 && code[1] == PUSH_BYTE && push->value == code[0])
		return true;
	for (size = 2; push->at == 0 && size <= 4 && size < length; size += 2) {
		const uint32_t mask = push->size == 2 ? 0xFFFF : UINT32_MAX;
		uint32_t value = 0;

		for (i = 0; i < size; i++)
			value = value << 8 | code[i];
		if (code[size] == PUSH_WORD && (value & mask) == push->value)
			return true;
	}
	if (length > 2 && (code[2] == MOV_FROM_AL || code[2] == MOV_FROM_AX) &&
	    is_where_it_wrote(push, (uint64_t)(code[1] | code[0] << 8)))
		return true;
	for (i = 1; i < length; i++) {
		/* PUSH from memory: what is behind the ModRM is a displacement of one or two bytes. */
		if (push->at == 0 && i <= 2 && i + 1 < length && code[i + 1] == GROUP_5 &&
		    (code[i] >> 3 & 7) == 6)
			return true;
		if (writes_by_modrm(push, code, i))
			return true;
	}
	return false;
}

/* Words on pages that were there hold what was pushed. */
static bool agrees_with_memory(const struct push *push, const uint32_t *values)
{
	const uint64_t absent = stack_gpa(push, push->at) / PYVMM_PAGE_SIZE;
	uint32_t i;

	for (i = 0; i < MOST_PUSHED_WORDS && !push->raced; i++) {
		uint32_t found = 0;

		if (stack_gpa(push, i) / PYVMM_PAGE_SIZE != absent &&
		    memory_peek(push->memory, stack_gpa(push, i), &found, push->size) &&
		    found != values[i])
			return false;
	}
	return true;
}

static uint32_t pushed_by_pusha(const struct push *push, struct pushed_word *words)
{
	const struct kvm_regs *regs = push->regs;
	const uint64_t pointer = (regs->rsp & ~0xFFFFull) |
				 ((regs->rsp + MOST_PUSHED_WORDS * push->size) & 0xFFFF);
	const uint64_t registers[MOST_PUSHED_WORDS] = { regs->rdi, regs->rsi, regs->rbp, pointer,
							regs->rbx, regs->rdx, regs->rcx, regs->rax };
	const uint32_t mask = push->size == 2 ? 0xFFFF : UINT32_MAX;
	uint32_t values[MOST_PUSHED_WORDS], i;
	uint8_t opcode, prefix;

	if (!memory_peek(push->memory, code_gpa(push, 1), &opcode, 1) || opcode != PUSHA)
		return 0;
	if (push->size == 4 && (!memory_peek(push->memory, code_gpa(push, 2), &prefix, 1) ||
				prefix != OPERAND_SIZE))
		return 0;
	for (i = 0; i < MOST_PUSHED_WORDS; i++)
		values[i] = (uint32_t)registers[i] & mask;
	if (push->value != values[push->at] || is_operand(push) || !agrees_with_memory(push, values))
		return 0;
	return words_above(push, values, MOST_PUSHED_WORDS, words);
}

/* The CS of code that lies in RAM right before IP; best the vCPU's own. */
static bool find_segment(const struct push *push, const uint8_t *code, uint32_t length,
			 uint32_t ip, uint32_t *segment)
{
	const struct memory *memory = push->memory;
	bool found = false;
	uint32_t i;

	for (i = 0; i < memory->ram_count; i++) {
		const struct ram *ram = &memory->ram[i];
		const char *at = ram->host, *end = at + ram->size;

		while ((at = memmem(at, (size_t)(end - at), code, length))) {
			const uint64_t behind = ram->gpa + (uint64_t)(at - ram->host) + length;
			const uint64_t base = behind - ip;

			at++;
			if (behind < ip || base % 16 || base >> 4 > 0xFFFF)
				continue;
			/* The interrupt table has all bytes that there are, and is no code. */
			if (behind - length - push->sregs->idt.base < TABLE_SIZE)
				continue;
			if (!found || base >> 4 == push->sregs->cs.selector)
				*segment = (uint32_t)(base >> 4);
			found = true;
		}
	}
	return found;
}

static uint32_t pushed_by_far_call(const struct push *push, struct pushed_word *words)
{
	const uint32_t size = push->size, target = (uint32_t)push->regs->rip;
	const uint16_t segment = push->sregs->cs.selector;
	uint8_t code[LONGEST_CODE] = { CALL_FAR };
	uint32_t values[2] = { push->value };

	memcpy(code + 1, &target, size);
	memcpy(code + 1 + size, &segment, sizeof(segment));
	if (push->at != 0 || !find_segment(push, code, 1 + size + 2, push->value, &values[1]))
		return 0;
	return words_above(push, values, 2, words);
}

static uint32_t pushed_by_interrupt(const struct push *push, bool interrupts_on,
				    struct pushed_word *words)
{
	uint32_t values[3] = { 0, 0, (uint32_t)push->regs->rflags & 0xFFFF }, vector;
	uint16_t table[VECTORS][2], ip;

	if (push->size != 2 || push->at > 1 ||
	    !memory_peek(push->memory, push->sregs->idt.base, table, sizeof(table)))
		return 0;
	if (interrupts_on)
		values[2] |= RFLAGS_INTERRUPTS_ON;
	values[push->at] = push->value;
	if (push->at == 1) { /* IP lies in another page, which was there */
		if (!memory_peek(push->memory, stack_gpa(push, 0), &ip, sizeof(ip)))
			return 0;
		values[0] = ip;
	}
	for (vector = 0; vector < VECTORS; vector++) {
		const uint8_t code[] = { INT, (uint8_t)vector }, three = INT3, overflow = INTO;
		uint32_t segment;

		if (table[vector][0] != push->regs->rip ||
		    table[vector][1] != push->sregs->cs.selector)
			continue;
		if (!find_segment(push, code, 2, values[0], &segment) &&
		    !(vector == 3 && find_segment(push, &three, 1, values[0], &segment)) &&
		    !(vector == 4 && find_segment(push, &overflow, 1, values[0], &segment)))
			continue;
		if (push->at == 0)
			values[1] = segment;
		return words_above(push, values, 3, words);
	}
	return 0;
}

/* The words that lie above the one in kvm_run, lowest first; how many. */
static uint32_t find_pushed_words(const struct memory *memory, const struct memory_exit *exit,
				  struct pushed_word words[MOST_PUSHED_WORDS])
{
	const struct kvm_run *run = exit->run;
	struct push push = { .memory = memory, .size = run->mmio.len, .raced = exit->raced };
	struct registers registers;
	uint64_t offset;
	uint32_t found;

	if ((push.size != 2 && push.size != 4) || !get_registers(exit, &registers))
		return 0;
	push.regs = registers.regs;
	push.sregs = registers.sregs;
	offset = run->mmio.phys_addr - push.sregs->ss.base;
	if (push.sregs->cr0 & CR0_PROTECTED_MODE || offset > 0xFFFF)
		return 0;
	offset = (offset - push.regs->rsp) & 0xFFFF;
	push.at = (uint32_t)offset / push.size;
	if (offset % push.size || push.at >= MOST_PUSHED_WORDS)
		return 0;
	memcpy(&push.value, run->mmio.data, push.size);
	if ((found = pushed_by_pusha(&push, words)))
		return found;
	if ((found = pushed_by_interrupt(&push, exit->interrupts_on, words)))
		return found;
	return pushed_by_far_call(&push, words);
}

/*
 * With the lock of the region that has `gpa`. lost: the numbers of the pages that the
 * instruction is lost with, of the exit and maybe of one more. What went to other pages the
 * kernel has written, but for those that it may have found absent before somebody else
 * converted them.
 */
static enum memory_verdict store_piece(struct memory *memory, struct region *region, uint64_t gpa,
				       void *bytes, uint64_t size, uint64_t lost[2],
				       struct memory_exit *exit)
{
	const uint64_t page = gpa / PYVMM_PAGE_SIZE;
	const bool is_lost = page == lost[0] || page == lost[1];

	if (region_is_absent(region, gpa)) {
		enum memory_verdict verdict;

		/* Its page was taken away since, and with it what was in it. */
		if (is_lost)
			return MEMORY_DONE;
		verdict = memory_convert_page(memory, region, gpa, exit);
		if (verdict != MEMORY_DONE) {
			exit->access = (struct memory_access){ .gpa = gpa, .size = (uint32_t)size,
							       .is_write = true };
			exit->wanted = region_wants(region, gpa);
			return verdict;
		}
		lost[1] = page;
	} else if (!is_lost && !exit->raced) {
		return MEMORY_DONE;
	}
	exit->error = memory_transfer(region, gpa, bytes, size, true);
	return exit->error ? MEMORY_FAILED : MEMORY_DONE;
}

/* The same with the lock of this region alone, which may have to be given up for another's. */
static enum memory_verdict store_somewhere(struct memory *memory, struct region *locked,
					   uint64_t gpa, void *bytes, uint64_t size,
					   uint64_t lost[2], struct memory_exit *exit)
{
	struct region *region = memory_find(memory, gpa);
	enum memory_verdict verdict;

	if (!region)
		return MEMORY_DONE;
	if (region == locked)
		return store_piece(memory, region, gpa, bytes, size, lost, exit);
	pthread_mutex_unlock(&locked->lock);
	pthread_mutex_lock(&region->lock);
	verdict = store_piece(memory, region, gpa, bytes, size, lost, exit);
	pthread_mutex_unlock(&region->lock);
	pthread_mutex_lock(&locked->lock);
	return verdict;
}

enum memory_verdict store_pushed_words(struct memory *memory, struct region *region,
				       struct memory_exit *exit)
{
	uint64_t lost[2] = { exit->access.gpa / PYVMM_PAGE_SIZE, UINT64_MAX };
	struct pushed_word words[MOST_PUSHED_WORDS];
	const uint32_t count = find_pushed_words(memory, exit, words);
	enum memory_verdict verdict = MEMORY_DONE;
	uint32_t i;

	for (i = 0; i < count && verdict == MEMORY_DONE; i++) {
		uint64_t gpa = words[i].gpa, left = words[i].size, size;
		char *bytes = (char *)&words[i].value;

		for (; left > 0 && verdict == MEMORY_DONE; bytes += size, gpa += size, left -= size) {
			size = PYVMM_PAGE_SIZE - gpa % PYVMM_PAGE_SIZE;
			if (size > left)
				size = left;
			verdict = store_somewhere(memory, region, gpa, bytes, size, lost, exit);
		}
	}
	return verdict;
}
