/* SPDX-License-Identifier: MIT */
/*
 * The guest protocol's ports: console, exit, doorbell, assert, measures, features.
 *
 * Guarantees: a guest cannot make any of it grow. The console and the measures
 * are fixed buffers; what does not fit is counted and dropped. Accesses that nobody
 * claims are counted by port, and by GPA for the first UNCLAIMED_GPAS of them. The state that
 * all vCPUs share is only changed by atomic operations; the doorbell's registers
 * belong to one vCPU. Python owns struct protocol and frees it last.
 */
#ifndef PYVMM_PROTOCOL_H
#define PYVMM_PROTOCOL_H

#include <stdbool.h>
#include <stdint.h>

#include "kvm_compat.h"
#include "memory.h"

#define PORT_CONSOLE 0xE9
#define PORT_EXIT 0xF4
#define PORT_DOORBELL_GPA 0x600
#define PORT_DOORBELL_PAGES 0x604
#define PORT_DOORBELL_RING 0x608
#define PORT_DOORBELL_RESULT 0x60C
#define PORT_ASSERT 0x610
#define PORT_MEASURE 0x614
#define PORT_FEATURES 0x618
/* In protected and long mode only: bits 63:32 of what the three ports of that name are told. */
#define PORT_DOORBELL_GPA_HIGH 0x61C
#define PORT_DOORBELL_PAGES_HIGH 0x620
#define PORT_ASSERT_HIGH 0x624

#define DOORBELL_TO_SHARED 1
#define DOORBELL_TO_PRIVATE 2

#define FEATURE_HYPERCALL (1u << 0)
#define FEATURE_TWO_VIEWS (1u << 1)
#define FEATURE_KEEPS_CONTENTS (1u << 2)

#define CONSOLE_SIZE (1u << 20)
#define MEASURES_SIZE 4096u
#define PORTS 65536u
#define PYTHON_WINDOWS 64u
#define UNCLAIMED_GPAS 16u

/* Accesses to a port or GPA that read all ones or were ignored. */
struct unclaimed {
	uint64_t address;
	uint64_t count;
};

/* Of pages that cost nothing until they are touched, as with most guests they never are. */
struct protocol_buffers {
	char console[CONSOLE_SIZE];
	uint32_t measures[MEASURES_SIZE];
	uint64_t unclaimed_ports[PORTS]; /* accesses to each */
};

struct protocol {
	uint32_t features;
	bool enabled; /* off: every port goes to Python, unless is_foreign */
	bool is_foreign; /* not enabled: the guest's ports are devices' or nobody's */
	bool is_wide; /* the guest has numbers of 64 bits */
	bool unclaimed_to_python; /* ports and memory that nobody claims */
	bool has_unclaimed_ports;
	uint32_t python_window_count;
	uint64_t vector_stubs; /* GPA of vector 0's, 0 for none: see vector_stub.h */
	uint64_t console_written; /* bytes ever; the first CONSOLE_SIZE are kept */
	uint64_t measures_written;
	struct unclaimed unclaimed_gpas[UNCLAIMED_GPAS]; /* GPA + 1, in order; 0: none yet */
	uint64_t unclaimed_elsewhere; /* accesses to GPAs that came after those */
	struct protocol_buffers *buffers;
	struct gpa_window {
		uint64_t gpa;
		uint64_t size;
	} python_windows[PYTHON_WINDOWS];
	uint8_t python_ports[PORTS / 8];
};

/* One vCPU's side of the protocol. */
struct protocol_vcpu {
	uint32_t doorbell_gpa;
	uint32_t doorbell_pages;
	uint32_t doorbell_gpa_high; /* these three are 0 again once they were used */
	uint32_t doorbell_pages_high;
	uint32_t assert_gpa_high;
	uint32_t doorbell_result;
	uint32_t exit_code;
	uint64_t assert_gpa;
	bool by_stub; /* exit_code is 0x100 + vector: nothing handled it */
};

enum port_verdict {
	PORT_DONE,
	PORT_PYTHON, /* nobody in C answers this port */
	PORT_EXITED, /* exit_code is set */
	PORT_ASSERTED, /* assert_gpa is set */
	PORT_STUB, /* a vector's stub, or nobody: protocol_unclaimed() */
};

/* NULL when there is no memory. */
struct protocol *protocol_create(void);
void protocol_destroy(struct protocol *protocol);
/* KVM_EXIT_IO. `data` is the run page's buffer, checked to hold size * count bytes. */
enum port_verdict protocol_port(struct protocol *protocol, struct protocol_vcpu *vcpu,
				struct memory *memory, const struct kvm_run *run, void *data,
				uint64_t *conversion_ns, uint64_t *converted);
/* The same, for a port that C has nothing to do with. */
enum port_verdict protocol_unclaimed(struct protocol *protocol, const struct kvm_run *run,
				     void *data);
/* KVM_EXIT_MMIO outside every region. False: Python answers. */
bool protocol_mmio(struct protocol *protocol, struct kvm_run *run);
/* Whether there was any access to a port or GPA that nobody has. */
bool protocol_has_unclaimed(const struct protocol *protocol);
/*
 * The unclaimed ports with the most accesses, most first, and the first unclaimed GPAs.
 * At most `room` are put into `most`; returns how many. `total` is of all of them.
 */
uint32_t protocol_unclaimed_ports(const struct protocol *protocol, struct unclaimed *most,
				  uint32_t room, uint64_t *total);
uint32_t protocol_unclaimed_gpas(const struct protocol *protocol, struct unclaimed *first,
				 uint32_t room, uint64_t *total);

#endif
