"""A bundle opened on trial, in a process of its own: a graph is a program, and says itself how long it takes, and what memory.

ONNX Runtime cannot be stopped while it optimises a graph, nor its memory be bounded. A server that answers others tries here
first what it is to load: the system ends what is too late, and where memory ends, this process before any other.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fewstep.backends.sessions import LOAD_LIMIT, load_limit_s

__all__ = ["try_out"]


def try_out(bundle: Path, plans: Sequence[str], choices: Mapping[str, Any]) -> None:
    """Open plans of a bundle and run them once.

    Args:
        bundle: its directory.
        plans: by name.
        choices: those of Generator, as JSON has them.

    Raises:
        ValueError: where that fails, or takes longer than fewstep.backends.sessions.load_limit_s.
    """
    order = {"bundle": str(bundle), "plans": list(plans), "choices": dict(choices), "limit_s": load_limit_s()}
    command = [sys.executable, "-P", "-m", "fewstep.runtime.trial"]
    done = subprocess.run(command, input=json.dumps(order), capture_output=True, text=True, check=False)
    if done.returncode == -signal.SIGALRM:
        raise ValueError(
            f"{bundle.name} was not open and run in {order['limit_s']:g} s; if you trust it, set {LOAD_LIMIT} to more"
        )
    if done.returncode < 0:
        raise ValueError(f"{bundle.name}, opened on trial, was ended by signal {-done.returncode}; is there memory for it?")
    if done.returncode:
        *_, reason = ["it failed without a word", *done.stderr.strip().splitlines()]
        raise ValueError(reason)


def _main() -> None:
    order = json.load(sys.stdin)
    signal.setitimer(signal.ITIMER_REAL, order["limit_s"])  # ends the process wherever it is, should its parent be gone too
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", "utf-8")
    from fewstep.runtime.generator import Generator

    try:
        for plan in order["plans"]:
            Generator.open(order["bundle"], plan=plan, **order["choices"]).warm_up()
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        sys.exit(" ".join(str(error).split()))


if __name__ == "__main__":
    _main()
