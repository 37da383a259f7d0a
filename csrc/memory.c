/* SPDX-License-Identifier: MIT */
#include "memory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backends/backend.h"
#include "exit_log.h"
#include "page_range.h"

static const struct backend *const backends[] = {
	&backend_emulated,
	&backend_guest_memfd,
	&backend_memory_error,
};

int memory_init(struct memory *memory, int vm_fd, const char *backend, uint32_t policy)
{
	size_t i;

	memset(memory, 0, sizeof(*memory));
	memory->vm_fd = vm_fd;
	memory->policy = policy;
	for (i = 0; i < sizeof(backends) / sizeof(backends[0]); i++) {
		if (strcmp(backends[i]->name, backend) == 0)
			memory->backend = backends[i];
	}
	if (!memory->backend)
		return -EINVAL;
	memory->synced_registers = memory->backend->synced_registers;
	return 0;
}

static void region_deinit(struct region *region)
{
	slot_window_deinit(&region->private_window);
	slot_window_deinit(&region->shared_window);
	free(region->states);
	pthread_mutex_destroy(&region->lock);
}

void memory_deinit(struct memory *memory)
{
	while (memory->region_count > 0)
		region_deinit(&memory->regions[--memory->region_count]);
}

void memory_forget_vm(struct memory *memory)
{
	uint32_t i;

	memory->vm_fd = -1;
	for (i = 0; i < memory->region_count; i++) {
		struct region *region = &memory->regions[i];

		pthread_mutex_lock(&region->lock);
		region->vm_fd = -1;
		region->private_window.vm_fd = -1;
		region->shared_window.vm_fd = -1;
		pthread_mutex_unlock(&region->lock);
	}
}

int memory_add_region(struct memory *memory, const struct region *wanted)
{
	struct region *region;
	int error;

	if (memory->region_count == MEMORY_MAX_REGIONS)
		return -ENOSPC;
	region = &memory->regions[memory->region_count];
	*region = *wanted;
	region->vm_fd = memory->vm_fd;
	region->backend = memory->backend;
	region->states = calloc(region->pages, sizeof(*region->states));
	if (!region->states)
		return -ENOMEM;
	pthread_mutex_init(&region->lock, NULL);
	error = region->backend->attach(region);
	if (error) {
		/* Nothing may be left of it: the memory behind its slots is given back. */
		region->backend->detach(region);
		region_deinit(region);
		return error;
	}
	memory->region_count++;
	return 0;
}

struct region *memory_find(const struct memory *memory, uint64_t gpa)
{
	uint32_t i;

	for (i = 0; i < memory->region_count; i++) {
		const struct region *region = &memory->regions[i];

		if (view_has(region->private_gpa, region->pages, gpa) ||
		    view_has(region->shared_gpa, region->pages, gpa))
			return (struct region *)region;
	}
	return NULL;
}

/* The view that has this GPA; the caller knows that one of the two does. */
static uint64_t view_of(const struct region *region, uint64_t gpa)
{
	if (view_has(region->private_gpa, region->pages, gpa))
		return region->private_gpa;
	return region->shared_gpa;
}

static uint64_t page_of(const struct region *region, uint64_t gpa)
{
	return (gpa - view_of(region, gpa)) / PYVMM_PAGE_SIZE;
}

/* What an access through this view wants; with one view, what the page is. */
static enum page_state wanted_state(const struct region *region, uint64_t gpa)
{
	if (!region_has_two_views(region))
		return (enum page_state)region->states[page_of(region, gpa)];
	return view_has(region->private_gpa, region->pages, gpa) ? PAGE_PRIVATE : PAGE_SHARED;
}

/* Returns how many pages changed state, or -errno and then none did. */
static int64_t convert_pages(struct memory *memory, struct region *region, uint64_t first,
			     uint64_t pages, enum page_state to)
{
	uint64_t page, end = first + pages, changed = 0;
	int error;

	while (first < end && region->states[first] == to)
		first++;
	while (first < end && region->states[end - 1] == to)
		end--;
	if (first == end)
		return 0;
	if (to == PAGE_PRIVATE)
		error = region->backend->to_private(region, first, end - first);
	else
		error = region->backend->to_shared(region, first, end - first);
	if (error)
		return error;
	for (page = first; page < end; page++) {
		changed += region->states[page] != to;
		region->states[page] = (uint8_t)to;
	}
	if (to == PAGE_PRIVATE)
		region->to_private += changed;
	else
		region->to_shared += changed;
	__atomic_fetch_add(&memory->generation, 1, __ATOMIC_RELEASE);
	return (int64_t)changed;
}

void memory_add_ram(struct memory *memory, uint64_t gpa, uint64_t size, const void *host)
{
	if (memory->ram_count < MEMORY_MAX_RAM)
		memory->ram[memory->ram_count++] = (struct ram){ gpa, size, host };
}

