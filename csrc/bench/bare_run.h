/* SPDX-License-Identifier: MIT */
/*
 * What all of the floors begin with: KVM_RUN to the next exit.
 *
 * Nothing of the VMM uses what is in this folder. These loops know no deadline, no kick and
 * no log; the guests that they run are the benchmarks' own, which never stop exiting. A
 * signal is run over. Every function returns 0 or -errno; -EPROTO means an exit that the
 * guest does not make. Descriptors, mappings and histograms belong to the caller; a
 * histogram may be NULL, and costs two readings of the clock per operation when it is not.
 */
#ifndef PYVMM_BENCH_BARE_RUN_H
#define PYVMM_BENCH_BARE_RUN_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/ioctl.h>

#include "../exit_log.h"
#include "../guest_cpu.h"
#include "../kvm_compat.h"

/* 0, or -errno. A signal is run over. */
static inline int bare_run(int vcpu, struct kvm_run *run)
{
	while (ioctl(vcpu, KVM_RUN, 0) < 0) {
		if (errno != EINTR)
			return -errno;
		run->immediate_exit = 0;
	}
	return 0;
}

#endif
