"""Guests: assembling and loading them, and the state they start in."""
