"""All cases, and how some of them are chosen."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from pyvmm.errors import ConfigurationError
from pyvmm.validate import cases
from pyvmm.validate.kit.case import REGISTERED, Case

# What stands in a name's square brackets may have spaces.
_TOKEN = re.compile(r"\s*([()]|(?:[^\s()\[]|\[[^\]]*\]?)+)")
#: Each is a few calls of the parser within each other.
_MOST_BRACKETS = 100


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
        names = _Expression(expression).parse()
        chosen = [each for each in chosen if each.name in names]
    if not chosen:
        words = expression and f"-k {expression!r:.60}", backend and f"--backend {backend}"
        about = " ".join(filter(None, words))
        raise ConfigurationError(about, "no case is chosen", "pyvmm validate --list shows all")
    return [_longer(each, model_examples) if model_examples else each for each in chosen]


def _longer(each: Case, examples: int) -> Case:
    if not each.examples:
        return each
    deadline_s = each.deadline_s * max(1.0, examples / each.examples)
    return replace(each, examples=examples, deadline_s=deadline_s)


class _Expression:
    """A recursive-descent parser: or_ > and_ > not_ > word. Each returns the chosen names."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: deque[str] = deque(_TOKEN.findall(text))
        self.brackets = 0

    def parse(self) -> frozenset[str]:
        chosen = self.or_()
        if self.tokens:
            raise self.error(f"{self.tokens[0]!r:.60} is not expected here")
        return chosen

    def error(self, cause: str) -> ConfigurationError:
        return ConfigurationError(
            f"-k {self.text!r:.60}", cause, "join words with and, or, not and brackets"
        )

    def next_is(self, word: str) -> bool:
        if self.tokens and self.tokens[0] == word:
            self.tokens.popleft()
            return True
        return False

    def or_(self) -> frozenset[str]:
        either = [self.and_()]
        while self.next_is("or"):
            either.append(self.and_())
        return frozenset().union(*either)

    def and_(self) -> frozenset[str]:
        both = self.not_()
        while self.next_is("and"):
            both &= self.not_()
        return both

    def not_(self) -> frozenset[str]:
        is_negated = False
        while self.next_is("not"):
            is_negated = not is_negated
        chosen = self.bracket_or_word()
        return frozenset(each.name for each in all_cases()) - chosen if is_negated else chosen

    def bracket_or_word(self) -> frozenset[str]:
        if self.next_is("("):
            self.brackets += 1
            if self.brackets > _MOST_BRACKETS:
                raise self.error(f"more than {_MOST_BRACKETS} brackets within each other")
            chosen = self.or_()
            if not self.next_is(")"):
                raise self.error("a bracket is not closed")
            self.brackets -= 1
            return chosen
        if not self.tokens or self.tokens[0] in ("and", "or", ")"):
            raise self.error("a word is missing")
        return _chosen_by(self.tokens.popleft())


@cache
def _whole_words() -> dict[str, frozenset[str]]:
    """The names that an id or a whole name chooses; both in lower case."""
    chosen: dict[str, set[str]] = {}
    for each in all_cases():
        for word in (each.id.lower(), each.name.lower()):
            chosen.setdefault(word, set()).add(each.name)
    return {word: frozenset(names) for word, names in chosen.items()}


@cache
def _chosen_by(word: str) -> frozenset[str]:
    wanted = word.lower()
    if wanted in _whole_words():
        return _whole_words()[wanted]
    chosen = frozenset(
        each.name
        for each in all_cases()
        if any(wanted in text.lower() for text in (each.name, each.title, each.subject))
    )
    if not chosen:
        raise ConfigurationError(f"case {word:.60}", "there is no such case", nearest(word))
    return chosen


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
