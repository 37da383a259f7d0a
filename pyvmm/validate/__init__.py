"""``pyvmm validate``: a catalogue of cases that say what a kernel's private memory does.

A case is one small function with its own VM (``cases/``) that works with what ``kit/`` has:
``kit/case.py`` says what a case is. ``run/`` chooses cases and runs them in worker processes
(``run/session.py`` is the way in), ``results/`` says what came out, ``kernels/`` compares two
kernels, and ``model/`` plays random scripts beside a small model.
"""
