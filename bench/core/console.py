"""What the stages share on the command line: parsers, lists, live progress, one-line errors."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.core.errors import OptionError, ReconbenchError

EXIT_USER_ERROR = 2
_PLAIN_INTERVAL_S = 5.0


class Advance(Protocol):
    """Moves a progress display on by some units, optionally with a note about the latest."""

    def __call__(self, units: int = 1, note: str = "") -> None:
        """Count `units` more as done."""


def console() -> Console:
    """Return the console that stages write to: standard error, so that standard output stays for results."""
    return Console(stderr=True, highlight=False)


def parser(stage: str, summary: str, example: str) -> argparse.ArgumentParser:
    """Return a stage's argument parser: summary on top, defaults shown, an example at the end."""
    return argparse.ArgumentParser(
        prog=f"reconbench {stage}",
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=_Formatter,
        allow_abbrev=False,
    )


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the example's line breaks, and shows defaults where there is one to show."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        """Return an option's help; argparse calls this."""
        if action.default is None or isinstance(action.default, bool):
            return action.help
        return super()._get_help_string(action)


def numbers(text: str) -> tuple[int, ...]:
    """Return the numbers of a list such as `1,2,5-8`, ascending, each once; they begin at 1.

    Raises:
        argparse.ArgumentTypeError: If it is not such a list; argparse adds which option it was given for.
    """
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if first < 1:
            raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers from 1, such as 1,2,5-8")
        if last < first:
            raise argparse.ArgumentTypeError(f"{part.strip()} runs backwards in {text!r}")
        found |= set(range(first, last + 1))
    return tuple(sorted(found))


def pairs(texts: Iterable[str], option: str, form: str) -> dict[str, str]:
    """Return the names and values of an option's texts `NAME=VALUE`, both as they came.

    Args:
        texts: What was given.
        option: The option, for messages ("--set").
        form: What a text looks like, for messages ("NAME=VALUE").

    Raises:
        OptionError: If a text is not of that form, or a name stands there twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not (name and value):
            raise OptionError(f"{option} takes {form}, got {text!r}")
        if name in found:
            raise OptionError(f"{option} names {name!r} twice: {found[name]!r} and {value!r}")
        found[name] = value
    return found


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Advance]:
    """Show a live bar on a terminal, and a line every few seconds in a job's log.

    Args:
        title: The stage's name, padded by the display.
        total: Units of work in all.

    Yields:
        A function that counts units as done.
    """
    screen = console()
    if screen.is_terminal:
        with _bar(screen) as bar:
            task = bar.add_task(title, total=total, note="")

            def advance(units: int = 1, note: str = "") -> None:
                bar.update(task, advance=units, note=note)

            yield advance
        return
    yield _plain(screen, title, total)


def _bar(screen: Console) -> Progress:
    """Return the bar of a terminal."""
    return Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=screen,
    )


def _plain(screen: Console, title: str, total: int) -> Advance:
    """Return an `Advance` that prints a line at most every few seconds and at the end."""
    done, started, last = 0, time.monotonic(), 0.0

    def advance(units: int = 1, note: str = "") -> None:
        nonlocal done, last
        done += units
        now = time.monotonic()
        if done >= total or now - last >= _PLAIN_INTERVAL_S:
            last = now
            screen.print(f"{title:<10} {done}/{total}  {now - started:.1f} s  {note}".rstrip(), markup=False)

    return advance


def guard(main: Callable[[Sequence[str]], int], argv: Sequence[str] | None) -> int:
    """Run a stage; turn errors the user can mend into one line and exit status 2.

    Set `RECONBENCH_TRACEBACK=1` to see where such an error arose.
    """
    try:
        return main(sys.argv[1:] if argv is None else argv)
    except (ReconbenchError, ValueError, FileNotFoundError) as error:
        if os.environ.get("RECONBENCH_TRACEBACK") == "1":
            raise
        # Ray wraps a worker's error in one that also prints the worker's traceback; its cause is the message.
        cause = getattr(error, "cause", None) or error
        console().print(f"error: {cause}", style="bold red", markup=False, soft_wrap=True)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        console().print("interrupted; rerun the same command to continue", markup=False)
        return 130
