"""Random sequences of operations against a simple model of page states and contents.

``script.py`` says what a script is: the memory and the steps, in JSON. ``state.py`` is the
model, ``system.py`` the same memory on KVM; both have a class per ABI in a file of the
ABI's name. ``play.py`` takes each step on both and compares; ``random_scripts.py`` makes
scripts, and ``explore.py`` plays them and shrinks one that fails.
"""
