/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "pushed_words.h"

#include <string.h>

#include "far_calls.h"
#include "registers.h"
#include "stores.h"

#define MOST_PUSHED_WORDS 8u
#define VECTORS 256u
#define OPERAND_SIZE 0x66
#define PUSHA 0x60

struct pushed_word {
	uint64_t linear;
	uint32_t size;
	uint32_t value;
};

static uint64_t stack_linear(const struct push *push, uint32_t at)
{
	const uint64_t pointer = push->regs->rsp + (uint64_t)at * push->size;

	return stack_base(push->sregs) + (pointer & stack_mask(push->sregs));
}

/* UINT64_MAX where nothing is mapped. */
static uint64_t stack_gpa(const struct push *push, uint32_t at)
{
	uint64_t gpa;

	return linear_to_gpa(&push->space, stack_linear(push, at), &gpa) ? gpa : UINT64_MAX;
}

/* The words from `first` on; values[0] is on top of the stack. */
static uint32_t words_above(const struct push *push, const uint32_t *values, uint32_t count,
			    struct pushed_word *words)
{
	uint32_t at, found = 0;

	for (at = push->at + 1; at < count; at++)
		words[found++] =
			(struct pushed_word){ stack_linear(push, at), push->size, values[at] };
	return found;
}

static bool has_code_before(const struct push *push, uint32_t before, uint8_t wanted)
{
	const uint64_t linear =
		push->sregs->cs.base + ((push->regs->rip - before) & code_mask(push->sregs));
	uint8_t code;

	return linear_peek(&push->space, linear, &code, 1) && code == wanted;
}

/* Words on pages that were there hold what was pushed. */
static bool agrees_with_memory(const struct push *push, const uint32_t *values, bool raced)
{
	const uint64_t absent = stack_gpa(push, push->at) / PYVMM_PAGE_SIZE;
	uint32_t i;

	for (i = 0; i < MOST_PUSHED_WORDS && !raced; i++) {
		uint32_t found = 0;

		if (stack_gpa(push, i) / PYVMM_PAGE_SIZE != absent &&
		    linear_peek(&push->space, stack_linear(push, i), &found, push->size) &&
		    found != values[i])
			return false;
	}
	return true;
}

static uint32_t pushed_by_pusha(const struct push *push, bool raced, struct pushed_word *words)
{
	const struct kvm_regs *regs = push->regs;
	const uint64_t mask = stack_mask(push->sregs);
	const uint64_t pointer =
		(regs->rsp & ~mask) | ((regs->rsp + MOST_PUSHED_WORDS * push->size) & mask);
	const uint64_t registers[MOST_PUSHED_WORDS] = {
		regs->rdi, regs->rsi, regs->rbp, pointer,
		regs->rbx, regs->rdx, regs->rcx, regs->rax,
	};
	const bool has_prefix = push->size * 8 != push->bits;
	uint32_t values[MOST_PUSHED_WORDS], i;

	if (push->bits == 64 || !has_code_before(push, 1, PUSHA) ||
	    (has_prefix && !has_code_before(push, 2, OPERAND_SIZE)))
		return 0;
	for (i = 0; i < MOST_PUSHED_WORDS; i++)
		values[i] = (uint32_t)registers[i] & word_mask(push);
	if (push->value != values[push->at] || is_store(push) ||
	    !agrees_with_memory(push, values, raced))
		return 0;
	return words_above(push, values, MOST_PUSHED_WORDS, words);
}

/* Whether a vector leads to where the vCPU is. */
static bool is_at_a_handler(const struct push *push)
{
	uint16_t table[VECTORS][2];
	uint32_t vector;

	/* A table that cannot be read may lead anywhere. */
	if (!memory_peek(push->space.memory, push->sregs->idt.base, table, sizeof(table)))
		return true;
	for (vector = 0; vector < VECTORS; vector++) {
		if (table[vector][0] == push->regs->rip &&
		    table[vector][1] == push->sregs->cs.selector)
			return true;
	}
	return false;
}

