/* SPDX-License-Identifier: MIT */
/*
 * Allocating and punching ranges of a memory file (memfd or guest_memfd).
 *
 * Guarantees: both calls are idempotent, go on after EINTR, and return 0 or
 * -errno. The size of the file never changes. They take no lock and own nothing.
 */
#ifndef PYVMM_PAGE_RANGE_H
#define PYVMM_PAGE_RANGE_H

#include <stdint.h>

#define PYVMM_PAGE_SIZE 4096ULL

int page_range_allocate(int fd, uint64_t offset, uint64_t size);
int page_range_punch(int fd, uint64_t offset, uint64_t size);

#endif
