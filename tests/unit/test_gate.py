"""csrc/gate.c: nobody is in KVM_RUN between a close and an open, and everybody comes out of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from c_program import compiled

# Three vCPUs whose KVM_RUN ends by a signal alone, or by one that came just before; two threads
# that close the gate. Status 1: somebody was inside of a closed gate.
PROGRAM = r"""
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/ioctl.h>

static int fake_ioctl(int fd, unsigned long request, ...);
#define ioctl fake_ioctl
#include "gate.c"

enum { VCPUS = 3, CLOSERS = 2, ROUNDS = 40 };

static __thread volatile sig_atomic_t immediate_exit;
static struct gate gate = { .used = true };
static int inside, left = VCPUS, stop, wrong;

static void on_signal(int signal)
{
	(void)signal;
	immediate_exit = 1;
}

static int fake_ioctl(int fd, unsigned long request, ...)
{
	sigset_t none, ours;

	(void)fd;
	(void)request;
	__atomic_fetch_add(&inside, 1, __ATOMIC_SEQ_CST);
	sigemptyset(&none);
	sigemptyset(&ours);
	sigaddset(&ours, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &ours, NULL);
	while (!immediate_exit)
		sigsuspend(&none);
	immediate_exit = 0;
	pthread_sigmask(SIG_UNBLOCK, &ours, NULL);
	__atomic_fetch_sub(&inside, 1, __ATOMIC_SEQ_CST);
	errno = EINTR;
	return -1;
}

static void *run(void *argument)
{
	while (!__atomic_load_n(&stop, __ATOMIC_SEQ_CST)) {
		if (gate_run(&gate, 0) != EINTR)
			wrong = 1;
	}
	__atomic_fetch_sub(&left, 1, __ATOMIC_SEQ_CST);
	return argument;
}

static void close_once(void)
{
	int look;

	gate_close(&gate, SIGUSR1);
	for (look = 0; look < 4; look++) {
		if (__atomic_load_n(&inside, __ATOMIC_SEQ_CST))
			wrong = 1;
		sched_yield();
	}
	gate_open(&gate);
}

static void *convert(void *argument)
{
	int round;

	for (round = 0; round < ROUNDS; round++)
		close_once();
	return argument;
}

int main(void)
{
	struct sigaction action = { .sa_handler = on_signal };
	pthread_t vcpus[VCPUS], closers[CLOSERS];
	int at;

	sigaction(SIGUSR1, &action, NULL);
	gate_init(&gate);
	for (at = 0; at < VCPUS; at++)
		pthread_create(&vcpus[at], NULL, run, NULL);
	for (at = 0; at < CLOSERS; at++)
		pthread_create(&closers[at], NULL, convert, NULL);
	for (at = 0; at < CLOSERS; at++)
		pthread_join(closers[at], NULL);
	__atomic_store_n(&stop, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&left, __ATOMIC_SEQ_CST))
		close_once();
	for (at = 0; at < VCPUS; at++)
		pthread_join(vcpus[at], NULL);
	gate_deinit(&gate);
	return wrong;
}
"""


def test_nobody_is_inside_of_a_closed_gate(tmp_path: Path) -> None:
    target = compiled(tmp_path / "gate_test", PROGRAM, "-O1", "-pthread")
    assert subprocess.run([target], timeout=300, check=False).returncode == 0
