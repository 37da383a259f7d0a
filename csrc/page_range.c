/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "page_range.h"

#include <errno.h>
#include <fcntl.h>

static int fallocate_all(int fd, int mode, uint64_t offset, uint64_t size)
{
	while (fallocate(fd, mode, (off_t)offset, (off_t)size) < 0) {
		if (errno != EINTR)
			return -errno;
	}
	return 0;
}

int page_range_allocate(int fd, uint64_t offset, uint64_t size)
{
	/* A guest_memfd accepts no other mode for allocating. */
	return fallocate_all(fd, FALLOC_FL_KEEP_SIZE, offset, size);
}

int page_range_punch(int fd, uint64_t offset, uint64_t size)
{
	return fallocate_all(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset, size);
}
