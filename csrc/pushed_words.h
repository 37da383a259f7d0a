/* SPDX-License-Identifier: MIT */
/*
 * What an instruction pushed beside the word that KVM_EXIT_MMIO tells of.
 *
 * KVM's emulator hands over the last write of an instruction only. PUSHA, a far call
 * and INT push several words; what else they pushed into absent pages is found again
 * here from the state after them, in real mode:
 *   PUSHA     all of it is still in the registers; a byte 0x60 before IP is none where
 *             it can be the operand of another store, or where what else PUSHA would
 *             have pushed is not in memory
 *   far call  its code, which names the target, tells where it lies, and so its CS
 *   INT       the same, by the vector that leads to where the vCPU is; the interrupt
 *             flag is what it was at the exit before
 * The code of a far call and of INT is looked for in plain RAM: of two copies of it that
 * fit, the one in the vCPU's own CS is taken, or the lower one. What is not found stays lost:
 * the words read zero.
 */
#ifndef PYVMM_PUSHED_WORDS_H
#define PYVMM_PUSHED_WORDS_H

#include <stdbool.h>
#include <stdint.h>

#include "kvm_compat.h"
#include "memory.h"

#define MOST_PUSHED_WORDS 8u

struct pushed_word {
	uint64_t gpa;
	uint32_t size;
	uint32_t value;
};

/* The words that lie above the one in kvm_run, lowest first; how many. */
uint32_t find_pushed_words(const struct memory *memory, int vcpu_fd, const struct kvm_run *run,
			   const struct memory_exit *exit,
			   struct pushed_word words[MOST_PUSHED_WORDS]);

#endif
