"""Part two: one plan in every way a user might run it, from inputs on the host to images on the host, equal images first."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.spec import Precision
from fewstep.models.denoiser import load_network
from gpu.job import Work, reason_of
from gpu.networks import LARGE
from gpu.timing import Run, in_turns, psnr_db
from gpu.ways import TYPES, Case

__all__ = ["compiled_digits", "compiled_large", "digits", "large"]

Images: TypeAlias = npt.NDArray[np.uint8]
# PSNR in dB of a way's images against eager torch's in the same precision, below which it is not the same sampler.
EQUAL_DB: dict[Precision, float] = {"fp32": 45.0, "fp16": 30.0}
LEAST_SECONDS = 5.0  # without as many left, a case is left out
EAGER = "eager torch"
# What ONNX Runtime's CUDA provider offers besides, each by plain calls of a session of its own.
OPTIONS: dict[str, dict[str, str]] = {
    "session.run": {},
    "session.run, cuDNN by heuristic": {"cudnn_conv_algo_search": "HEURISTIC"},
    "session.run, NHWC": {"prefer_nhwc": "1"},
    "session.run, conv and bias fused": {"fuse_conv_bias": "1"},
    "session.run, TF32": {"use_tf32": "1"},
}


def digits(work: Work) -> None:
    """The shipped digits, so small that launches are what takes time."""
    for case in _digits(work):
        references: dict[int, Images] = {}
        for batch in work.scale.batches:
            _timed(work, case.at(batch), _torch | _graphs | _python_loop | _options(case.at(batch)), references)


def compiled_digits(work: Work) -> None:
    """The same with torch.compile, which takes longer than all else together."""
    for mode in work.scale.compiling:
        for case in _digits(work):
            if case.precision == _precisions(work)[-1]:
                for batch in work.scale.batches:
                    _timed(work, case.at(batch), _compiled(mode), {})


def large(work: Work, name: str) -> None:
    """A U-Net of real size, its states as images: nothing is decoded. Sessions are let go before the next ones are opened."""
    case, references = _large(work, name), dict[int, Images]()
    for ways in ({EAGER: Case.eager}, _graphs, _torch, _python_loop):
        for batch in work.scale.batches:
            _timed(work, case.at(batch), ways, references)
        case.opened.clear()
        gc.collect()


def compiled_large(work: Work, name: str) -> None:
    """The same with torch.compile."""
    case = _large(work, name)
    for mode in work.scale.compiling:
        for batch in work.scale.batches:
            _timed(work, case.at(batch), _compiled(mode), {})


def _precisions(work: Work) -> list[Precision]:
    return [p for p in TYPES if p in work.scale.precisions]


def _digits(work: Work) -> Iterator[Case]:
    """In the order of what one wants to know first."""
    bundle = Bundle.load(work.bundle(work.scale.timed))
    for precision in reversed(_precisions(work)):
        for plan in work.scale.digits:
            denoiser = load_network(bundle, bundle.manifest.plans[plan].denoiser).to(work.scale.device, TYPES[precision])
            yield Case(bundle, plan, denoiser, precision, 1, work.scale)


def _large(work: Work, name: str) -> Case:
    work.need(work.scale.memory_gb[name], name)
    denoiser = LARGE[name].denoiser(work.scale.device, torch.float16)
    return Case(Bundle.load(work.bundle(name)), "ddim", denoiser, "fp16", 1, work.scale)


# What makes each way's run of a case; a run of None where there is no such way.
Ways: TypeAlias = dict[str, Callable[[Case], Run | None]]
_torch: Ways = {EAGER: Case.eager, "torch, CUDA graph": Case.captured, "diffusers' scheduler": Case.diffusers_loop}
_graphs: Ways = {
    "one graph": lambda case: case.bare("unrolled"),
    "one graph, plain launches": Case.launched,
    "Generator": Case.whole,
    "one graph, a Loop": lambda case: case.bare("loop"),
}
_python_loop: Ways = {"step graph, Python loop": Case.python_loop}


def _compiled(mode: str) -> Ways:
    return {EAGER: Case.eager, f"torch.compile, {mode}": partial(Case.compiled, mode=mode)}


def _options(case: Case) -> Ways:
    """At one batch size: each takes a session of its own."""
    if case.batch != case.scale.batches[-1]:
        return {}
    wanted = {name: options for name, options in OPTIONS.items() if case.precision == "fp32" or "use_tf32" not in options}
    return {name: partial(Case.chosen_otherwise, options=options) for name, options in wanted.items()}


def _timed(work: Work, case: Case, ways: Ways, references: dict[int, Images]) -> None:
    """Build every way, hold its images against the first way's, and time those that are equal, in turns.

    references: images by batch size, of whichever way was the first.
    """
    about: dict[str, Any] = {"plan": case.plan_name, "precision": case.precision, "batch": case.batch}
    runs: dict[str, Run] = {}
    facts: dict[str, dict[str, float]] = {}
    longest = LEAST_SECONDS * (case.scale.seconds > 0)
    for way, build in ways.items():
        if not work.has(longest, f"{about}, {way}"):
            continue
        begin = time.perf_counter()
        try:
            run = build(case)
            images = None if run is None else run()
        except Exception as error:  # whatever a way raises, the others are still to be timed
            work.add(**about, way=way, skipped=reason_of(error))
            continue
        if run is None or images is None:
            continue
        ready = time.perf_counter() - begin
        longest = max(longest, ready)
        equal = psnr_db(images, references.setdefault(case.batch, images))
        facts[way] = {"ready_s": ready, "psnr_db": equal}
        if equal < EQUAL_DB[case.precision] and "TF32" not in way:
            work.add(**about, way=way, skipped=f"its images are other ones, PSNR {equal:.1f} dB")
        else:
            runs[way] = run
    found = in_turns(runs, batch=case.batch, seconds=case.scale.seconds, calls=case.scale.calls)
    for way, row in found.items():
        work.add(**about, evaluations=case.plan.nfe, way=way, **facts[way], **row)
