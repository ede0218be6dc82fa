"""What the command line shows. Needs rich.

Results go to stdout, lines (`show`) and tables; with --json the JSON alone does, and they go to stderr. Progress, choices and
warnings (`say`) go to stderr. All text passes `visible`: much of it comes from files, and a terminal takes orders from text.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from fewstep.system.progress import Report, Track

__all__ = [
    "SPEAKS",
    "Paced",
    "clock",
    "listen",
    "meter",
    "print_json",
    "results_as_json",
    "say",
    "show",
    "table",
    "track",
    "visible",
]

SPEAKS = os.environ.get("RANK", "0") == "0"  # of the processes of one run, which all do the same, the first alone
_err, _out = (
    Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True, quiet=not SPEAKS)
    for stderr in (True, False)
)
_results = _out  # where they go: not to stdout where JSON does
WIDEST = 10_000  # columns of a table that no terminal shows: who pages or searches it wants whole lines
ORDERS = {
    "Cc",
    "Cf",
    "Cs",
    "Zl",
    "Zp",
}  # categories of characters that are no text: control, direction, halves of pairs, breaks
PLAIN_EVERY_SECONDS = 5.0


def results_as_json(chosen: bool) -> bool:
    """Say whether stdout is for JSON, as an option's callback."""
    global _results
    _results = _err if chosen else _out
    return chosen


def print_json(result: dict[str, Any]) -> None:
    """The result for machines."""
    if SPEAKS:
        print(json.dumps(result, indent=1))


def show(text: str) -> None:
    """A line of the result."""
    _results.print(visible(text))


def say(text: str) -> None:
    """A line on the way: progress, a choice, a warning."""
    _err.print(visible(text))


def visible(text: str) -> str:
    """Text without the power over a terminal: what is no text in it is written as in Python's strings."""
    return "".join(c if unicodedata.category(c) not in ORDERS or c == "\n" else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


class _Says(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(("warning: " if record.levelno >= logging.WARNING else "") + record.getMessage())


def listen() -> None:
    """Show what the library logs, such as what it chose by itself, beside the progress."""
    logger = logging.getLogger("fewstep")
    if not any(isinstance(handler, _Says) for handler in logger.handlers):
        logger.addHandler(_Says())
        logger.setLevel(logging.INFO)
        logger.propagate = False


def track(steps: Sequence[int], what: str) -> Iterable[int]:
    """A progress bar with elapsed and remaining time; lines every few seconds where stderr is no terminal.

    Where steps begin later than at 0, those before them count as done.

    Args:
        steps: what is walked.
        what: the work, in words.

    Yields:
        The steps, one by one.
    """
    before = steps.start if isinstance(steps, range) and steps.step == 1 else 0
    if before:
        say(f"{what}: goes on after {before} of {before + len(steps)}")
    return _bar(steps, what, before) if sys.stderr.isatty() else _lines(steps, what, before)


def _bar(steps: Sequence[int], what: str, before: int) -> Iterable[int]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_err) as progress:
        yield from progress.track(steps, total=before + len(steps), completed=before, description=f"{visible(what):<24}")


def _lines(steps: Sequence[int], what: str, before: int) -> Iterable[int]:
    start = shown = time.monotonic()
    for done, step in enumerate(steps):
        now = time.monotonic()
        if done and now - shown >= PLAIN_EVERY_SECONDS:
            left = (now - start) / done * (len(steps) - done)
            say(f"{what}: {before + done}/{before + len(steps)}, {clock(left)} left")
            shown = now
        yield step
    say(f"{what}: done in {clock(time.monotonic() - start)}")


class Paced:
    """A Track that also knows what a step took."""

    def __init__(self, shown: Track) -> None:
        self.shown, self.took = shown, list[float]()

    def __call__(self, steps: Sequence[int], what: str) -> Iterator[int]:
        for step in self.shown(steps, what):
            begin = time.monotonic()
            yield step
            self.took.append(time.monotonic() - begin)

    @property
    def seconds(self) -> float | None:
        """Of a step, the median; None where too few were made to tell. The first ones set up what later ones have."""
        return median(self.took[2:]) if len(self.took) > 2 else None


@contextmanager
def meter(what: str) -> Iterator[Report]:
    """A bar with the name of the phase and elapsed time; lines every few seconds where stderr is no terminal.

    No estimate of the time left: builders spend most of it in single steps, and a guess from the steps would be a lie.
    """
    start = shown = time.monotonic()
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[phase]}"))
        with Progress(*columns, console=_err) as progress:
            task = progress.add_task(f"{visible(what):<24}", total=1.0, phase="")
            yield lambda done, phase: progress.update(task, completed=done, phase=visible(phase))
        return

    def report(done: float, phase: str) -> None:
        nonlocal shown
        if time.monotonic() - shown >= PLAIN_EVERY_SECONDS:
            shown = time.monotonic()
            say(f"{what}: {done:.0%}, {phase}, {clock(shown - start)} so far")

    yield report
    say(f"{what}: done in {clock(time.monotonic() - start)}")


def clock(seconds: float) -> str:
    """m:ss"""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table: numbers right, words left. Cells are shown as they are, columns with nothing in them not at all.

    Args:
        title: a line above it.
        head: a word for each column.
        rows: a text for each column; those of the first column name the row.
    """
    shown = Table(title=visible(title), title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=0)
    kept = [i for i in range(len(head)) if i == 0 or any(row[i] for row in rows)]
    for i in kept:
        numbers = i > 0 and all(row[i][:1] in "-0123456789" for row in rows)
        shown.add_column(head[i], justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(visible(row[i]) for i in kept))
    if not _results.is_terminal:
        _results.width = WIDEST
    _results.print(shown)
