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

#include "../../memory.h"

/*
 * After a KVM_EXIT_MMIO that wrote, with the region's lock held; it may be given up for another
 * region's, and is taken again. MEMORY_ASK, MEMORY_FAILED: of a page that exit->access names.
 */
enum memory_verdict store_pushed_words(struct memory *memory, struct region *region,
				       struct memory_exit *exit);

#endif
