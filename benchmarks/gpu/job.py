"""One task of a part, in a process of its own.

What it finds goes into a file of its own, which is replaced at every row, so that a task that is ended too soon loses nothing.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu.scale import REAL, REHEARSAL, Scale

__all__ = ["Work", "alone", "replace_json", "task"]

POLL_SECONDS = 0.2


def replace_json(path: Path, content: Any) -> None:
    """Write a file beside its place and move it there, so that a reader never sees half of it."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    beside.replace(path)


@dataclass
class Work:
    """What a task is given, and where its rows go.

    out: its file. scratch: a folder that all tasks of a run share; bundles: where those that tasks need are made. kept: where
    files are left that are to come back; before: where those of an earlier run are. data: a color set, see color.py. end:
    time.time() when the task is ended from outside.
    """

    out: Path
    scratch: Path
    bundles: Path
    kept: Path
    before: Path | None
    data: Path | None
    scale: Scale
    end: float
    found: dict[str, Any] = field(default_factory=lambda: {"rows": []})

    def add(self, **row: Any) -> None:
        """Keep a row, in the file and on the screen."""
        self.found["rows"].append(row)
        self.write()
        print("  " + "  ".join(_shown(key, value) for key, value in row.items()), flush=True)

    def note(self, **facts: Any) -> None:
        """Keep facts beside the rows."""
        self.found |= facts
        self.write()

    def write(self) -> None:
        """Replace the file."""
        replace_json(self.out, self.found)

    def left(self) -> float:
        """Seconds until the task is ended."""
        return self.end - time.time()

    def has(self, seconds: float, what: str) -> bool:
        """Whether so much time is left; where it is not, what was left out is noted."""
        if self.left() >= seconds:
            return True
        self.found.setdefault("left_out", []).append(what)
        self.write()
        return False

    def bundle(self, name: str) -> Path:
        """A bundle that bundles.py makes meanwhile. Raises ValueError where that failed or takes too long."""
        path, failed = self.bundles / f"{name}.bundle", self.bundles / f"{name}.failed"
        while not path.exists():
            if failed.exists():
                raise ValueError(f"the bundle {name} could not be made: {failed.read_text('utf-8')}")
            if self.left() < 2:
                raise ValueError(f"the bundle {name} was not made in time")
            time.sleep(POLL_SECONDS)
        return path

    def need(self, gigabytes: float, what: str) -> None:
        """Raises ValueError where the GPU has less memory free than is needed."""
        import torch

        free = torch.cuda.mem_get_info()[0] / 1e9 if self.scale.device == "cuda" else gigabytes
        if free < gigabytes:
            raise ValueError(f"{what} needs {gigabytes:g} GB of GPU memory, {free:.0f} GB are free")


def _shown(key: str, value: Any) -> str:
    return f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"


def task(part: str, name: str, order: dict[str, Any]) -> None:
    """Run a function of the module `part` and keep what came of it. name: the function's, and after a dot what it is of."""
    places = {key: Path(order[key]) if order[key] else None for key in ("out", "scratch", "bundles", "kept", "before", "data")}
    work = Work(**places, scale=REHEARSAL if order["rehearsal"] else REAL, end=order["end"])
    begin, (function, *of) = time.monotonic(), name.split(".")
    try:
        if work.scale.device != "cuda":
            import stand_in_cuda  # of the tests

            stand_in_cuda.install()
        getattr(importlib.import_module(f"gpu.{part}"), function)(work, *of)
    except Exception as error:
        traceback.print_exc()
        work.note(status="failed", reason=reason_of(error))
    else:
        work.note(status="done", seconds=round(time.monotonic() - begin, 1))


def reason_of(error: Exception) -> str:
    """An error in a sentence."""
    words = " ".join(str(error).split())[:500]
    return words if words and isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {words}"


def alone(run: Callable[..., None], errors: Path, environment: dict[str, str], *arguments: Any) -> None:
    """What a process that was forked for it does, and no more: it can be ended with all that it starts."""
    os.setsid()
    os.environ |= environment
    log = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 2)
    try:
        run(*arguments)
    finally:  # at once: a GPU's context, or threads that still compile, may hold an orderly exit up for long
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
