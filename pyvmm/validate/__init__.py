"""``pyvmm validate``: a catalogue of cases that say what a kernel's private memory does.

A case is one small function with its own VM (``cases/``); ``case.py`` says what it is,
``toolbox.py`` is what it works with, ``capabilities.py`` what it may need, ``runner.py``
runs the cases in worker processes, and ``ktap.py``, ``report.py`` and ``baseline.py``
say what came out.
"""
