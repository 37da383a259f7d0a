/* SPDX-License-Identifier: MIT */
#include "protocol.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "exit_log.h"
#include "vector_stub.h"

struct protocol *protocol_create(void)
{
	struct protocol *protocol = calloc(1, sizeof(*protocol));

	if (!protocol)
		return NULL;
	/* Not calloc(): once the C library reuses the memory it clears all of it by hand. */
	protocol->buffers = mmap(NULL, sizeof(*protocol->buffers), PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (protocol->buffers == MAP_FAILED) {
		free(protocol);
		return NULL;
	}
	protocol->enabled = true;
	protocol->vector_stubs = VECTOR_STUBS;
	return protocol;
}

void protocol_destroy(struct protocol *protocol)
{
	if (!protocol)
		return;
	munmap(protocol->buffers, sizeof(*protocol->buffers));
	free(protocol);
}

static void put_console(struct protocol *protocol, const char *bytes, uint64_t count)
{
	uint64_t at = __atomic_fetch_add(&protocol->console_written, count, __ATOMIC_RELAXED);

	if (at >= CONSOLE_SIZE)
		return;
	if (count > CONSOLE_SIZE - at)
		count = CONSOLE_SIZE - at;
	memcpy(protocol->buffers->console + at, bytes, count);
}

static void put_measure(struct protocol *protocol, uint32_t value)
{
	uint64_t at = __atomic_fetch_add(&protocol->measures_written, 1, __ATOMIC_RELAXED);

	if (at < MEASURES_SIZE)
		protocol->buffers->measures[at] = value;
}

static void ring_doorbell(struct protocol_vcpu *vcpu, struct memory *memory, uint32_t request,
			  uint64_t *conversion_ns, uint64_t *converted)
{
	uint64_t start = conversion_ns ? monotonic_ns() : 0;
	/* An unknown request becomes an unknown state, which memory_convert() refuses. */
	uint32_t state = request == DOORBELL_TO_SHARED	  ? PAGE_SHARED
			 : request == DOORBELL_TO_PRIVATE ? PAGE_PRIVATE
							  : UINT32_MAX;
	const uint64_t gpa = (uint64_t)vcpu->doorbell_gpa_high << 32 | vcpu->doorbell_gpa;
	const uint64_t pages = (uint64_t)vcpu->doorbell_pages_high << 32 | vcpu->doorbell_pages;
	uint64_t changed;

	vcpu->doorbell_result = (uint32_t)memory_convert(memory, gpa, pages, state, &changed);
	vcpu->doorbell_gpa_high = 0;
	vcpu->doorbell_pages_high = 0;
	*converted += changed;
	if (conversion_ns && changed)
		*conversion_ns += monotonic_ns() - start;
}

static uint32_t element(const void *data, uint32_t size)
{
	uint32_t value = 0;

	memcpy(&value, data, size);
	return value;
}

enum port_verdict protocol_unclaimed(struct protocol *protocol, const struct kvm_run *run,
				     void *data)
{
	/* Also what Python may leave unanswered: the buffer has bytes of an earlier exit. */
	if (run->io.direction == KVM_EXIT_IO_IN)
		memset(data, 0xFF, (size_t)run->io.size * run->io.count);
	if (protocol->unclaimed_to_python ||
	    (protocol->python_ports[run->io.port / 8] >> (run->io.port % 8) & 1))
		return PORT_PYTHON;
	__atomic_store_n(&protocol->has_unclaimed_ports, true, __ATOMIC_RELAXED);
	__atomic_fetch_add(&protocol->buffers->unclaimed_ports[run->io.port], 1, __ATOMIC_RELAXED);
	return PORT_DONE;
}

static enum port_verdict port_in(struct protocol *protocol, struct protocol_vcpu *vcpu,
				 const struct kvm_run *run, void *data)
{
	uint32_t value, i;

	if (run->io.size != 4)
		return protocol_unclaimed(protocol, run, data);
	switch (run->io.port) {
	case PORT_DOORBELL_RESULT:
		value = vcpu->doorbell_result;
		break;
	case PORT_FEATURES:
		value = protocol->features;
		break;
	default:
		return protocol_unclaimed(protocol, run, data);
	}
	for (i = 0; i < run->io.count; i++)
		memcpy((char *)data + i * sizeof(value), &value, sizeof(value));
	return PORT_DONE;
}

/* The upper half of a number of 64 bits; false where the port is any other. */
static bool take_upper_half(const struct protocol *protocol, struct protocol_vcpu *vcpu,
			    uint32_t port, uint32_t value)
{
	if (!protocol->is_wide)
		return false;
	switch (port) {
	case PORT_DOORBELL_GPA_HIGH:
		vcpu->doorbell_gpa_high = value;
		return true;
	case PORT_DOORBELL_PAGES_HIGH:
		vcpu->doorbell_pages_high = value;
		return true;
	case PORT_ASSERT_HIGH:
		vcpu->assert_gpa_high = value;
		return true;
	default:
		return false;
	}
}

/* A port where the guest protocol's are not C's: all are Python's, devices', or nobody's. */
static enum port_verdict foreign_port(struct protocol *protocol, const struct kvm_run *run,
				      void *data)
{
	if (!protocol->is_foreign)
		return PORT_PYTHON;
	if (protocol->vector_stubs && is_stub_port(run->io.port))
		return PORT_STUB;
	return protocol_unclaimed(protocol, run, data);
}

enum port_verdict protocol_port(struct protocol *protocol, struct protocol_vcpu *vcpu,
				struct memory *memory, const struct kvm_run *run, void *data,
				uint64_t *conversion_ns, uint64_t *converted)
{
	const uint32_t size = run->io.size;
	const char *bytes = data;
	uint32_t i;

	if (!protocol->enabled)
		return foreign_port(protocol, run, data);
	if (run->io.direction == KVM_EXIT_IO_IN)
		return port_in(protocol, vcpu, run, data);
	if (run->io.port == PORT_EXIT) {
		vcpu->exit_code = element(bytes, size);
		vcpu->by_stub = false;
		return PORT_EXITED;
	}
	if (run->io.port == PORT_CONSOLE && size == 1) {
		put_console(protocol, bytes, run->io.count);
		return PORT_DONE;
	}
	if (size != 4)
		return is_stub_port(run->io.port) ? PORT_STUB
						  : protocol_unclaimed(protocol, run, data);
	for (i = 0; i < run->io.count; i++, bytes += size) {
		const uint32_t value = element(bytes, size);

		switch (run->io.port) {
		case PORT_DOORBELL_GPA:
			vcpu->doorbell_gpa = value;
			break;
		case PORT_DOORBELL_PAGES:
			vcpu->doorbell_pages = value;
			break;
		case PORT_DOORBELL_RING:
			ring_doorbell(vcpu, memory, value, conversion_ns, converted);
			/* A page in use was waited for. A thousand such waits would outlast the
			 * deadline. */
			if (vcpu->doorbell_result == (uint32_t)-EAGAIN)
				return PORT_DONE;
			break;
		case PORT_ASSERT:
			vcpu->assert_gpa = (uint64_t)vcpu->assert_gpa_high << 32 | value;
			vcpu->exit_code = 1;
			return PORT_ASSERTED;
		case PORT_MEASURE:
			put_measure(protocol, value);
			break;
		default:
			if (take_upper_half(protocol, vcpu, run->io.port, value))
				break;
			return is_stub_port(run->io.port) ? PORT_STUB
							  : protocol_unclaimed(protocol, run, data);
		}
	}
	return PORT_DONE;
}

static void count_gpa(struct protocol *protocol, uint64_t gpa)
{
	const uint64_t wanted = gpa + 1;
	uint32_t i;

	for (i = 0; i < UNCLAIMED_GPAS; i++) {
		struct unclaimed *at = &protocol->unclaimed_gpas[i];
		uint64_t there = __atomic_load_n(&at->address, __ATOMIC_RELAXED);

		/* Another vCPU may take the place first, maybe for the same GPA. */
		if (there == 0 && __atomic_compare_exchange_n(&at->address, &there, wanted, false,
							      __ATOMIC_RELAXED, __ATOMIC_RELAXED))
			there = wanted;
		if (there == wanted) {
			__atomic_fetch_add(&at->count, 1, __ATOMIC_RELAXED);
			return;
		}
	}
	__atomic_fetch_add(&protocol->unclaimed_elsewhere, 1, __ATOMIC_RELAXED);
}

bool protocol_mmio(struct protocol *protocol, struct kvm_run *run)
{
	uint32_t i;

	if (!run->mmio.is_write)
		memset(run->mmio.data, 0xFF, sizeof(run->mmio.data));
	for (i = 0; i < protocol->python_window_count; i++) {
		const struct gpa_window *window = &protocol->python_windows[i];

		if (run->mmio.phys_addr - window->gpa < window->size)
			return false;
	}
	if (protocol->unclaimed_to_python)
		return false;
	count_gpa(protocol, run->mmio.phys_addr);
	return true;
}

bool protocol_has_unclaimed(const struct protocol *protocol)
{
	return __atomic_load_n(&protocol->has_unclaimed_ports, __ATOMIC_RELAXED) ||
	       __atomic_load_n(&protocol->unclaimed_gpas[0].address, __ATOMIC_RELAXED);
}

uint32_t protocol_unclaimed_ports(const struct protocol *protocol, struct unclaimed *most,
				  uint32_t room, uint64_t *total)
{
	uint32_t port, at, known = 0;

	*total = 0;
	if (!__atomic_load_n(&protocol->has_unclaimed_ports, __ATOMIC_RELAXED))
		return 0;
	for (port = 0; port < PORTS; port++) {
		const uint64_t count = __atomic_load_n(&protocol->buffers->unclaimed_ports[port],
						       __ATOMIC_RELAXED);

		*total += count;
		if (count == 0 || (known == room && (room == 0 || most[room - 1].count >= count)))
			continue;
		/* Sorted as they come; the last one makes room. */
		known += known < room;
		for (at = known - 1; at > 0 && most[at - 1].count < count; at--)
			most[at] = most[at - 1];
		most[at] = (struct unclaimed){ port, count };
	}
	return known;
}

uint32_t protocol_unclaimed_gpas(const struct protocol *protocol, struct unclaimed *first,
				 uint32_t room, uint64_t *total)
{
	uint32_t i, known = 0;

	*total = __atomic_load_n(&protocol->unclaimed_elsewhere, __ATOMIC_RELAXED);
	for (i = 0; i < UNCLAIMED_GPAS; i++) {
		const struct unclaimed *at = &protocol->unclaimed_gpas[i];
		const uint64_t count = __atomic_load_n(&at->count, __ATOMIC_RELAXED);

		*total += count;
		if (count && known < room)
			first[known++] = (struct unclaimed){ at->address - 1, count };
	}
	return known;
}
