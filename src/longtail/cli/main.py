"""``longtail``: finds the command, runs it, and turns every end into an exit code.

0 done · 1 failed · 2 wrong usage · 3 unusable data · 130 interrupted · 143 terminated.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from traceback import print_exception
from types import FrameType

from longtail import __version__
from longtail.cli import (
    check,
    config,
    convert,
    demo,
    doctor,
    evaluate,
    figure,
    pictures,
    predict,
    proposals,
    recipes,
    shapes,
    simulate,
    study,
    subset,
    train,
)
from longtail.cli.command import Command, Parser, did_you_mean
from longtail.cli.ranks import leave, several, tell

COMMANDS: tuple[Command, ...] = (
    demo.COMMAND,
    shapes.COMMAND,
    check.COMMAND,
    convert.COMMAND,
    pictures.COMMAND,
    subset.COMMAND,
    train.COMMAND,
    evaluate.COMMAND,
    predict.COMMAND,
    proposals.COMMAND,
    study.COMMAND,
    figure.COMMAND,
    simulate.COMMAND,
    recipes.COMMAND,
    config.COMMAND,
    doctor.COMMAND,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line; returns its exit code (``--help`` and wrong options end in ``SystemExit``, as usual)."""
    words = list(sys.argv[1:] if argv is None else argv)
    place = next((index for index, word in enumerate(words) if not word.startswith("-")), len(words))
    overview = overview_parser()
    general = overview.parse(words[:place])
    if place == len(words):
        overview.print_help(sys.stderr)
        return 2
    name = words[place]
    command = next((command for command in COMMANDS if command.name == name), None)
    if command is None:
        overview.error(f"there is no command {name!r}{did_you_mean(name, [each.name for each in COMMANDS])}")
    parser = Parser(prog=f"longtail {name}", description=command.summary)
    command.configure(parser)
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    arguments = parser.parse(words[place + 1 :])
    return leave(guarded(command, arguments, traceback=general.traceback or arguments.traceback))


def overview_parser() -> Parser:
    """The parser of what stands before the command; its help lists the commands."""
    width = max(len(command.name) for command in COMMANDS)
    listing = "\n".join(f"  {command.name:<{width}}  {command.summary}" for command in COMMANDS)
    parser = Parser(
        prog="longtail",
        usage="longtail [--version] [--traceback] COMMAND ...",
        description="Long-tailed object detection and instance segmentation.",
        epilog=f"commands:\n{listing}\n\n`longtail COMMAND --help` says more about one of them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"longtail {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    return parser


def guarded(command: Command, arguments: argparse.Namespace, *, traceback: bool) -> int:
    """Runs the command; an error becomes one line on standard error and an exit code."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, terminated) if in_main_thread else None
    try:
        refuse_several(command)
        return command.run(arguments)
    except KeyboardInterrupt:
        tell("interrupted")
        return 130
    except BrokenPipeError:  # the reader of standard output has left, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        from longtail.schema.errors import LongtailError

        if traceback and several():
            print_exception(error)
            return 1
        if traceback:
            raise
        if isinstance(error, LongtailError):
            tell(one_line(str(error)))
            return error.exit_code
        tell(f"unexpected {type(error).__name__}: {one_line(str(error))}; --traceback shows where")
        return 1
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)


def refuse_several(command: Command) -> None:
    """Refuses to do the same work in several processes.

    Raises:
        UsageError: with the commands that share theirs.
    """
    if several() and not command.shares_work:
        from longtail.schema.errors import UsageError

        sharing = " and ".join(f"`longtail {each.name}`" for each in COMMANDS if each.shares_work)
        raise UsageError(
            f"`longtail {command.name}` runs in one process; start it without torchrun (several processes share the "
            f"work of {sharing})"
        )


def terminated(number: int, frame: FrameType | None) -> None:
    """SIGTERM unwinds the stack like an interruption, so that everything open is closed and no child stays behind."""
    tell("terminated")
    sys.exit(128 + number)


def one_line(text: str) -> str:
    """The message without line breaks."""
    return " ".join(text.split())
