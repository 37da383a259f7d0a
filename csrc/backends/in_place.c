/* SPDX-License-Identifier: MIT */
/*
 * In-place conversion (Linux 7.4): one guest_memfd has the private and the shared pages, and
 * keeps their state, which KVM_SET_MEMORY_ATTRIBUTES2 on its descriptor changes. Contents stay;
 * a page that must read zero is punched out afterwards. The host has the file mapped, and may
 * touch what is shared.
 *
 * One view: one slot, and the kernel follows the state.
 * Two views: KVM takes the state for what the guest meant, so no access to a page of the file is
 * ever wrong, and a page of the file can be in one slot only. It is in a slot of the view of its
 * state. In the other view it has a slot of a file that has been closed, where every access is a
 * genuine KVM_EXIT_MEMORY_FAULT, which the kernel repeats:
 *                     private window                shared window
 *   page is private   slot of the file              slot of a closed file: faults
 *   page is shared    slot of a closed file         slot of the file
 * Where there is no slot an access would be KVM_EXIT_MMIO, and no more repeated. So no vCPU is in
 * the guest while slots are deleted and made: gate.h.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "backend.h"
#include "../vcpu_loop.h"

/* A page may be in use for a moment: asked for again after 0, 20, 40... us, for 80 ms in all. */
#define BUSY_TRIES 14
#define BUSY_FIRST_NS 20000L

static uint64_t attributes_of(enum page_state state)
{
	return state == PAGE_PRIVATE ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0;
}

static int set_attributes(struct region *region, uint64_t first, uint64_t pages,
			  uint64_t attributes)
{
	struct kvm_memory_attributes2 request = {
		.offset = first * PYVMM_PAGE_SIZE,
		.size = pages * PYVMM_PAGE_SIZE,
		.attributes = attributes,
	};
	struct timespec pause = { .tv_nsec = BUSY_FIRST_NS };
	int tries = 0;

	while (ioctl(region->private_fd, KVM_SET_MEMORY_ATTRIBUTES2, &request) < 0) {
		if (errno == EINTR)
			continue;
		if (errno != EAGAIN)
			return -errno;
		region->busy++;
		region->busy_page = request.error_offset / PYVMM_PAGE_SIZE;
		request.error_offset = 0;
		if (++tries == BUSY_TRIES)
			return -EAGAIN;
		if (tries > 1) {
			nanosleep(&pause, NULL);
			pause.tv_nsec *= 2;
		}
	}
	return 0;
}

static void close_gate(struct region *region)
{
	if (region_has_two_views(region))
		gate_close(region->gate, loop_kick_signal());
}

static void open_gate(struct region *region)
{
	if (region_has_two_views(region))
		gate_open(region->gate);
}

/*
 * In the view of its state a page shows the file, in the other one nothing. First what is to
 * go in each view is taken out, then what is to come is put in.
 */
static int take_out(struct region *region, uint64_t first, uint64_t pages, enum page_state state)
{
	const bool is_private = state == PAGE_PRIVATE;
	int error = slot_window_clear(is_private ? &region->shared_window : &region->private_window,
				      first, pages);

	if (!error)
		error = slot_window_clear(is_private ? &region->private_nothing
						     : &region->shared_nothing,
					  first, pages);
	return error;
}

static int put_in(struct region *region, uint64_t first, uint64_t pages, enum page_state state)
{
	const bool is_private = state == PAGE_PRIVATE;
	int error = slot_window_fill(is_private ? &region->private_window : &region->shared_window,
				     first, pages);

	if (!error)
		error = slot_window_fill(is_private ? &region->shared_nothing
						    : &region->private_nothing,
					 first, pages);
	return error;
}

static int arrange(struct region *region, uint64_t first, uint64_t pages, enum page_state state)
{
	int error;

	if (!region_has_two_views(region))
		return 0;
	error = take_out(region, first, pages, state);
	return error ? error : put_in(region, first, pages, state);
}

/* The end of the run that begins at `first`: pages of one state. */
static uint64_t run_end(const struct region *region, uint64_t first, uint64_t end)
{
	uint64_t page = first + 1;

	while (page < end && region->states[page] == region->states[first])
		page++;
	return page;
}

/* Do one thing to each run of the region, until it fails. */
static int for_each_run(struct region *region,
			int (*what)(struct region *, uint64_t, uint64_t, enum page_state))
{
	uint64_t page, next;
	int error = 0;

	for (page = 0; page < region->pages && !error; page = next) {
		next = run_end(region, page, region->pages);
		error = what(region, page, next - page, (enum page_state)region->states[page]);
	}
	return error;
}

/*
 * After a failure: the kernel's states and all of the windows are as the table says again; false
 * where that fails, too, and nobody knows what the kernel has.
 */
static bool undo(struct region *region, uint64_t first, uint64_t pages, enum page_state state)
{
	const uint64_t end = first + pages;
	uint64_t page, next;
	int error = 0, slots_error = 0;

	for (page = first; page < end && !error; page = next) {
		next = run_end(region, page, end);
		if (region->states[page] != state)
			error = set_attributes(
				region, page, next - page,
				attributes_of((enum page_state)region->states[page]));
	}
	if (region_has_two_views(region)) {
		/* Neighbours may have lost a slot of which they had a part. */
		slots_error = for_each_run(region, take_out);
		if (!slots_error)
			slots_error = for_each_run(region, put_in);
	}
	return !error && !slots_error;
}

