"""A serial port: National Semiconductor's PC16550D, which every PC's COM1 is.

The registers are those of its data sheet. No time passes in it: a byte that the guest
sends has gone at once, and one that arrives below the FIFO's trigger level times out at once.
The modem at the other end is always there and always ready. As in QEMU, and unlike a PC's
board, OUT2 does not gate the interrupt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from pyvmm.devices.byte_wide import ByteWide

COM1 = 0x3F8
COM1_IRQ = 4

#: Bytes of output that are kept, and of input that wait for the guest.
OUTPUT_SIZE = 1 << 20
INPUT_SIZE = 1 << 20

_FIFO_SIZE = 16
_TRIGGER_LEVELS = (1, 4, 8, 14)

# Registers by their offset; some have one meaning for reads and another for writes.
_DATA, _IER, _IIR_FCR, _LCR, _MCR, _LSR, _MSR, _SCR = range(8)
# Bits of the Interrupt Enable Register, and what the Interrupt Identification Register says.
_WANT_RECEIVED, _WANT_SENT, _WANT_LINE, _WANT_MODEM = 0x01, 0x02, 0x04, 0x08
_IS_LINE, _IS_RECEIVED, _IS_TIMEOUT, _IS_SENT, _IS_MODEM, _IS_NONE = 0x6, 0x4, 0xC, 0x2, 0x0, 0x1
_IIR_FIFOS = 0xC0
# FIFO Control, Line Control, Line Status.
_FCR_ENABLE, _FCR_CLEAR_RECEIVED = 0x01, 0x02
_LCR_DLAB = 0x80
_LSR_RECEIVED, _LSR_OVERRUN, _LSR_SENT = 0x01, 0x02, 0x60
# Modem Control (DTR, RTS, OUT1, OUT2, loopback) and Modem Status (changes, then the lines).
_MCR_DTR, _MCR_RTS, _MCR_OUT1, _MCR_OUT2, _MCR_LOOP = 0x01, 0x02, 0x04, 0x08, 0x10
_MSR_CTS, _MSR_DSR, _MSR_RI, _MSR_DCD = 0x10, 0x20, 0x40, 0x80
_MODEM_IS_READY = _MSR_CTS | _MSR_DSR | _MSR_DCD
_MSR_RI_CHANGED = 0x04  # it tells only of RI's end


class Serial16550(ByteWide):
    """A 16550 at the eight ports from ``base``.

    ``set_line(level)`` is called whenever its interrupt line changes: for COM1,
    ``lambda level: machine.vm.irq_line(4, level)``. Without it the guest can only poll.
    ``show(data)`` is called with what the guest sends, as it sends it; what it raises ends the
    run. The first MiB is kept in :attr:`output`, and the rest counted.

    Synchronization: any thread may call :meth:`receive`; the guest's vCPUs call the rest.
    """

    def __init__(
        self,
        base: int = COM1,
        *,
        set_line: Callable[[bool], object] | None = None,
        show: Callable[[bytes], object] | None = None,
    ) -> None:
        super().__init__(range(base, base + 8))
        self._set_line, self._show = set_line, show
        self._output = bytearray()
        self._dropped = 0
        self._input: deque[int] = deque()  # on the wire
        self._fifo: deque[int] = deque()
        self._capacity = 1  # of the FIFO
        self._trigger = 1
        self._ier = self._lcr = self._mcr = self._scr = 0
        self._divisor = [0x0C, 0x00]  # 9,600 baud
        self._lsr = _LSR_SENT
        self._msr = _MODEM_IS_READY
        self._sent = False  # the interrupt that says so is pending
        self._level = False

    # ---- the host's side ----

    @property
    def output(self) -> bytes:
        """What the guest has sent, as far as it is kept."""
        with self.lock:
            return bytes(self._output)

    @property
    def dropped(self) -> int:
        """How many bytes more it has sent."""
        return self._dropped

    def receive(self, data: bytes) -> int:
        """Put bytes on the wire to the guest; how many there was room for, of 1 MiB in all.

        They wait there until the guest has read what came before, as with flow control.
        """
        with self.lock:
            taken = data[: INPUT_SIZE - len(self._input)]
            self._input.extend(taken)
            self._take_from_wire()
            self._update()
            return len(taken)

    # ---- the guest's side ----

    def read_byte(self, offset: int) -> int:
        if offset == _LSR:
            value = self._lsr | (_LSR_RECEIVED if self._fifo else 0)
            if self._lsr != _LSR_SENT:
                self._lsr = _LSR_SENT  # reading clears an overrun
                self._update()
            return value
        if offset <= _IER and self._lcr & _LCR_DLAB:
            return self._divisor[offset]
        if offset == _DATA:
            return self._next_received()
        if offset == _IIR_FCR:
            return self._identify()
        if offset == _MSR:
            value = self._msr
            self._msr &= 0xF0  # reading clears the changes
            self._update()
            return value
        return {_IER: self._ier, _LCR: self._lcr, _MCR: self._mcr, _SCR: self._scr}[offset]

    def write_byte(self, offset: int, value: int) -> None:
        if offset <= _IER and self._lcr & _LCR_DLAB:
            self._divisor[offset] = value
        elif offset == _DATA:
            self._send(value)
        elif offset == _IER:
            # To want it while there is room is to get it.
            if value & ~self._ier & _WANT_SENT:
                self._sent = True
            self._ier = value & 0x0F
            self._update()
        elif offset == _IIR_FCR:
            self._control_fifos(value)
        elif offset == _LCR:
            self._lcr = value
        elif offset == _MCR:
            self._control_modem(value)
        elif offset == _SCR:
            self._scr = value

    def _send(self, byte: int) -> None:
        # The line falls and rises again: where interrupts are edges, that is the next one.
        self._sent = False
        self._update()
        if self._mcr & _MCR_LOOP:
            self._take(byte)
        else:
            data = byte.to_bytes(1)
            if len(self._output) < OUTPUT_SIZE:
                self._output += data
            else:
                self._dropped += 1
            if self._show is not None:
                self._show(data)
        self._sent = True
        self._update()

    def _take(self, byte: int) -> None:
        """A byte has come through the loop, whether or not there is room for it."""
        if len(self._fifo) >= self._capacity:
            self._lsr |= _LSR_OVERRUN
            if self._capacity > 1:
                return  # it is lost; without FIFOs it is the one before that is
            self._fifo.clear()
        self._fifo.append(byte)

    def _next_received(self) -> int:
        if not self._fifo:
            return 0
        byte = self._fifo.popleft()
        self._update()
        if not self._fifo:
            # The line has fallen: where interrupts are edges, what comes now is the next one.
            self._take_from_wire()
            self._update()
        return byte

    def _take_from_wire(self) -> None:
        while self._input and len(self._fifo) < self._capacity and not self._mcr & _MCR_LOOP:
            self._fifo.append(self._input.popleft())

    def _control_fifos(self, value: int) -> None:
        capacity = _FIFO_SIZE if value & _FCR_ENABLE else 1
        # A switch clears both; what was sent has gone already.
        if capacity != self._capacity or value & (_FCR_ENABLE | _FCR_CLEAR_RECEIVED) == 0x03:
            self._fifo.clear()
        self._capacity = capacity
        self._trigger = _TRIGGER_LEVELS[value >> 6] if value & _FCR_ENABLE else 1
        self._take_from_wire()
        self._update()

    def _control_modem(self, value: int) -> None:
        self._mcr = value & 0x1F
        lines = _MODEM_IS_READY
        if value & _MCR_LOOP:
            lines = (
                (_MSR_CTS if value & _MCR_RTS else 0)
                | (_MSR_DSR if value & _MCR_DTR else 0)
                | (_MSR_RI if value & _MCR_OUT1 else 0)
                | (_MSR_DCD if value & _MCR_OUT2 else 0)
            )
        changes = (lines ^ self._msr) >> 4
        if lines & _MSR_RI:
            changes &= ~_MSR_RI_CHANGED
        self._msr = lines | (self._msr | changes) & 0x0F
        self._take_from_wire()
        self._update()

    # ---- interrupts ----

    def _pending(self) -> int:
        """What the Interrupt Identification Register's low bits say: the most urgent cause."""
        ier = self._ier
        if ier & _WANT_LINE and self._lsr & _LSR_OVERRUN:
            return _IS_LINE
        if ier & _WANT_RECEIVED and self._fifo:
            return _IS_RECEIVED if len(self._fifo) >= self._trigger else _IS_TIMEOUT
        if ier & _WANT_SENT and self._sent:
            return _IS_SENT
        if ier & _WANT_MODEM and self._msr & 0x0F:
            return _IS_MODEM
        return _IS_NONE

    def _identify(self) -> int:
        pending = self._pending()
        if pending == _IS_SENT:
            self._sent = False  # reading is the answer
            self._update()
        return pending | (_IIR_FIFOS if self._capacity > 1 else 0)

    def _update(self) -> None:
        """Let the interrupt line follow what is pending."""
        level = self._pending() != _IS_NONE
        if level != self._level:
            self._level = level
            if self._set_line is not None:
                self._set_line(level)
