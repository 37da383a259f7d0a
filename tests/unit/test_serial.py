"""The 16550, as a guest and a host see it."""

from __future__ import annotations

import random
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.devices.serial import COM1, INPUT_SIZE, OUTPUT_SIZE, Serial16550

DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR = range(COM1, COM1 + 8)
FCR = IIR
NONE, RECEIVED, TIMEOUT, SENT, LINE = 0x1, 0x4, 0xC, 0x2, 0x6


class Line:
    """An interrupt line, and every level that it has had."""

    def __init__(self) -> None:
        self.levels: list[bool] = []

    def __call__(self, level: bool) -> None:
        assert not self.levels or level != self.levels[-1], "only changes are told"
        self.levels.append(level)

    @property
    def level(self) -> bool:
        return bool(self.levels) and self.levels[-1]


def out(serial: Serial16550, text: bytes) -> None:
    for byte in text:
        assert serial.read(LSR, 1) & 0x20
        serial.write(DATA, 1, byte)


def test_what_is_sent_is_kept_and_shown() -> None:
    shown: list[bytes] = []
    serial = Serial16550(show=shown.append)
    assert serial.read(LSR, 1) == 0x60
    out(serial, b"hello\n")
    assert serial.output == b"".join(shown) == b"hello\n"
    assert serial.dropped == 0


def test_what_is_received_is_polled() -> None:
    serial = Serial16550()
    assert serial.read(DATA, 1) == 0
    assert serial.receive(b"ab") == 2
    assert serial.read(LSR, 1) == 0x61
    assert serial.read(DATA, 1) == ord("a")
    assert serial.read(LSR, 1) == 0x61
    assert serial.read(DATA, 1) == ord("b")
    assert serial.read(LSR, 1) == 0x60


def test_another_base() -> None:
    serial = Serial16550(0x2F8)
    assert serial.ports == range(0x2F8, 0x300)
    serial.write(0x2F8, 1, ord("x"))
    assert serial.output == b"x"


def test_the_divisor_latch() -> None:
    serial = Serial16550()
    serial.write(IER, 1, 0xFF)
    assert serial.read(IER, 1) == 0x0F
    serial.write(LCR, 1, 0x83)
    serial.write(DATA, 1, 0x12)
    serial.write(IER, 1, 0x34)
    assert serial.read(DATA, 2) == 0x3412
    assert serial.read(LCR, 1) == 0x83
    serial.write(LCR, 1, 0x03)
    assert serial.read(IER, 1) == 0x0F
    assert serial.output == b""
    serial.write(SCR, 1, 0xA5)
    assert serial.read(SCR, 1) == 0xA5


def test_wide_accesses_are_one_byte_to_each_port() -> None:
    serial = Serial16550()
    serial.write(LCR, 1, 0x80)
    serial.write(DATA, 4, 0x03_C7_00_01)  # the divisor, FCR and LCR
    assert serial.read(DATA, 4) == 0x03_C1_00_00  # no data, IER, IIR with FIFOs, LCR
    assert serial.read(SCR, 4) == 0xFFFFFF00
    serial.write(SCR, 4, 0x11223344)
    assert serial.read(SCR, 1) == 0x44
    assert serial.output == b""


# ---- interrupts ----


def test_a_received_byte_raises_the_line_until_it_is_read() -> None:
    line = Line()
    serial = Serial16550(set_line=line)
    serial.receive(b"a")
    assert line.levels == []  # nobody wants it
    serial.write(IER, 1, 0x01)
    assert line.level
    assert serial.read(IIR, 1) == RECEIVED
    serial.read(DATA, 1)
    assert not line.level
    assert serial.read(IIR, 1) == NONE


def test_each_byte_sent_is_an_edge() -> None:
    line = Line()
    serial = Serial16550(set_line=line)
    serial.write(IER, 1, 0x02)
    assert line.level
    assert serial.read(IIR, 1) == SENT
    assert not line.level
    assert serial.read(IIR, 1) == NONE
    out(serial, b"ab")
    assert line.levels == [True, False, True, False, True]
    serial.write(IER, 1, 0)
    assert not line.level
    serial.write(IER, 1, 2)  # to want it anew is to get it anew
    assert serial.read(IIR, 1) == SENT


@pytest.mark.parametrize(("fcr", "edges"), [(0x00, 40), (0x01, 3)])
def test_input_that_waits_is_edge_after_edge(fcr: int, edges: int) -> None:
    """Whoever reads until there is nothing more, and whoever reads one byte without FIFOs."""
    line = Line()
    serial = Serial16550(set_line=line)
    serial.write(FCR, 1, fcr)
    serial.write(IER, 1, 0x01)
    serial.receive(bytes(range(40)))
    assert [serial.read(DATA, 1) for _ in range(40)] == list(range(40))
    assert line.levels == [True, False] * edges


def test_the_fifos_trigger_level() -> None:
    line = Line()
    serial = Serial16550(set_line=line)
    serial.write(FCR, 1, 0x81)  # 8 bytes
    serial.write(IER, 1, 0x01)
    assert serial.read(IIR, 1) == 0xC0 | NONE
    serial.receive(b"1234567")
    assert serial.read(IIR, 1) == 0xC0 | TIMEOUT
    serial.receive(b"8")
    assert serial.read(IIR, 1) == 0xC0 | RECEIVED
    assert [serial.read(DATA, 1) for _ in range(8)] == list(b"12345678")
    assert not line.level


