"""What every command is made of."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn


@dataclass(frozen=True)
class Command:
    """One word after ``longtail``.

    Attributes:
        name: the word.
        summary: one line for the overview.
        configure: adds the arguments; imports nothing heavy.
        run: does the work and returns the exit code.
        shares_work: whether several processes started by ``torchrun`` can do it together.
    """

    name: str
    summary: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    shares_work: bool = False


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are one line, with the nearest known option."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Exit code 2, like every other usage error."""
        self.exit(2, f"longtail: {message}; see `{self.prog} --help`\n")

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Parses, with options and ``KEY=VALUE`` words in any order."""
        found, unknown = self.parse_known_intermixed_args(list(words))
        if unknown:
            options = [text for action in self._actions for text in action.option_strings]
            word = unknown[0].partition("=")[0]
            self.error(f"unknown option {word}{did_you_mean(word, options)}")
        return found


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """Text that names the nearest known word, or nothing."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """The ``KEY=VALUE`` words of the commands that take a recipe."""
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="changes to the recipe, e.g. scale=tiny model=faster_rcnn stages.end-to-end.optimiser.lr=0.01",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """``--device``."""
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """``--quiet``."""
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")


def add_json(parser: argparse.ArgumentParser) -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def print_json(content: object) -> None:
    """A result for programs, on standard output."""
    import json

    print(json.dumps(content, indent=1, ensure_ascii=False))


def note(text: str) -> None:
    """A remark for people, on standard error."""
    print(text, file=sys.stderr, flush=True)
