/* SPDX-License-Identifier: MIT */
/*
 * What single word an instruction can have written, read from its code and from the registers
 * after it, in real mode.
 *
 * An instruction is decoded from each byte before IP from which it would end right there, so no
 * code is overlooked; what an operand says must agree with the word.
 */
#ifndef PYVMM_STORES_H
#define PYVMM_STORES_H

#include <stdbool.h>
#include <stdint.h>

#include "../../memory.h"

/* A vCPU behind an instruction that wrote `size` bytes, `value`, at SS:SP + at * size. */
struct push {
	const struct memory *memory;
	const struct kvm_regs *regs;
	const struct kvm_sregs *sregs;
	uint64_t gpa;
	uint32_t size; /* 2 or 4 */
	uint32_t at;
	uint32_t value;
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