int memory_convert(struct memory *memory, uint64_t gpa, uint64_t pages, uint32_t state,
		   uint64_t *converted)
{
	struct region *region = memory_find(memory, gpa);
	uint64_t first;
	int64_t changed;

	*converted = 0;
	if (!region || gpa % PYVMM_PAGE_SIZE || pages == 0 || state > PAGE_PRIVATE)
		return -EINVAL;
	first = (gpa - view_of(region, gpa)) / PYVMM_PAGE_SIZE;
	if (pages > region->pages - first)
		return -EINVAL;
	pthread_mutex_lock(&region->lock);
	changed = convert_pages(memory, region, first, pages, (enum page_state)state);
	if (changed > 0)
		region->explicit_ += (uint64_t)changed;
	pthread_mutex_unlock(&region->lock);
	if (changed < 0)
		return (int)changed;
	*converted = (uint64_t)changed;
	return 0;
}

/* All of it, or -errno. */
static int transfer(int fd, char *bytes, uint64_t size, uint64_t offset, bool is_write)
{
	ssize_t done;

	for (; size > 0; bytes += done, size -= (uint64_t)done, offset += (uint64_t)done) {
		done = is_write ? pwrite(fd, bytes, size, (off_t)offset) :
				  pread(fd, bytes, size, (off_t)offset);
		if (done < 0 && errno == EINTR)
			done = 0;
		else if (done <= 0)
			return done < 0 ? -errno : -EIO;
	}
	return 0;
}

int memory_copy(struct memory *memory, uint64_t gpa, void *bytes, uint64_t size, bool is_write)
{
	struct region *region = memory_find(memory, gpa);
	uint64_t offset, page;
	int error = 0;

	if (!region)
		return -EINVAL;
	offset = gpa - view_of(region, gpa);
	if (size > region->pages * PYVMM_PAGE_SIZE - offset)
		return -EINVAL;
	/* A page that became private between look and write would keep the host's bytes. */
	pthread_mutex_lock(&region->lock);
	for (page = offset / PYVMM_PAGE_SIZE; page * PYVMM_PAGE_SIZE < offset + size; page++) {
		if (region->states[page] == PAGE_PRIVATE)
			error = -EACCES;
	}
	if (!error)
		error = transfer(region->shared_fd, bytes, size, offset, is_write);
	pthread_mutex_unlock(&region->lock);
	return error;
}

bool memory_peek(const struct memory *memory, uint64_t gpa, void *bytes, uint64_t size)
{
	const struct region *region = memory_find(memory, gpa);
	uint64_t offset;
	uint32_t i;
	int fd;

	for (i = 0; i < memory->ram_count; i++) {
		const struct ram *ram = &memory->ram[i];

		if (gpa >= ram->gpa && gpa - ram->gpa < ram->size &&
		    size <= ram->size - (gpa - ram->gpa)) {
			memcpy(bytes, ram->host + (gpa - ram->gpa), size);
			return true;
		}
	}
	if (!region)
		return false;
	offset = gpa - view_of(region, gpa);
	if (region->states[page_of(region, gpa)] != wanted_state(region, gpa) ||
	    size > PYVMM_PAGE_SIZE - offset % PYVMM_PAGE_SIZE)
		return false;
	/* Through the file: what is mapped may become inaccessible at any time. */
	fd = wanted_state(region, gpa) == PAGE_PRIVATE ? region->private_fd : region->shared_fd;
	return transfer(fd, bytes, size, offset, false) == 0;
}

/* What an instruction wrote beside what its exit tells of, and the pages that it is lost with. */
struct rest {
	struct pushed_word *words;
	uint32_t count;
	uint64_t lost[2]; /* page numbers: of the exit, and maybe of one more */
	bool raced;	  /* pages may have changed since the instruction wrote */
	bool may_convert;
	uint64_t approved; /* or the number of the page that may be converted, UINT64_MAX: none */
};

/*
 * With the region's lock held. What went to present pages the kernel has written, but for
 * those that it may have found absent before somebody else converted them.
 */
static enum memory_verdict store_piece(struct memory *memory, struct region *region, uint64_t gpa,
				       void *bytes, uint64_t size, struct rest *rest,
				       struct memory_exit *exit)
{
	const enum page_state wanted = wanted_state(region, gpa);
	const uint64_t page = gpa / PYVMM_PAGE_SIZE;
	const bool is_private = wanted == PAGE_PRIVATE;
	const bool is_lost = page == rest->lost[0] || page == rest->lost[1];

