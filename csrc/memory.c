/* SPDX-License-Identifier: MIT */
#include "memory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backends/backend.h"
#include "exit_log.h"
#include "page_range.h"

/* BACKENDS(each) is made from the names of the files in backends/ when this is compiled. */
#define DECLARED(name) extern const struct backend backend_##name;
#define LISTED(name) &backend_##name,
BACKENDS(DECLARED)
static const struct backend *const backends[] = { BACKENDS(LISTED) };

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
	gate_init(&memory->gate);
	return 0;
}

static void region_deinit(struct region *region)
{
	slot_window_deinit(&region->private_window);
	slot_window_deinit(&region->shared_window);
	slot_window_deinit(&region->private_nothing);
	slot_window_deinit(&region->shared_nothing);
	free(region->states);
	pthread_mutex_destroy(&region->lock);
}

void memory_deinit(struct memory *memory)
{
	while (memory->region_count > 0)
		region_deinit(&memory->regions[--memory->region_count]);
	gate_deinit(&memory->gate);
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
		region->private_nothing.vm_fd = -1;
		region->shared_nothing.vm_fd = -1;
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
	region->gate = &memory->gate;
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

		if (region_has(region, gpa))
			return (struct region *)region;
	}
	return NULL;
}

/* Returns how many pages changed state, or -errno and then none did. */
static int64_t convert_pages(struct memory *memory, struct region *region, uint64_t first,
			     uint64_t pages, enum page_state to)
{
	uint64_t page, end = first + pages, changed = 0;
	int error;

	if (region->lost)
		return -ENOTRECOVERABLE;
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
	first = region_page(region, gpa);
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
static int transfer(const struct region *region, enum page_state state, char *bytes, uint64_t size,
		    uint64_t offset, bool is_write)
{
	const int fd = state == PAGE_PRIVATE ? region->private_fd : region->shared_fd;
	ssize_t done;

	if (region->backend->transfer)
		return region->backend->transfer(region, bytes, size, offset, is_write);

	for (; size > 0; bytes += done, size -= (uint64_t)done, offset += (uint64_t)done) {
		done = is_write ? pwrite(fd, bytes, size, (off_t)offset)
				: pread(fd, bytes, size, (off_t)offset);
		if (done < 0 && errno == EINTR)
			done = 0;
		else if (done <= 0)
			return done < 0 ? -errno : -EIO;
	}
	return 0;
}

int memory_transfer(const struct region *region, uint64_t gpa, void *bytes, uint64_t size,
		    bool is_write)
{
	return transfer(region, region_wants(region, gpa), bytes, size, region_offset(region, gpa),
			is_write);
}

int memory_copy(struct memory *memory, uint64_t gpa, void *bytes, uint64_t size, bool is_write)
{
	struct region *region = memory_find(memory, gpa);
	uint64_t offset, page;
	int error = 0;

	if (!region)
		return -EINVAL;
	offset = region_offset(region, gpa);
	if (size > region->pages * PYVMM_PAGE_SIZE - offset)
		return -EINVAL;
	/* A page that became private between look and write would keep the host's bytes. */
	pthread_mutex_lock(&region->lock);
	for (page = offset / PYVMM_PAGE_SIZE; page * PYVMM_PAGE_SIZE < offset + size; page++) {
		if (region->states[page] == PAGE_PRIVATE)
			error = -EACCES;
	}
	if (!error)
		error = transfer(region, PAGE_SHARED, bytes, size, offset, is_write);
	pthread_mutex_unlock(&region->lock);
	return error;
}

bool memory_peek(const struct memory *memory, uint64_t gpa, void *bytes, uint64_t size)
{
	const struct region *region = memory_find(memory, gpa);
	uint64_t offset;
	uint32_t i;

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
	offset = region_offset(region, gpa);
	if (region_is_absent(region, gpa) || size > PYVMM_PAGE_SIZE - offset % PYVMM_PAGE_SIZE)
		return false;
	/* Through the file: what is mapped may become inaccessible at any time. */
	return memory_transfer(region, gpa, bytes, size, false) == 0;
}

static bool is_approved(const struct memory_exit *exit, uint64_t gpa)
{
	return gpa / PYVMM_PAGE_SIZE == exit->approved_gpa / PYVMM_PAGE_SIZE;
}

enum memory_verdict memory_convert_page(struct memory *memory, struct region *region, uint64_t gpa,
					struct memory_exit *exit)
{
	int64_t changed;

	if (memory->policy != POLICY_CONVERT && !is_approved(exit, gpa))
		return MEMORY_ASK;
	changed = convert_pages(memory, region, region_page(region, gpa), 1,
				region_wants(region, gpa));
	if (changed < 0) {
		exit->error = (int)changed;
		return MEMORY_FAILED;
	}
	region->implicit += (uint64_t)changed;
	exit->converted += (uint64_t)changed;
	return MEMORY_DONE;
}

/* With the region's lock held: the page of the exit gets the state that the access wants. */
static enum memory_verdict settle(struct memory *memory, struct region *region,
				  enum recognition recognition, struct memory_exit *exit)
{
	const uint64_t gpa = exit->access.gpa;
	enum memory_verdict verdict;
	uint64_t start;

	/* With one view no access is wrong: what exits has lost a race with a conversion. */
	exit->wanted = region_wants(region, gpa);
	if (!region_is_absent(region, gpa)) {
		if (recognition == MEMORY_EXIT_IF_ABSENT &&
		    exit->generation == memory_generation(memory))
			return MEMORY_NOT_MINE;
		/* Back for an instruction's second page it is no new exit. */
		region->spurious += !exit->approved || is_approved(exit, gpa);
		return MEMORY_DONE;
	}
	start = exit->timed ? monotonic_ns() : 0;
	verdict = memory_convert_page(memory, region, gpa, exit);
	if (verdict == MEMORY_DONE && exit->timed)
		exit->conversion_ns = monotonic_ns() - start;
	return verdict;
}

/* Whether a page changed its state since exit->generation. What is under way is waited for. */
static bool converted_meanwhile(struct memory *memory, const struct memory_exit *exit)
{
	uint32_t i;

	for (i = 0; i < memory->region_count; i++) {
		pthread_mutex_lock(&memory->regions[i].lock);
		pthread_mutex_unlock(&memory->regions[i].lock);
	}
	return exit->generation != memory_generation(memory);
}

enum memory_verdict memory_handle_exit(struct memory *memory, struct memory_exit *exit)
{
	enum recognition recognition;
	enum memory_verdict verdict;
	struct region *region;

	exit->approved_gpa = exit->approved ? exit->access.gpa : UINT64_MAX;
	exit->raced = exit->generation != memory_generation(memory);
	recognition = memory->backend->recognise(memory, exit);
	if (recognition == NOT_A_MEMORY_EXIT)
		return MEMORY_NOT_MINE;
	exit->converted = 0;
	exit->conversion_ns = 0;
	exit->error = 0;
	if (recognition == PERHAPS_A_RACE)
		return converted_meanwhile(memory, exit) ? MEMORY_DONE : MEMORY_NOT_MINE;
	region = memory_find(memory, exit->access.gpa);
	if (!region)
		return MEMORY_NOT_MINE;
	exit->wanted = region_wants(region, exit->access.gpa);
	if (recognition == EMULATED_ACCESS)
		return MEMORY_EMULATED;
	pthread_mutex_lock(&region->lock);
	verdict = settle(memory, region, recognition, exit);
	if (verdict == MEMORY_DONE && memory->backend->finish)
		verdict = memory->backend->finish(memory, region, exit);
	if (verdict == MEMORY_DONE && exit->run->exit_reason == KVM_EXIT_MMIO &&
	    !exit->access.is_write) {
		exit->generation = memory_generation(memory);
		exit->goes_on = true;
	}
	pthread_mutex_unlock(&region->lock);
	return verdict;
}