static int attach_windows(struct region *region)
{
	struct slot_window *const windows[] = { &region->private_window, &region->private_nothing,
						&region->shared_window, &region->shared_nothing };
	const uint32_t count = region->slot_count / 4;
	uint32_t i;
	int error = 0;

	for (i = 0; i < 4 && !error; i++) {
		const bool is_of_file = i % 2 == 0;

		*windows[i] = (struct slot_window){
			.vm_fd = region->vm_fd,
			.gpa = i < 2 ? region->private_gpa : region->shared_gpa,
			.pages = region->pages,
			.host = is_of_file ? region->shared_host : region->private_host,
			.guest_memfd = is_of_file ? region->private_fd : SLOT_CLOSED_FILE,
			.slot_base = region->slot_base + i * count,
			.slot_count = count,
		};
		error = slot_window_init(windows[i]);
	}
	if (error)
		return error;
	error = slot_window_fill(&region->shared_window, 0, region->pages);
	if (!error)
		error = slot_window_fill(&region->private_nothing, 0, region->pages);
	return error;
}

static int attach(struct region *region)
{
	struct slot_window *window = &region->private_window;
	int error;

	if (region_has_two_views(region)) {
		__atomic_store_n(&region->gate->used, true, __ATOMIC_RELAXED);
		gate_close(region->gate, loop_kick_signal());
		error = attach_windows(region);
		gate_open(region->gate);
		return error;
	}
	*window = (struct slot_window){
		.vm_fd = region->vm_fd,
		.gpa = region->private_gpa,
		.pages = region->pages,
		.host = region->shared_host,
		.guest_memfd = region->private_fd,
		.slot_base = region->slot_base,
		.slot_count = 1,
	};
	error = slot_window_init(window);
	return error ? error : slot_window_fill(window, 0, region->pages);
}

static void detach(struct region *region)
{
	delete_windows(region);
	slot_window_delete(&region->private_nothing);
	slot_window_delete(&region->shared_nothing);
}

/* Of the range, the pages that have changed state read zero. */
static int discard(struct region *region, uint64_t first, uint64_t pages, enum page_state state)
{
	const uint64_t end = first + pages;
	uint64_t page, next;
	int error = 0;

	if (region->keep_contents)
		return 0;
	for (page = first; page < end && !error; page = next) {
		next = run_end(region, page, end);
		if (region->states[page] != state)
			error = page_range_punch(region->private_fd, page * PYVMM_PAGE_SIZE,
						 (next - page) * PYVMM_PAGE_SIZE);
	}
	return error;
}

/* Slots without memory need a descriptor for a moment: without one nothing is begun. */
static int find_descriptor(const struct region *region)
{
	int fd;

	if (!region_has_two_views(region))
		return 0;
	fd = fcntl(region->private_fd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	close(fd);
	return 0;
}

static int convert(struct region *region, uint64_t first, uint64_t pages, enum page_state state)
{
	int error = find_descriptor(region);

	if (error)
		return error;
	close_gate(region);
	/* The whole range has changed after it, or nothing. */
	error = set_attributes(region, first, pages, attributes_of(state));
	if (!error) {
		error = arrange(region, first, pages, state);
		if (!error)
			error = discard(region, first, pages, state);
		if (error && !undo(region, first, pages, state))
			region->lost = -error;
	}
	open_gate(region);
	return region->lost ? -ENOTRECOVERABLE : error;
}

static int to_private(struct region *region, uint64_t first, uint64_t pages)
{
	return convert(region, first, pages, PAGE_PRIVATE);
}

static int to_shared(struct region *region, uint64_t first, uint64_t pages)
{
	return convert(region, first, pages, PAGE_SHARED);
}

/* Through a pipe: what the kernel refuses is EFAULT, where a memcpy() would be SIGBUS. */
static int transfer(const struct region *region, void *bytes, uint64_t size, uint64_t offset,
		    bool is_write)
{
	char *host = (char *)region->shared_host + offset, *from = bytes, *to = host;
	int pipes[2], error = 0;
	ssize_t done, taken;

	if (!is_write) {
		from = host;
		to = bytes;
	}
	if (pipe2(pipes, O_CLOEXEC) < 0)
		return -errno;
	for (; size > 0 && !error; size -= (uint64_t)done, from += done, to += done) {
		done = write(pipes[1], from, size < PYVMM_PAGE_SIZE ? size : PYVMM_PAGE_SIZE);
		taken = done < 0 ? done : read(pipes[0], to, (size_t)done);
		if (taken < 0)
			error = -errno;
		else if (taken != done)
			error = -EIO;
	}
	close(pipes[0]);
	close(pipes[1]);
	return error;
}

const struct backend backend_in_place = {
	.name = "in_place",
	.attach = attach,
	.detach = detach,
	.recognise = recognise_memory_fault,
	.to_private = to_private,
	.to_shared = to_shared,
	.finish = NULL,
	.transfer = transfer,
};
