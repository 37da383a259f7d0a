/* SPDX-License-Identifier: MIT */
/*
 * What an instruction pushed beside the word that KVM_EXIT_MMIO tells of.
 *
 * KVM's emulator hands over the last write of an instruction only. PUSHA, a far call
 * and INT push several words. Here it is asked, from the state after an instruction, in real
 * mode, whether others went to absent pages:
 *   a store    the code right before IP is an instruction that wrote this word: no others
 *   near call  the code right before the pushed IP is a call to where the vCPU is: no others
 *   PUSHA      0x60 is before IP, the word is that of its register, and no store explains it:
 *              all that it pushed is still in the registers
 *   far call, INT  what is left. The caller's CS is in the lost word alone, for the same code
 *              can be reached by several; and of INT the interrupt flag, which INT clears.
 *              Nothing proves them, so the run ends
 * A word above the stack's top is judged likewise: where IP lies in a page that was there, the
 * exit tells of CS, and FLAGS are lost if a vector leads to where the vCPU is.
 * In protected and long mode INT is not emulated: PUSHA is known as above, and a word is a far
 * call's if the code before it may be one that leads to where the vCPU is (far_calls.h).
 * A word that lies across two pages is two writes, and is not looked into.
 */
#ifndef PYVMM_PUSHED_WORDS_H
#define PYVMM_PUSHED_WORDS_H

#include "../../memory.h"

/*
 * After a KVM_EXIT_MMIO that wrote, with the region's lock held; it may be given up for another
 * region's, and is taken again. MEMORY_ASK, MEMORY_FAILED: of a page that exit->access names.
 * MEMORY_UNKNOWN: words are lost, and what they were is not known.
 */
enum memory_verdict store_pushed_words(struct memory *memory, struct region *region,
				       struct memory_exit *exit);

#endif
