"""Run a Request in the process that builds engines, and end that process with the work."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fewstep
from fewstep.exporter.engine.worker import GRACE_SECONDS, Request
from fewstep.system.progress import Report

__all__ = ["run"]


def run(request: Request, report: Report) -> dict[str, Any]:
    """Build an engine and return {"layers", "inspected"}. Ends within seconds on KeyboardInterrupt, whatever TensorRT does.

    Args:
        request: with a place for the engine.
        report: takes the share done, 0 to 1, and the phase.

    Returns:
        layers, how many compute in each precision, and inspected, whether the engine was read back.

    Raises:
        ValueError: with TensorRT's reason when it refuses, or with how its process ended when it crashed.
    """
    result: dict[str, Any] = {}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fewstep.exporter.engine.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=_environment(request.flavour),
            start_new_session=True,  # Ctrl-C reaches us alone, and we end it
        )
        try:
            result = _talk(process, request, report)
        finally:
            _end(process)
        if not result:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["no message"])[-1]
            killed = process.returncode == -9
            how = (
                "was killed, most often for want of memory"
                if killed
                else f"ended with code {process.returncode} ({last[:300]})"
            )
            raise ValueError(f"the building process {how}")
    if "refused" in result:
        raise ValueError(result["refused"])
    return result


def _talk(process: subprocess.Popen[str], request: Request, report: Report) -> dict[str, Any]:
    """Send the request and pass progress on; the result, or nothing when the process ended without one."""
    assert process.stdin is not None
    assert process.stdout is not None
    result: dict[str, Any] = {}
    try:
        process.stdin.write(json.dumps(asdict(request)) + "\n")
        process.stdin.flush()
    except BrokenPipeError:
        return result
    for line in process.stdout:
        message = json.loads(line)
        if "phase" in message:
            report(message["done"], message["phase"])
        else:
            result = message
    return result


def _end(process: subprocess.Popen[str]) -> None:
    """Closing stdin asks the process to stop; one that does not is killed."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError):  # it is gone already
        process.stdin.close()
    try:
        process.wait(2 * GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    finally:
        process.stdout.close()


def _environment(flavour: str) -> dict[str, str]:
    """Ours, with this very fewstep on the path and Polygraphy set to the flavour and to install nothing by itself."""
    path = [str(Path(fewstep.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(p for p in path if p),
        "POLYGRAPHY_USE_TENSORRT_RTX": "1" if flavour == "tensorrt_rtx" else "0",
        "POLYGRAPHY_AUTOINSTALL_DEPS": "0",
    }
