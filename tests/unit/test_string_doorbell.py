"""OUTS to the doorbell: each of its words rings, until a page in use was waited for in vain."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path

import pytest
from c_program import CSRC, compiled

# Sixteen words in one exit; conversions fail with the errno that is given from the n-th on.
# Prints how many conversions were asked for, and the doorbell's result.
PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include "protocol.h"

static int asked, number, from;

int memory_convert(struct memory *memory, uint64_t gpa, uint64_t pages, uint32_t state,
		uint64_t *converted)
{
	(void)memory;
	(void)gpa;
	(void)pages;
	(void)state;
	*converted = 0;
	return ++asked >= from ? -number : 0;
}

int main(int count, char **words)
{
	struct protocol protocol = { .enabled = true };
	struct protocol_vcpu vcpu = { 0 };
	struct kvm_run run = { 0 };
	uint32_t data[16], at;
	uint64_t converted = 0;

	if (count != 3)
		return 2;
	number = atoi(words[1]);
	from = atoi(words[2]);
	for (at = 0; at < 16; at++)
		data[at] = DOORBELL_TO_PRIVATE;
	run.io.direction = KVM_EXIT_IO_OUT;
	run.io.port = PORT_DOORBELL_RING;
	run.io.size = 4;
	run.io.count = 16;
	if (protocol_port(&protocol, &vcpu, NULL, &run, data, NULL, &converted) != PORT_DONE)
		return 3;
	printf("%d %d\n", asked, -(int32_t)vcpu.doorbell_result);
	return 0;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("string_doorbell")
    return compiled(folder / "doorbell", PROGRAM, str(CSRC / "protocol.c"))


@pytest.mark.parametrize(
    ("number", "first", "asked"),
    [(0, 1, 16), (errno.EINVAL, 3, 16), (errno.EAGAIN, 1, 1), (errno.EAGAIN, 5, 5)],
)
def test_words_of_one_exit(program: Path, number: int, first: int, asked: int) -> None:
    words = [str(number), str(first)]
    found = subprocess.run(
        [program, *words], timeout=60, capture_output=True, text=True, check=True
    ).stdout
    assert found.split() == [str(asked), str(number)]
