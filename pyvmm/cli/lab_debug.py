"""`--debug` of `pyvmm lab build` and `check`: kernels that watch themselves."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace


def add_argument(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--debug",
        default="",
        metavar="NAME,...",
        help="let the kernel watch itself: lockdep, kasan, kmemleak, ubsan, kcsan, vm, rcu, list,"
        " faults; light is lockdep,list,rcu,vm and heavy is kasan,kmemleak,ubsan,list,vm",
    )


def names(options: Namespace) -> tuple[str, ...]:
    """What was asked for, nothing without --debug. Says how long the catalogue will take."""
    from pyvmm.cli.lab_command import say
    from pyvmm.lab.debug_options import expected_time, parse_debug

    if not options.debug:
        return ()
    found = parse_debug(options.debug)
    say(f"--debug {','.join(found)}: {expected_time(found)}")
    return found
