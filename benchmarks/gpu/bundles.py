"""Bundles that tasks need, made on the CPU while the GPU is busy.

digits: the shipped one, with its networks' plans in every layout and precision. A class of tests/small.py: a tiny network of
it, likewise. A network of networks.py: graphs in fp16, without references. equal_cpu: what a training makes on the CPU.

run.py makes those that its tasks need. Ahead of it, one at a time: python -m gpu.bundles NAME FOLDER
"""

from __future__ import annotations

import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from small import NAMES, small

from fewstep.artifact.bundle import Bundle, Draft
from fewstep.artifact.components import DenoiserEntry
from fewstep.artifact.manifest import Layout, PlanEntry
from fewstep.exporter.export import _Exporter, export_graphs
from fewstep.models.denoiser import save_network
from fewstep.sampling.guidance import Guidance
from fewstep.sampling.solvers import ddim, dpmpp_2m
from gpu.job import reason_of
from gpu.networks import LARGE
from gpu.scale import REAL, REHEARSAL, Scale

__all__ = ["bundle"]

SHIPPED = Path(__file__).resolve().parents[2] / "examples" / "digits.bundle"
LAYOUTS: tuple[Layout, ...] = ("unrolled", "loop", "step")
SMALL_STEPS = 2


def make(name: str, folder: Path, scale: Scale) -> None:
    """Write a bundle into the folder; it is there when it is whole."""
    path, beside = folder / f"{name}.bundle", folder / f"new-{name}.bundle"
    if name == "digits":
        digits(beside, scale)
    elif name == "equal_cpu":
        from gpu.training import train_equal

        train_equal(beside, scale, "fp32")
    elif name in NAMES:
        small_bundle(name, beside, scale)
    else:
        large(name, beside)
    beside.rename(path)


def digits(path: Path, scale: Scale) -> None:
    """The shipped bundle and, of its networks that are shipped too, all that is checked and timed."""
    shutil.copytree(SHIPPED, path)
    bundle = Bundle.load(path)
    plans = list(dict.fromkeys((*scale.checked, *scale.digits)))
    export_graphs(bundle, plans, scale.precisions, layouts=LAYOUTS, batched_guidance=True)


def small_bundle(name: str, path: Path, scale: Scale) -> None:
    """A tiny random network with a plan of several steps and, where it can be guided, one that is."""
    made = small(name)
    grid = made.denoiser.parametrisation.grid(SMALL_STEPS)
    guidable = made.signature.guidable
    plans = {"plain": dpmpp_2m(grid)} | ({"guided": ddim(grid, Guidance(2.0))} if guidable else {})
    with Draft.create(path, made.signature) as draft:
        save_network(draft, "net", made.denoiser)
        for plan, table in plans.items():
            draft.manifest.plans[plan] = PlanEntry.of(table, denoiser="net", solver=plan)
    export_graphs(Bundle.load(path), list(plans), scale.precisions, layouts=LAYOUTS, batched_guidance=False)


def large(name: str, path: Path) -> None:
    """Graphs of a network of real size, whose files are not in the bundle: whoever times it makes the same weights."""
    of = LARGE[name]
    with Draft.create(path, of.signature) as draft:
        denoiser = of.denoiser("cpu", torch.float16)
        about: Any = {"parametrisation": denoiser.parametrisation, "constants": denoiser.constants}
        draft.manifest.components["net"] = DenoiserEntry(kind=type(denoiser.net).__name__, directory=None, **about)
        draft.manifest.plans["ddim"] = PlanEntry.of(of.plan(), denoiser="net", solver=f"DDIM, {of.steps} steps")
        draft.manifest.default = "ddim"
    bundle = Bundle.load(path)
    exporter = _Exporter(bundle, False, 64 << 20, print, {"net": denoiser})
    with bundle.edit() as draft:
        for layout in LAYOUTS if of.steps > 1 else ("unrolled", "step"):
            exporter.write(draft, "ddim", "fp16", layout)


def bundle(name: str, folder: str, rehearsal: bool) -> None:
    """Make one; where it fails, a file NAME.failed says why."""
    torch.set_num_threads(min(torch.get_num_threads(), 4))
    place = Path(folder)
    try:
        make(name, place, REHEARSAL if rehearsal else REAL)
    except Exception as error:
        traceback.print_exc()
        (place / f"{name}.failed").write_text(reason_of(error), "utf-8")


if __name__ == "__main__":
    bundle(sys.argv[1], sys.argv[2], rehearsal=False)
