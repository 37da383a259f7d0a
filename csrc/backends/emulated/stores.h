/* SPDX-License-Identifier: MIT */
/*
 * What single word an instruction of 16 or 32 bits can have written, read from its code and from
 * the registers after it.
 *
 * An instruction is decoded from each byte before IP from which it would end right there, so no
 * code is overlooked; what an operand says must agree with the word.
 */
#ifndef PYVMM_STORES_H
#define PYVMM_STORES_H

#include <stdbool.h>
#include <stdint.h>

#include "../../memory.h"
#include "linear.h"

/* A vCPU behind an instruction that wrote `size` bytes, `value`, at SS:SP + at * size. */
struct push {
	struct address_space space;
	const struct kvm_regs *regs;
	const struct kvm_sregs *sregs;
	uint64_t gpa;
	uint64_t linear; /* by which the stack has it */
	uint32_t bits; /* of the code */
	uint32_t size; /* 2, 4 or 8 */
	uint32_t at;
	uint64_t value;
};

static inline uint32_t word_mask(const struct push *push)
{
	return push->size == 2 ? 0xFFFF : UINT32_MAX;
}

/* The vCPU is behind, or at a REP of, an instruction that wrote this word and no other. */
bool is_store(const struct push *push);
/* The word is the return address of a near call that led to where the vCPU is. */
bool is_near_call(const struct push *push);

#endif
