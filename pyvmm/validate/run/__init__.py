"""Choosing cases and running them in worker processes."""
