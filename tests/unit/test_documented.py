"""The documents name every option of the command line, and every key of what is printed as JSON."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from pyvmm.bench import comparison, result
from pyvmm.cli.main import COMMANDS
from pyvmm.doctor import Checkup
from pyvmm.validate.results import report
from pyvmm.validate.results.result import CaseResult, State
from pyvmm.validate.run.catalogue import select

DOCS = Path(__file__).parents[2] / "docs"
TEXT = "\n".join(path.read_text() for path in DOCS.glob("*.md"))
BENCH_CASE = result.CaseResult("x", 1.0, 1.0, 1.0, (1.0, 1.0), {}, {})


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                yield from parsers(each)


def options() -> list[tuple[str, str]]:
    top = argparse.ArgumentParser(prog="pyvmm")
    commands = top.add_subparsers()
    for name in COMMANDS:
        importlib.import_module(f"pyvmm.cli.{name}").add_parser(commands)
    return [
        (parser.prog, word)
        for parser in parsers(top)
        for action in parser._actions
        for word in action.option_strings
        if word not in ("-h", "--help")
    ]


def test_every_option_is_documented() -> None:
    missing = [
        f"{command} {word}"
        for command, word in options()
        if not re.search(rf"{re.escape(word)}(?![\w-])", TEXT)
    ]
    assert not missing


def test_examples_of_validate_have_as_many_cases_as_they_choose() -> None:
    example = re.compile(r"validate -k (\"[^\"]+\"|\S+)\n(\d+) cases?, seed")
    shown = {words.strip('"'): int(count) for words, count in example.findall(TEXT)}
    assert len(shown) > 1
    assert shown == {words: len(select(words)) for words in shown}


def keys_of_validate() -> set[str]:
    case = CaseResult("X1.a", "X1", "a title", "tests", State.PASS)
    whole = report.to_json(report.Report({}, 7, 1.5, (case,)))
    return {*whole, *whole["results"][0]}


def keys_of_bench() -> set[str]:
    whole = result.to_json(result.BenchResult({}, (BENCH_CASE,)))
    compared = comparison.Comparison((), (), (), ())
    changes = {field.name for field in fields(comparison.Change)}
    return {*whole, *whole["cases"][0], *comparison.to_json(compared), *changes}


def test_the_glossary_is_in_order_and_has_the_words_of_a_verdict() -> None:
    terms = re.findall(r"^(\S.*)\n: ", (DOCS / "glossary.md").read_text(), re.MULTILINE)
    assert terms == sorted(terms, key=str.lower)
    assert {"case", "kick", "mechanism", "same-fault guard", "splat"} <= set(terms)


@pytest.mark.parametrize(
    ("document", "keys"),
    [
        ("command-line.md", keys_of_validate()),
        ("command-line.md", {field.name for field in fields(Checkup)}),
        ("bench.md", keys_of_bench()),
    ],
    ids=["validate", "doctor", "bench"],
)
def test_every_key_is_documented(document: str, keys: set[str]) -> None:
    text = (DOCS / document).read_text()
    assert not {key for key in keys if f"`{key}`" not in text}
