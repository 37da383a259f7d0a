/* SPDX-License-Identifier: MIT */
/* One cpuid. In a virtual machine it traps to the hypervisor below, as a KVM_RUN there does. */
#include <cpuid.h>

void execute_cpuid(void)
{
	unsigned int eax, ebx, ecx, edx;

	__cpuid(0, eax, ebx, ecx, edx);
}
