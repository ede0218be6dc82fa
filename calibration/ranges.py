"""What the layers of a network see while a plan runs, and which of them must not be rounded to eight (or sixteen) bits.

Ranges are collected on the plan's own trajectory, row by row, from noise alone: no data set is read. A layer's sensitivity is
the change of the final image when this layer alone is rounded; the worst are left out until the image is close enough.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import log10

import torch
from torch import Tensor, nn

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.manifest import RangesEntry
from fewstep.artifact.ranges import LARGEST_WEIGHT, Interval, LayerRanges, Ranges
from fewstep.artifact.spec import Precision
from fewstep.calibration.inputs import Drawn, draw
from fewstep.data.inputs import Arrays
from fewstep.models.denoiser import Denoiser, load_network
from fewstep.sampling.guidance import guided
from fewstep.sampling.plan import Plan, trajectory
from fewstep.system.progress import Track, silent

__all__ = ["MIN_PSNR_DB", "calibrate_ranges", "collect", "excluded_layers", "rounded_sample"]

MIN_PSNR_DB = 40.0  # differences that eyes do not find
MAX_PSNR_DB = 200.0  # of an exact image
MAX_FP16 = 65504.0


def calibrate_ranges(
    bundle: Bundle,
    name: str,
    precisions: Sequence[Precision],
    *,
    samples: int = 32,
    min_psnr_db: float = MIN_PSNR_DB,
    seed: int = 0,
    arrays: Arrays | None = None,
    again: bool = True,
    track: Track = silent,
) -> Bundle:
    """Collect the ranges of a plan's layers and find the layers to keep, for each precision; write ranges/NAME.json.

    What was found for other precisions stays.

    Args:
        bundle: with the plan and its network.
        name: of the plan.
        precisions: that graphs are to have, all but fp32.
        samples: noise and condition pairs, all of which the network takes at once.
        min_psnr_db: of samples in a precision against fp32.
        seed: of the noise.
        arrays: what samples are made from, where that cannot be drawn at random; see fewstep.data.conditions.
        again: collect ranges that there are once more.
        track: shows progress.

    Returns:
        The bundle as it is then.

    Raises:
        ValueError: for a plan the bundle does not have, fp32, samples made from arrays where there are none, or numbers that
            fp16 does not hold.
    """
    plan = bundle.plan(name)
    if plain := [precision for precision in precisions if precision == "fp32"]:
        raise ValueError(f"{plain[0]} rounds nothing, so there is nothing to find; name fp16, bf16, int8, int8-fp16 or fp8")
    denoiser = load_network(bundle, bundle.manifest.plans[name].denoiser)
    inputs = draw(bundle.manifest, samples, draws=plan.draws, seed=seed, arrays=arrays)
    span = bundle.manifest.output.span
    known = bundle.ranges(name)
    ranges = known if known and not again else collect(denoiser, plan, inputs, name=name)
    if known:
        ranges.excluded, ranges.psnr_db = known.excluded, known.psnr_db
    for precision in precisions:
        excluded, psnr = excluded_layers(
            denoiser, plan, inputs, ranges, precision, span=span, min_psnr_db=min_psnr_db, track=track
        )
        ranges.excluded[precision], ranges.psnr_db[precision] = excluded, psnr
    with bundle.edit() as draft:
        entry = RangesEntry(file=f"ranges/{name}.json")
        draft.new(entry.file).write_text(ranges.model_dump_json(indent=1) + "\n", "utf-8")
        draft.manifest.ranges[name] = entry
    return Bundle.load(bundle.root)


def collect(denoiser: Denoiser, plan: Plan, inputs: Drawn, *, name: str) -> Ranges:
    """Smallest and largest input and output of each convolution and linear layer, for every row of the plan.

    Layers that some row does not use are left out.

    Args:
        denoiser: in fp32.
        plan: that it walks.
        inputs: with as much noise as the plan draws.
        name: of the plan, for the record.
    """
    seen: dict[str, dict[int, tuple[Interval, Interval]]] = {}
    position = _Position()

    def watch(layer: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            rows = seen.setdefault(layer, {})
            now = _interval(args[0]), _interval(out)
            before = rows.get(position.row, now)
            rows[position.row] = _union(before[0], now[0]), _union(before[1], now[1])

        return hook

    layers = _layers(denoiser)
    handles = [module.register_forward_hook(watch(layer)) for layer, module in layers.items()]
    try:
        _run(denoiser, plan, inputs, position)
    finally:
        for handle in handles:
            handle.remove()
    found = {
        layer: LayerRanges(input=[rows[k][0] for k in range(plan.rows)], output=[rows[k][1] for k in range(plan.rows)])
        for layer, rows in seen.items()
        if len(rows) == plan.rows
    }
    return Ranges(plan=name, samples=len(inputs.noise), layers=found)


def excluded_layers(
    denoiser: Denoiser,
    plan: Plan,
    inputs: Drawn,
    ranges: Ranges,
    precision: Precision,
    *,
    span: float,
    min_psnr_db: float = MIN_PSNR_DB,
    track: Track = silent,
) -> tuple[list[str], tuple[float, float]]:
    """The fewest layers to leave out, worst first, for a PSNR of at least min_psnr_db against fp32; PSNR without and with them.

    Args:
        denoiser: in fp32; its weights are changed meanwhile.
        plan: that it walks.
        inputs: with as much noise as the plan draws.
        ranges: of the plan's layers.
        precision: what layers are rounded to.
        span: of a sample, from its lowest to its highest value, the peak of the PSNR.
        min_psnr_db: of last states against fp32.
        track: shows progress.

    Returns:
        Names in their order, and both PSNRs in dB.

    Raises:
        ValueError: where fp16 cannot hold what a layer sees or makes: no layer in fp32 helps there, for what it makes is stored
            in fp16 again.
    """
    if precision not in ("bf16", "int8"):  # the others compute in or around fp16
        _refuse_overflow(ranges, precision)
    exact = rounded_sample(denoiser, plan, inputs, ranges, (), precision)

    def error(names: Collection[str]) -> float:
        made = rounded_sample(denoiser, plan, inputs, ranges, names, precision)
        return float((made - exact).square().mean())

    names = list(ranges.layers)
    alone: dict[str, float] = {}
    for i in track(range(len(names)), f"sensitivity of layers to {precision}"):
        alone[names[i]] = error(names[i : i + 1])
    ranked = sorted(names, key=lambda name: -alone[name])
    limit = span**2 / 10 ** (min_psnr_db / 10)
    low, high = 0, len(ranked)  # the error falls as layers are left out: the smallest number is found by halving
    while low < high:
        middle = (low + high) // 2
        if error(ranked[middle:]) <= limit:
            high = middle
        else:
            low = middle + 1
    psnr = tuple(_psnr(error(ranked[k:]), span) for k in (0, low))
    return sorted(ranked[:low]), (psnr[0], psnr[1])


def rounded_sample(
    denoiser: Denoiser, plan: Plan, inputs: Drawn, ranges: Ranges, names: Collection[str], precision: Precision
) -> Tensor:
    """The plan's result, (B, C, ...), with the named layers rounded to a precision, the others exact.

    Args:
        denoiser: in fp32; its weights are changed meanwhile.
        plan: that it walks.
        inputs: with as much noise as the plan draws.
        ranges: of the named layers at least.
        names: of layers.
        precision: what they are rounded to.
    """
    position = _Position()
    with _rounded(denoiser, ranges, names, precision, position):
        return _run(denoiser, plan, inputs, position)


@contextmanager
def _rounded(
    denoiser: Denoiser, ranges: Ranges, names: Collection[str], precision: Precision, position: _Position
) -> Iterator[None]:
    """While it lasts, the named layers compute with rounded weights and activations, as an engine of this precision would."""
    layers = _layers(denoiser)
    handles, weights = [], {name: layers[name].weight.detach().clone() for name in names}

    def before(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
        intervals = ranges.layers[name].input
        return lambda _, args: (_round(args[0], precision, intervals[position.row]), *args[1:])

    def after(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        intervals = ranges.layers[name].output
        return lambda _, __, out: _round(out, precision, intervals[position.row])

    for name in names:
        handles.append(layers[name].register_forward_pre_hook(before(name)))
        if precision == "int8":  # the form for CPUs rounds what comes out, too
            handles.append(layers[name].register_forward_hook(after(name)))
        layers[name].weight.data = _round_weight(weights[name], precision)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name, weight in weights.items():
            layers[name].weight.data = weight


@dataclass
class _Position:
    """The row of the plan that is being computed."""

    row: int = 0


def _run(denoiser: Denoiser, plan: Plan, inputs: Drawn, position: _Position) -> Tensor:
    """The plan's last state; `position` says at any time which row the network is in."""
    position.row = 0
    x: Tensor = plan.begin(inputs.noise[:, 0])
    with torch.no_grad():
        denoise = guided(denoiser, inputs.condition, inputs.null)
        for step in trajectory(denoise, x, plan, list(inputs.noise[:, 1:].unbind(1))):
            x, position.row = step.x, step.row + 1
    return x


