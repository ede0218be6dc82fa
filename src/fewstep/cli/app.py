"""The command itself: what all verbs share, and how bad input ends."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable
from math import inf, isfinite
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer
from pydantic import ValidationError

import fewstep
from fewstep.artifact.bundle import Bundle
from fewstep.artifact.draft import reason
from fewstep.artifact.manifest import check_name
from fewstep.artifact.spec import Precision, refuse_other_words
from fewstep.artifact.staging import check_place
from fewstep.data import Samples
from fewstep.sampling import solvers
from fewstep.sampling.guidance import Guidance
from fewstep.sampling.plan import Plan
from fewstep.sampling.schedule import Grid
from fewstep.system.arrays import read_arrays
from fewstep.system.console import SPEAKS, listen, print_json, results_as_json, say, track, visible
from fewstep.system.extras import install_for
from fewstep.system.progress import Track, noted

__all__ = [
    "SOLVERS",
    "BundlePath",
    "Inputs",
    "Json",
    "MixedPrecision",
    "Replace",
    "Seed",
    "app",
    "editable",
    "finish",
    "finite",
    "free_name",
    "given_arrays",
    "guidance_of",
    "main",
    "precisions",
    "size",
    "solver_of",
    "telling",
    "whole_numbers",
]

SOLVERS = {s.__name__: s for s in (solvers.ddim, solvers.heun, solvers.dpmpp_2m, solvers.spndm, solvers.ipndm)}

app = typer.Typer(
    help="Train, distil, calibrate, export and run few-step diffusion models.\n\n"
    "A bundle directory goes from verb to verb: train makes it, each verb adds to it, generate needs nothing else.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Inputs = Annotated[
    Path | None,
    typer.Option(
        help="What samples are made from, where that is not classes alone: arrays (N, ...) by the names of the bundle's inputs "
        "and negative_NAME (1, ...), as .npz or .safetensors; those of samples in .npz will do.",
        show_default=False,
    ),
]
BundlePath = Annotated[Path, typer.Argument(help="A bundle directory, such as digits.bundle.", show_default=False)]
MixedPrecision = Annotated[
    str,
    typer.Option(
        help="What networks compute in while they learn: bf16, fp16, no (fp32), or auto, the faster one here.", hidden=True
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Same seed, same result.")]
Replace = Annotated[bool, typer.Option("--replace", help="Take the place of what has that name; its graphs go.")]
Json = Annotated[
    bool,
    typer.Option("--json", callback=results_as_json, is_eager=True, help="Print the result as JSON, and it alone, on stdout."),
]


def editable(path: Path) -> Bundle:
    """A bundle that a verb will change, loaded. Raises what check_place raises where it cannot be, which is before the work."""
    bundle = Bundle.load(path)
    check_place(bundle.root)
    return bundle


def free_name(bundle: Bundle, name: str | None, usual: str, *, replace: bool) -> str:
    """The name, or the usual one for None, where nothing in the bundle has it or it is to be replaced.

    Raises ValueError elsewhere, and for what is no name.
    """
    name = usual if name is None else name
    check_name(name)
    if not replace and (name in bundle.manifest.plans or name in bundle.manifest.components):
        raise ValueError(f"{bundle.root.name} has {name!r} already; choose another --name, or --replace it")
    return name


def guidance_of(scale: float | None, lo: float, hi: float) -> Guidance | None:
    """The guidance that options ask for, None for none. Raises ValueError for an interval without a scale."""
    if scale is None and (lo, hi) != (0.0, inf):
        raise ValueError("--lo and --hi need a --guidance")
    return None if scale is None else Guidance(scale, lo, hi)


def given_arrays(path: Path | None) -> dict[str, Any] | None:
    """The arrays of --inputs; None where there are none. Of a file of samples these are what they were made from."""
    found = read_arrays(path) if path else None
    return (
        None if found is None else {name: array for name, array in found.items() if name != "values"}
    )  # no input is called so


def telling(samples: Samples | None) -> Track:
    """A track that first says what was found and what becomes of the samples, where some are read: as work begins."""
    return noted(track, samples.notes if samples else (), say)


def finish(result: dict[str, Any], as_json: bool, then: str | None = None) -> None:
    """Print the result for machines and the next command for people."""
    if as_json:
        print_json(result)
    if then:
        say(f"next: {then}")


def _version(show: bool) -> None:
    if show:
        print(f"fewstep {fewstep.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


def finite(value: float | None) -> float | None:
    """For options: refuses inf and nan, which a smallest value lets pass."""
    if value is not None and not isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number.")
    return value


def whole_numbers(name: str, text: str) -> list[int]:
    """1,4,16 as numbers. Raises ValueError for anything else."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{name} are whole numbers with commas between, such as 1,4,16, got {text!r}") from None


def precisions(text: str) -> list[Precision]:
    """fp32,int8 as precisions. Raises ValueError for another word."""
    words = [word.strip() for word in text.split(",")]
    refuse_other_words("precision", words, get_args(Precision))
    return [cast(Precision, word) for word in words]


def solver_of(name: str) -> Callable[[Grid, Guidance], Plan]:
    """A solver by its name. Raises ValueError for one there is not."""
    if name not in SOLVERS:
        raise ValueError(f"solver is one of {', '.join(SOLVERS)}, got {name!r}")
    return SOLVERS[name]


def size(count: int) -> str:
    """Bytes in words."""
    return f"{count / 1e6:.2f} MB"


INTERRUPTED = 130  # by Ctrl-C


def main() -> None:
    """Run the command; bad input, no permission, a missing package and a full disk end with one sentence and exit code 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr does, where an encoding lacks a character
    results_as_json(False)
    listen()
    try:
        app()
    except SystemExit as ended:
        if not ended.code and sys.modules.get("torch"):
            from fewstep.system.processes import leave

            leave()
        if ended.code == INTERRUPTED and SPEAKS:
            say("fewstep: stopped; bundles are as they were; long work, repeated, goes on from what it saved last")
        raise
    except (ValueError, OSError, ImportError, ArithmeticError, RuntimeError) as error:
        expected = isinstance(error, (ValueError, OSError, ImportError)) or type(error).__module__.startswith("fewstep.")
        if os.environ.get("FEWSTEP_TRACEBACK") or not expected:
            raise
        text = f"{error.title}: {reason(error)}" if isinstance(error, ValidationError) else " ".join(str(error).split())
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            text = (
                f"no space left on the device ({error.filename or 'while writing'}); free some and repeat, nothing was changed"
            )
        if type(error) is FileNotFoundError and error.filename:
            there = Path(error.filename).exists()  # as in /proc, where nothing can be made
            text = (
                f"nothing can be made in {error.filename}; choose another place" if there else f"there is no {error.filename}"
            )
        if isinstance(error, IsADirectoryError):
            text = f"{error.filename} is a directory; name a file"
        if isinstance(error, PermissionError) or (isinstance(error, OSError) and error.errno == errno.EROFS):
            text = f"no permission ({error.filename or text}); choose another place, or ask for it"
        if isinstance(error, ImportError):
            package = (error.name or text).split(".")[0]
            text = f"this needs the package {package}, which is not installed or does not load: {text}"
            if way_out := install_for(next(iter(sys.argv[1:]), ""), package):
                text = f"this needs {package}, which is not installed; {way_out}"
        print(visible(f"fewstep: {text}"), file=sys.stderr)  # whichever process it is
        sys.exit(2)
