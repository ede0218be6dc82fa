"""Plans of a bundle in the forms that devices take, one folder per target, with a report of what each weighs.

    DIR/
      ort/        NAME.ort and required_operators.config                  (ort_format)
      web/        a static page                                           (web)
      openvino/   NAME.xml and NAME.bin                                   (openvino_ir)
      device/     a trimmed bundle that builds its engine without torch   (device)
      sizes.json  every file and its bytes, the parts of every target, how far its graphs are from the bundle's

DIR is replaced as a whole or not at all, and only when it holds nothing but what its sizes.json lists.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import fewstep
from fewstep.artifact.bundle import Bundle
from fewstep.artifact.manifest import GraphEntry
from fewstep.artifact.spec import Precision
from fewstep.artifact.staging import recover, staged
from fewstep.exporter.edge.device import write_device
from fewstep.exporter.edge.openvino_ir import write_openvino
from fewstep.exporter.edge.ort_format import write_ort
from fewstep.exporter.edge.sizes import Report
from fewstep.exporter.edge.web import PINNED, ort_web, write_page
from fewstep.system.places import check_folder, refuse_inside
from fewstep.system.progress import Track, silent

__all__ = ["SIZES", "TARGETS", "Target", "package"]

SIZES = "sizes.json"
Target: TypeAlias = Literal["ort", "web", "openvino", "device"]
TARGETS: tuple[Target, ...] = get_args(Target)


def package(
    bundle: Bundle,
    out: Path,
    targets: Sequence[Target],
    *,
    plans: Sequence[str] = (),
    precisions: Sequence[Precision] = (),
    ort_web_package: Path | None = None,
    track: Track = silent,
) -> Report:
    """Write the targets into the directory out.

    Args:
        bundle: with graphs of the plans.
        out: the directory, replaced as a whole.
        targets: each once.
        plans: by name; the default one unless given.
        precisions: for the device every one there is, for the others fp32, else what there is, unless given.
        ort_web_package: the npm package onnxruntime-web to copy beside the page, which otherwise loads it from a public CDN.
        track: shows progress.

    Returns:
        What every target weighs, and how far its graphs are from the bundle's.

    Raises:
        ValueError: for a graph the bundle lacks or a target refuses, and when out holds what fewstep did not write.
        OSError: where it cannot be written.
    """
    out = out.absolute()
    refuse_inside(out.resolve(), out)
    _refuse_foreign(out)
    check_folder(out)
    chosen = _Chosen.of(bundle, plans, precisions)
    runtime = ort_web(ort_web_package) if ort_web_package else PINNED
    report = Report()
    with staged(out) as staging:
        for i in track(range(len(targets)), "package"):
            directory = staging / targets[i]
            directory.mkdir()
            if targets[i] == "device":
                report += write_device(bundle, chosen.plans, chosen.every(), directory)
            elif targets[i] == "web":
                report += write_page(bundle, chosen.whole(), directory, runtime=runtime, package=ort_web_package)
            else:
                write = {"ort": write_ort, "openvino": write_openvino}[targets[i]]
                report += write(bundle, chosen.whole(), directory)
        about = {"fewstep": fewstep.__version__, "bundle": bundle.manifest.name} | report.dump()
        (staging / SIZES).write_text(json.dumps(about | {"files": _files(staging)}, indent=1) + "\n", "utf-8")
    return report


@dataclass(frozen=True)
class _Chosen:
    """The plans to package, and of their graphs those of some precisions; any when none is named."""

    bundle: Bundle
    plans: list[str]
    precisions: list[Precision]

    @classmethod
    def of(cls, bundle: Bundle, plans: Sequence[str], precisions: Sequence[Precision]) -> _Chosen:
        default = bundle.manifest.default
        if not plans and default is None:
            raise ValueError(f"{bundle.root.name} has no default plan; name one of: {', '.join(sorted(bundle.manifest.plans))}")
        for name in plans:
            bundle.pick("plan", name, bundle.manifest.plans)
        return cls(bundle, list(dict.fromkeys(plans)) or [str(default)], list(dict.fromkeys(precisions)))

    def every(self) -> list[str]:
        """Every graph of the plans and of their networks."""
        return list(dict.fromkeys(name for plan in self.plans for name in self._graphs(plan)))

    def whole(self) -> list[str]:
        """For each plan one graph that holds all of it, or one per precision where some were named; unrolled before loop."""
        names = []
        for plan in self.plans:
            fits = [(name, graph) for name, graph in self._graphs(plan).items() if graph.layout != "step"]
            fits.sort(key=lambda item: (item[1].precision != "fp32", item[1].layout != "unrolled"))
            best = {graph.precision: name for name, graph in reversed(fits)}
            wanted = self.precisions or [graph.precision for _, graph in fits[:1]]
            if not wanted or set(wanted) - set(best):
                raise ValueError(
                    f"a target that runs alone needs the whole plan in a graph, those of {plan!r} hold one step; "
                    f"write one with: fewstep export {self.bundle.root.name} --plan {plan} --layout loop"
                )
            names += [best[precision] for precision in wanted]
        return names

    def _graphs(self, plan: str) -> dict[str, GraphEntry]:
        """The plan's graphs in the precisions asked for. Raises ValueError where one is missing."""
        manifest, denoiser = self.bundle.manifest, self.bundle.manifest.plans[plan].denoiser
        its = {n: g for n, g in manifest.graphs.items() if g.plan == plan or (g.plan is None and g.denoiser == denoiser)}
        have = sorted({graph.precision for graph in its.values()})
        if missing := [p for p in self.precisions if p not in have] if have else [""]:
            raise ValueError(
                f"{self.bundle.root.name} has no {f'{missing[0]} graph'.strip()} of the plan {plan!r} (it has: "
                f"{', '.join(have) or 'none'}); write it with: fewstep export {self.bundle.root.name} --plan {plan}"
            )
        return {n: g for n, g in its.items() if not self.precisions or g.precision in self.precisions}


def _refuse_foreign(out: Path) -> None:
    """Raise ValueError where out is something that fewstep package did not write."""
    recover(out)
    if not out.exists() and not out.is_symlink():
        return
    try:
        ours = set(json.loads((out / SIZES).read_text("utf-8"))["files"]) | {SIZES}
    except (OSError, ValueError, KeyError, TypeError):
        ours = set()
    if out.is_symlink() or not out.is_dir() or (foreign := sorted(set(_files(out)) - ours)):
        what = foreign[0] if out.is_dir() and not out.is_symlink() else "it"
        raise ValueError(f"{out.name} exists and {what} was not written by fewstep package; remove it or name another folder")


def _files(root: Path) -> dict[str, int]:
    """Every file below root and its bytes."""
    found = sorted(p for p in root.rglob("*") if p.is_symlink() or not p.is_dir())
    return {p.relative_to(root).as_posix(): p.lstat().st_size for p in found}
