/* SPDX-License-Identifier: MIT */
/*
 * The stubs that all 256 vectors lead to until the guest sets its own, in every mode of the guest
 * protocol, and in real mode on the platform bare.
 *
 * A stub must not change what the report then shows: it has no register and no stack, and
 * little RAM. So it is one OUT, and there is one at each byte of VECTOR_STUBS: the bytes are
 * E6 (out %al, port) or E7 (out %ax, port; %eax where code has 32 or 64 bits), and the byte
 * behind each is its port, E6 or E7, too. Which stub it was follows from IP. KVM leaves IP at
 * the OUT or behind it, two bytes further; E6 E6 E7 E7 over and over makes those two differ in
 * width and port. In real mode they end with vector 255's port, below 0x600.
 */
#ifndef PYVMM_VECTOR_STUB_H
#define PYVMM_VECTOR_STUB_H

#include <stdbool.h>
#include <stdint.h>

#include "kvm_compat.h"
#include "memory.h"

#define VECTORS 256u
#define VECTOR_STUBS 0x4FFu /* of vector 0 in real mode; the next is one byte further */
#define STUB_OUT_AL 0xE6u
#define STUB_OUT_AX 0xE7u

static inline bool is_stub_port(uint32_t port)
{
	return port == STUB_OUT_AL || port == STUB_OUT_AX;
}

/*
 * The vector whose stub made this KVM_EXIT_IO; -1 when the guest's own code did. `stubs` is the
 * GPA, and the linear address, of vector 0's.
 */
int vector_of_stub(int vcpu_fd, const struct memory *memory, const struct kvm_run *run,
		   uint64_t stubs);

#endif