def _layers(denoiser: Denoiser) -> dict[str, nn.Conv2d | nn.Linear]:
    return {name: m for name, m in denoiser.net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def _interval(x: Tensor) -> Interval:
    return float(x.min()), float(x.max())


def _union(a: Interval, b: Interval) -> Interval:
    return min(a[0], b[0]), max(a[1], b[1])


def _round(x: Tensor, precision: Precision, interval: Interval) -> Tensor:
    """An activation through a precision and back."""
    if precision in ("fp16", "bf16"):
        return x.to(torch.float16 if precision == "fp16" else torch.bfloat16).to(x.dtype)
    low, high = min(interval[0], 0.0), max(interval[1], 0.0)
    if precision == "int8":
        scale = max(high - low, 1e-12) / 255
        zero = round(-low / scale)
        return ((x / scale).round() + zero).clamp(0, 255).sub(zero) * scale
    return _symmetric(x, torch.tensor(max(-low, high, 1e-12)), precision, 448 if precision == "fp8" else 127)


def _round_weight(weight: Tensor, precision: Precision) -> Tensor:
    """A weight through a precision and back, a scale for each output channel in eight bits (seven for CPUs)."""
    if precision in ("fp16", "bf16"):
        return _round(weight, precision, (0.0, 0.0))
    largest = weight.flatten(1).abs().amax(1).clamp(min=1e-12)
    return _symmetric(weight, largest.reshape(-1, *[1] * (weight.ndim - 1)), precision, LARGEST_WEIGHT[precision])


def _symmetric(x: Tensor, largest: Tensor, precision: Precision, code: float) -> Tensor:
    """x through codes from -code to code, which stand for -largest to largest."""
    scale = largest / code
    codes = (x / scale).clamp(-code, code)
    return (codes.to(torch.float8_e4m3fn).to(x.dtype) if precision == "fp8" else codes.round()) * scale


def _refuse_overflow(ranges: Ranges, precision: Precision) -> None:
    for name, layer in ranges.layers.items():
        largest = max(abs(value) for interval in layer.input + layer.output for value in interval)
        if largest > MAX_FP16:
            raise ValueError(
                f"the layer {name} reaches {largest:.3g} and fp16 ends at {MAX_FP16:g}, so {precision} would overflow; use bf16"
            )


def _psnr(error: float, span: float) -> float:
    return min(10 * log10(span**2 / error), MAX_PSNR_DB) if error else MAX_PSNR_DB
