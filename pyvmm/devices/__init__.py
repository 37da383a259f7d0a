"""Ports and MMIO windows that Python answers; the guest protocol's own ports are in C."""
