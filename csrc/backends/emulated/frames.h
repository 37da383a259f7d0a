/* SPDX-License-Identifier: MIT */
/*
 * Two accesses that KVM does not tell of, and that are repeated once the page is there: an
 * instruction fetch, and the frame of an exception or interrupt.
 *
 * What is looked at without a region's lock is only where to look: the caller decides under
 * the lock whether the page is absent.
 */
#ifndef PYVMM_FRAMES_H
#define PYVMM_FRAMES_H

#include <stdbool.h>

#include "../../memory.h"

/* Sets exit->access.gpa: where the next instruction is fetched from, if from a region. */
bool find_fetch(const struct memory *memory, struct memory_exit *exit);
/* The same: where a frame was to be pushed. */
bool find_frame(const struct memory *memory, struct memory_exit *exit);
/* Have that delivered again which was lost with its frame. */
void hand_over_event(const struct memory *memory, int vm_fd, const struct memory_exit *exit);

#endif
