"""All cases, and how some of them are chosen."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

from pyvmm.errors import ConfigurationError
from pyvmm.validate import cases
from pyvmm.validate.kit.case import REGISTERED, Case

# What stands in a name's square brackets may have spaces.
_TOKEN = re.compile(r"\s*([()]|(?:[^\s()\[]|\[[^\]]*\]?)+)")


@cache
def all_cases() -> tuple[Case, ...]:
    """Every case, in the order of the files and of the functions in them."""
    for module in sorted(each.name for each in pkgutil.iter_modules(cases.__path__)):
        importlib.import_module(f"{cases.__name__}.{module}")
    names = [each.name for each in REGISTERED]
    assert len(set(names)) == len(names), "two cases have the same name"
    return tuple(REGISTERED)


def select(expression: str = "", backend: str = "", model_examples: int = 0) -> list[Case]:
    """The cases that an expression chooses, and those of one ABI with ``backend``.

    ``model_examples`` says how many random scripts each case of the model plays, 0 the usual
    number; its deadline grows with it.

    The expression joins words with ``and``, ``or``, ``not`` and brackets. A word that is an
    id or a whole name chooses just that; any other chooses the names, titles and subjects
    that contain it.
    Raises :class:`ConfigurationError` for a word that chooses nothing, with the nearest names.
    """
    chosen = list(all_cases())
    if backend:
        chosen = [each for each in chosen if each.backend == backend]
    if expression.strip():
        matches = _Expression(expression).parse()
        chosen = [each for each in chosen if matches(each)]
    if not chosen:
        about = " ".join(filter(None, (expression, backend and f"--backend {backend}")))
        raise ConfigurationError(about, "no case is chosen", "pyvmm validate --list shows all")
    return [_longer(each, model_examples) if model_examples else each for each in chosen]


def _longer(each: Case, examples: int) -> Case:
    if not each.examples:
        return each
    deadline_s = each.deadline_s * max(1.0, examples / each.examples)
    return replace(each, examples=examples, deadline_s=deadline_s)


Match = Callable[[Case], bool]


class _Expression:
    """A recursive-descent parser: or_ > and_ > not_ > word."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[str] = _TOKEN.findall(text)

    def parse(self) -> Match:
        match = self.or_()
        if self.tokens:
            raise self.error(f"{self.tokens[0]!r} is not expected here")
        return match

    def error(self, cause: str) -> ConfigurationError:
        return ConfigurationError(
            f"-k {self.text!r}", cause, "join words with and, or, not and brackets"
        )

    def next_is(self, word: str) -> bool:
        if self.tokens and self.tokens[0] == word:
            self.tokens.pop(0)
            return True
        return False

    def or_(self) -> Match:
        either = [self.and_()]
        while self.next_is("or"):
            either.append(self.and_())
        return lambda each: any(match(each) for match in either)

    def and_(self) -> Match:
        both = [self.not_()]
        while self.next_is("and"):
            both.append(self.not_())
        return lambda each: all(match(each) for match in both)

    def not_(self) -> Match:
        if self.next_is("not"):
            match = self.not_()
            return lambda each: not match(each)
        if self.next_is("("):
            match = self.or_()
            if not self.next_is(")"):
                raise self.error("a bracket is not closed")
            return match
        if not self.tokens or self.tokens[0] in ("and", "or", ")"):
            raise self.error("a word is missing")
        return _word(self.tokens.pop(0))


def _word(word: str) -> Match:
    wanted = word.lower()
    if any(each.id.lower() == wanted for each in all_cases()):
        return lambda each: each.id.lower() == wanted
    if any(each.name.lower() == wanted for each in all_cases()):
        return lambda each: each.name.lower() == wanted

    def match(each: Case) -> bool:
        return any(wanted in text.lower() for text in (each.name, each.title, each.subject))

    if not any(match(each) for each in all_cases()):
        raise ConfigurationError(f"case {word}", "there is no such case", nearest(word))
    return match


def nearest(word: str) -> str:
    """A remedy: the ids and functions whose names are nearest to ``word``."""
    import difflib

    known: dict[str, str] = {}
    for each in all_cases():
        for name in (each.id, each.function.__name__, each.subject):
            known.setdefault(name.lower(), name)
    near: Sequence[str] = difflib.get_close_matches(word.lower(), known, n=3, cutoff=0.4)
    offered = ", ".join(known[name] for name in near)
    return f"did you mean {offered}?" if near else "pyvmm validate --list shows all"