	if (region->states[page_of(region, gpa)] != wanted) {
		int64_t changed;

		/* Its page was taken away since, and with it what was in it. */
		if (is_lost)
			return MEMORY_DONE;
		if (!rest->may_convert && page != rest->approved) {
			exit->access = (struct memory_access){ .gpa = gpa, .size = (uint32_t)size,
							       .is_write = true };
			exit->wanted = wanted;
			return MEMORY_ASK;
		}
		changed = convert_pages(memory, region, page_of(region, gpa), 1, wanted);
		if (changed < 0) {
			exit->error = (int)changed;
			return MEMORY_FAILED;
		}
		region->implicit += (uint64_t)changed;
		exit->converted += (uint64_t)changed;
		rest->lost[1] = page;
	} else if (!is_lost && !rest->raced) {
		return MEMORY_DONE;
	}
	exit->error = transfer(is_private ? region->private_fd : region->shared_fd, bytes, size,
			       gpa - view_of(region, gpa), true);
	return exit->error ? MEMORY_FAILED : MEMORY_DONE;
}

/* The words in this region, or with `others` those in all others, whose locks it takes. */
static enum memory_verdict store_rest(struct memory *memory, struct region *region, bool others,
				      struct rest *rest, struct memory_exit *exit)
{
	enum memory_verdict verdict = MEMORY_DONE;
	uint32_t i;

	for (i = 0; i < rest->count && verdict == MEMORY_DONE; i++) {
		uint64_t gpa = rest->words[i].gpa, left = rest->words[i].size, size;
		char *bytes = (char *)&rest->words[i].value;

		for (; left > 0 && verdict == MEMORY_DONE; bytes += size, gpa += size, left -= size) {
			struct region *there = memory_find(memory, gpa);

			size = PYVMM_PAGE_SIZE - gpa % PYVMM_PAGE_SIZE;
			if (size > left)
				size = left;
			if (!there || (there != region) != others)
				continue;
			if (others)
				pthread_mutex_lock(&there->lock);
			verdict = store_piece(memory, there, gpa, bytes, size, rest, exit);
			if (others)
				pthread_mutex_unlock(&there->lock);
		}
	}
	return verdict;
}

enum memory_verdict memory_handle_exit(struct memory *memory, int vcpu_fd, struct kvm_run *run,
				       int run_errno, bool timed, bool approved,
				       struct memory_exit *exit)
{
	enum memory_verdict verdict = MEMORY_DONE;
	struct pushed_word words[MOST_PUSHED_WORDS];
	struct rest rest = {
		.words = words,
		.lost = { UINT64_MAX, UINT64_MAX },
		.raced = exit->generation != memory_generation(memory),
		.may_convert = memory->policy == POLICY_CONVERT,
		.approved = approved ? exit->access.gpa / PYVMM_PAGE_SIZE : UINT64_MAX,
	};
	enum recognition recognition;
	struct region *region;
	uint64_t page, start;
	int64_t changed;

	recognition = memory->backend->recognise(memory, vcpu_fd, run, run_errno, &exit->access);
	if (recognition == NOT_A_MEMORY_EXIT)
		return MEMORY_NOT_MINE;
	region = memory_find(memory, exit->access.gpa);
	if (!region)
		return MEMORY_NOT_MINE;
	page = page_of(region, exit->access.gpa);
	exit->converted = 0;
	exit->conversion_ns = 0;
	exit->error = 0;
	exit->wanted = wanted_state(region, exit->access.gpa);
	if (recognition == EMULATED_ACCESS)
		return MEMORY_EMULATED;
	if (memory->backend->find_rest)
		rest.count = memory->backend->find_rest(memory, vcpu_fd, run, exit, words);
	rest.lost[0] = exit->access.gpa / PYVMM_PAGE_SIZE;

	pthread_mutex_lock(&region->lock);
	/* With one view no access is wrong: what exits has lost a race with a conversion. */
	if (!region_has_two_views(region))
		exit->wanted = (enum page_state)region->states[page];
	if (region->states[page] == exit->wanted) {
		/*
		 * A fetch that nobody's conversion explains is an instruction KVM cannot do,
		 * such a frame a triple fault. Back for its second page it is no new exit.
		 */
		if ((exit->access.is_fetch || exit->access.is_frame) &&
		    exit->generation == memory_generation(memory))
			verdict = MEMORY_NOT_MINE;
		else
			region->spurious += !approved || rest.approved == rest.lost[0];
	} else if (!rest.may_convert && rest.lost[0] != rest.approved) {
		verdict = MEMORY_ASK;
	} else {
		start = timed ? monotonic_ns() : 0;
		changed = convert_pages(memory, region, page, 1, exit->wanted);
		if (changed < 0) {
			exit->error = (int)changed;
			verdict = MEMORY_FAILED;
		} else {
			region->implicit += (uint64_t)changed;
			exit->converted = (uint64_t)changed;
			exit->conversion_ns = timed ? monotonic_ns() - start : 0;
		}
	}
	if (verdict == MEMORY_DONE && memory->backend->complete)
		memory->backend->complete(memory, region, vcpu_fd, run, &exit->access);
	if (verdict == MEMORY_DONE)
		verdict = store_rest(memory, region, false, &rest, exit);
	pthread_mutex_unlock(&region->lock);
	if (verdict == MEMORY_DONE)
		verdict = store_rest(memory, region, true, &rest, exit);
	return verdict;
}