def test_a_cleared_fifo_goes_on_with_what_is_on_the_wire() -> None:
    serial = Serial16550()
    serial.write(FCR, 1, 0x01)
    serial.receive(bytes(range(20)))
    serial.write(FCR, 1, 0x03)
    assert serial.read(DATA, 1) == 16
    serial.write(FCR, 1, 0)  # switching them off clears, too
    assert serial.read(LSR, 1) == 0x60


def test_urgent_causes_come_first() -> None:
    serial = Serial16550()
    serial.write(MCR, 1, 0x10)  # the lines fall: modem status
    serial.write(IER, 1, 0x0F)
    for byte in b"ab":  # one too many without FIFOs
        serial.write(DATA, 1, byte)
    assert serial.read(IIR, 1) == LINE
    assert serial.read(LSR, 1) == 0x63
    assert serial.read(IIR, 1) == RECEIVED
    assert serial.read(DATA, 1) == ord("b")
    assert serial.read(IIR, 1) == SENT
    assert serial.read(IIR, 1) == 0x0
    serial.read(MSR, 1)
    assert serial.read(IIR, 1) == NONE


# ---- loopback ----


def test_loopback_as_linux_looks_for_a_uart() -> None:
    serial = Serial16550()
    assert serial.read(MSR, 1) == 0xB0
    serial.write(MCR, 1, 0x1A)
    assert serial.read(MSR, 1) & 0xF0 == 0x90
    serial.write(MCR, 1, 0x15)
    assert serial.read(MSR, 1) & 0xF0 == 0x60
    serial.write(MCR, 1, 0)
    assert serial.read(MSR, 1) & 0x0F  # changes, and the end of RI
    assert serial.read(MSR, 1) == 0xB0


def test_loopback_overruns_at_the_fifos_end() -> None:
    serial = Serial16550()
    serial.write(FCR, 1, 0x01)
    serial.write(MCR, 1, 0x10)
    serial.receive(b"host")
    out(serial, bytes(range(17)))
    assert serial.read(LSR, 1) == 0x63
    assert [serial.read(DATA, 1) for _ in range(16)] == list(range(16))
    assert serial.read(LSR, 1) == 0x60
    assert serial.output == b""
    serial.write(MCR, 1, 0)
    assert serial.read(DATA, 1) == ord("h")


# ---- bounds, and what anybody may do ----


def test_output_and_input_are_bounded() -> None:
    serial = Serial16550()
    serial._output = bytearray(OUTPUT_SIZE - 1)
    out(serial, b"abc")
    assert len(serial.output) == OUTPUT_SIZE
    assert serial.dropped == 2
    assert serial.receive(bytes(INPUT_SIZE)) == INPUT_SIZE
    assert serial.receive(b"x") == 1  # one has gone into the holding register
    assert serial.receive(b"x") == 0


PORTS, SIZES = st.sampled_from(range(COM1, COM1 + 8)), st.sampled_from((1, 2, 4))
READS = st.tuples(st.just("read"), PORTS, SIZES)
WRITES = st.tuples(st.integers(0, 0xFFFFFFFF), PORTS, SIZES)
ACCESSES = st.lists(st.one_of(READS, WRITES, st.binary(max_size=40)), max_size=60)


@given(ACCESSES)
def test_any_accesses_leave_it_whole(accesses: list[tuple[int | str, int, int] | bytes]) -> None:
    line = Line()
    serial = Serial16550(set_line=line)
    for access in accesses:
        if isinstance(access, bytes):
            serial.receive(access)
            continue
        value, port, size = access
        if isinstance(value, str):
            assert 0 <= serial.read(port, size) < 1 << 8 * size
        else:
            serial.write(port, size, value & (1 << 8 * size) - 1)
    assert len(serial._fifo) <= 16
    serial.write(LCR, 1, 0)
    cause = serial._pending()
    assert line.level == (cause != NONE)
    assert serial.read(LSR, 1) & 0x60 == 0x60


@given(st.binary(max_size=200), st.sampled_from((0x00, 0x01, 0x41, 0x81, 0xC1)))
def test_input_arrives_whole_and_in_order(data: bytes, fcr: int) -> None:
    serial = Serial16550()
    serial.write(FCR, 1, fcr)
    assert serial.receive(data) == len(data)
    received = bytearray()
    while serial.read(LSR, 1) & 1:
        received.append(serial.read(DATA, 1))
    assert received == data


def test_several_vcpus_and_a_host_at_once() -> None:
    line = Line()
    serial = Serial16550(set_line=line)
    serial.write(FCR, 1, 0x01)
    serial.write(IER, 1, 0x0F)
    rounds = 3000
    errors: list[Exception] = []

    def guest(seed: int) -> None:
        dice = random.Random(seed)
        try:
            for _ in range(rounds):
                serial.write(DATA, 1, seed)
                serial.read(dice.choice((IIR, LSR, MSR, IER)), dice.choice((1, 2)))
                serial.read(DATA, 1)
        except Exception as error:
            errors.append(error)

    def host() -> None:
        for _ in range(rounds):
            serial.receive(b"\xff")

    threads = [Thread(target=guest, args=(seed,)) for seed in (1, 2, 3, 4)] + [Thread(target=host)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(serial.output) == sorted(bytes((1, 2, 3, 4)) * rounds)
    assert line.level == (serial._pending() != NONE)


def test_what_show_raises_comes_out() -> None:
    def show(data: bytes) -> None:
        raise BrokenPipeError

    serial = Serial16550(show=show)
    with pytest.raises(BrokenPipeError):
        serial.write(DATA, 1, 1)
    assert serial.lock.acquire(blocking=False)