/* Whether a word above the one of the exit may have been lost. */
static bool may_be_lost(const struct push *push, uint32_t at, bool raced)
{
	const uint64_t gpa = stack_gpa(push, at);
	const struct region *region = memory_find(push->space.memory, gpa);

	return gpa / PYVMM_PAGE_SIZE == push->gpa / PYVMM_PAGE_SIZE ||
	       (region && (raced || region_is_absent(region, gpa)));
}

/* Whether the instruction may have pushed CS or FLAGS above this word, with no way to tell. */
static bool is_unknown(const struct push *push, bool raced)
{
	if (push->sregs->cr0 & CR0_PROTECTED_MODE) /* there a far call alone pushes two */
		return push->at == 0 && may_be_far_call(push) && may_be_lost(push, 1, raced);
	if (push->at > 1 || !(may_be_lost(push, 1, raced) || may_be_lost(push, 2, raced)))
		return false;
	if (push->at == 1) /* CS, below FLAGS; or a store to there, or a far call */
		return may_be_lost(push, 2, raced) && is_at_a_handler(push) && !is_store(push);
	return !is_store(push) && !is_near_call(push);
}

/* The number of the word on the stack that the exit tells of; false if it is none. */
static bool find_on_stack(struct push *push)
{
	const uint32_t most = push->bits == 64 ? 1 : MOST_PUSHED_WORDS;

	if (!(push->sregs->cr0 & CR0_PROTECTED_MODE)) {
		uint64_t offset = push->gpa - push->sregs->ss.base;

		if (offset > 0xFFFF)
			return false;
		offset = (offset - push->regs->rsp) & 0xFFFF;
		push->at = (uint32_t)offset / push->size;
		return offset % push->size == 0 && push->at < MOST_PUSHED_WORDS;
	}
	/* The page tables are asked only where the place in the page is right. */
	for (push->at = 0; push->at < most; push->at++) {
		if ((stack_linear(push, push->at) ^ push->gpa) % PYVMM_PAGE_SIZE == 0 &&
		    stack_gpa(push, push->at) == push->gpa)
			return true;
	}
	return false;
}

/* False: the word is no push. */
static bool understand(const struct memory *memory, const struct memory_exit *exit,
		       const struct registers *registers, struct push *push)
{
	const struct kvm_run *run = exit->run;

	*push = (struct push){
		.space = address_space(memory, exit->vcpu_fd, registers->sregs),
		.regs = registers->regs,
		.sregs = registers->sregs,
		.gpa = run->mmio.phys_addr,
		.bits = code_bits(registers->sregs),
		.size = run->mmio.len,
	};
	if (push->size == 8 && push->bits != 64)
		return false;
	if (!find_on_stack(push))
		return false;
	push->linear = push->space.is_paged ? stack_linear(push, push->at) : push->gpa;
	memcpy(&push->value, run->mmio.data, push->size);
	return true;
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
			exit->access = (struct memory_access){ .gpa = gpa,
							       .size = (uint32_t)size,
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
	enum memory_verdict verdict = MEMORY_DONE;
	struct registers registers;
	struct push push;
	uint32_t count, i;

	if (exit->run->mmio.len != 2 && exit->run->mmio.len != 4 && exit->run->mmio.len != 8)
		return MEMORY_DONE;
	if (!get_registers(exit, &registers))
		return MEMORY_UNKNOWN;
	if (!understand(memory, exit, &registers, &push))
		return MEMORY_DONE;
	count = pushed_by_pusha(&push, exit->raced, words);
	if (count == 0 && is_unknown(&push, exit->raced))
		return MEMORY_UNKNOWN;
	for (i = 0; i < count && verdict == MEMORY_DONE; i++) {
		uint64_t linear = words[i].linear, left = words[i].size, size, gpa;
		char *bytes = (char *)&words[i].value;

		for (; left > 0 && verdict == MEMORY_DONE;
		     bytes += size, linear += size, left -= size) {
			size = PYVMM_PAGE_SIZE - linear % PYVMM_PAGE_SIZE;
			if (size > left)
				size = left;
			if (!linear_to_gpa(&push.space, linear, &gpa))
				return MEMORY_UNKNOWN; /* somebody has changed the page tables */
			verdict = store_somewhere(memory, region, gpa, bytes, size, lost, exit);
		}
	}
	return verdict;
}
