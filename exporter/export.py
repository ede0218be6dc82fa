"""From a bundle's plans to graphs in the bundle, each with reference outputs that prove it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from fewstep.artifact.bundle import Bundle, Draft
from fewstep.artifact.digests import component_digest
from fewstep.artifact.golden import GOLDEN, Arrays, read_golden, write_golden
from fewstep.artifact.manifest import GraphEntry, Layout
from fewstep.artifact.ranges import Ranges
from fewstep.artifact.spec import Precision
from fewstep.exporter.facts import facts
from fewstep.exporter.graph.evaluation import Network
from fewstep.exporter.graph.layer import layer_names
from fewstep.exporter.graph.layouts import TracedDecoder, postprocess, step, unroll
from fewstep.exporter.graph.loop import loop
from fewstep.exporter.graph.measure import CLEARLY_FASTER, doubled_speedup
from fewstep.exporter.graph.metadata import describe
from fewstep.exporter.graph.network import trace_decoder, trace_network, with_weights
from fewstep.exporter.graph.precision import EIGHT_BITS, LayerPrecision
from fewstep.exporter.graph.shared import SharedWeights, every_weight
from fewstep.exporter.graph.traced import OPSET
from fewstep.exporter.reference import reference
from fewstep.exporter.statements import LIMITS, PrecisionLimits
from fewstep.models.decoder import Decoder, load_decoder
from fewstep.models.denoiser import Denoiser, load_network
from fewstep.sampling.plan import Plan
from fewstep.system.progress import Track, silent
from fewstep.system.readable import readable

__all__ = ["MAX_INLINE_BYTES", "MAX_UNROLLED_NODES", "choose_layout", "export_graphs", "refuse_layouts"]

MAX_UNROLLED_NODES = 4_000  # ONNX Runtime's loading grows with their square
MAX_INLINE_BYTES = 16 << 20  # up to this, one file is handier
MAX_GRAPH_BYTES = 1 << 30  # a protobuf is copied whole several times wherever it is written or read; ends at 2 GB anyway
MAX_MEASURED_BYTES = 512 << 20
PSNR_MARGIN_DB = 6.0


def export_graphs(
    bundle: Bundle,
    plans: Sequence[str],
    precisions: Sequence[Precision],
    *,
    layouts: Sequence[Layout] = (),
    batched_guidance: bool | None = None,
    max_inline_bytes: int = MAX_INLINE_BYTES,
    denoisers: Mapping[str, Denoiser] = {},
    report: Callable[[str], None] = lambda _: None,
    track: Track = silent,
) -> Bundle:
    """Write a graph for each plan and precision, and golden.npz with torch's result for each plan.

    Args:
        bundle: with the plans' networks.
        plans: by name.
        precisions: of the graphs.
        layouts: by the size of the unrolled graph where none is given.
        batched_guidance: guided rows in one batch, twice its size, or in two passes; what is faster on this machine when None.
        max_inline_bytes: weights of a component of more than that lie in a file beside its graphs, see graph/shared.py.
        denoisers: networks that are at hand already, by name.
        report: takes a sentence for every choice made.
        track: shows progress.

    Raises ValueError for a plan the bundle does not have, eight bits without ranges, or the step layout in eight bits.
    """
    refuse_layouts(layouts, precisions)
    for name in plans:
        bundle.pick("plan", name, bundle.manifest.plans)
    exporter = _Exporter(bundle, batched_guidance, max_inline_bytes, report, dict(denoisers))
    jobs = [(plan, precision) for plan in plans for precision in precisions]
    for plan, precision in jobs:
        exporter.ranges(plan, precision)
    with bundle.edit() as draft:
        golden = _references(draft, report)
        for i in track(range(len(jobs)), "export graphs"):
            plan, precision = jobs[i]
            if precision == precisions[0]:
                golden[plan] = reference(bundle, exporter.denoiser(plan), bundle.plan(plan), exporter.torch_decoder)
            for layout in layouts or (None,):
                exporter.write(draft, plan, precision, layout)
        write_golden(draft.new(GOLDEN), golden)
    return Bundle.load(bundle.root)


def _references(draft: Draft, report: Callable[[str], None]) -> dict[str, Arrays]:
    """Those of other plans, to stay beside the new ones; where they cannot be read, the new ones take their place."""
    path = draft.root / GOLDEN
    if not path.is_file():
        return {}
    try:
        with readable(GOLDEN, "the references of other plans go; export these again"):
            return read_golden(path, draft.manifest)
    except ValueError as error:
        report(str(error))
        return {}


def refuse_layouts(layouts: Sequence[Layout], precisions: Sequence[Precision]) -> None:
    """Raise ValueError for a precision that one of the layouts cannot have.

    Args:
        layouts: that are asked for; those that are chosen later have every precision.
        precisions: of the graphs.
    """
    eight = [precision for precision in precisions if precision in EIGHT_BITS]
    if eight and "step" in layouts:
        raise ValueError(f"{eight[0]} has ranges for each row of a plan, which the step layout does not know; use fp16")


def choose_layout(evaluations: int, nodes: int) -> tuple[Layout, str]:
    """unrolled, unless so many evaluations of so many nodes would be slow to load and build; and the reason in words.

    Args:
        evaluations: of the network, for one sample.
        nodes: of one evaluation.
    """
    total = evaluations * nodes
    if total <= MAX_UNROLLED_NODES:
        return "unrolled", f"{evaluations} evaluations of {nodes} nodes are {total}, up to {MAX_UNROLLED_NODES} are unrolled"
    return "loop", f"{evaluations} evaluations of {nodes} nodes are {total}, over {MAX_UNROLLED_NODES} load and build slowly"


@dataclass
class _Exporter:
    """One export: what was loaded, traced and measured so far."""

    bundle: Bundle
    batched_guidance: bool | None
    max_inline_bytes: int
    report: Callable[[str], None]
    denoisers: dict[str, Denoiser] = field(default_factory=dict)
    decoders: dict[Precision, TracedDecoder] = field(default_factory=dict)
    faster: dict[str, bool] = field(default_factory=dict)

    @cached_property
    def torch_decoder(self) -> Decoder | None:
        return load_decoder(self.bundle) if self.bundle.manifest.decoder else None

    def denoiser(self, plan: str) -> Denoiser:
        name = self.bundle.manifest.plans[plan].denoiser
        if name not in self.denoisers:
            self.denoisers[name] = load_network(self.bundle, name)
        return self.denoisers[name]

    def ranges(self, plan: str, precision: Precision) -> Ranges | None:
        """What calibration found for a plan; it must have for eight bits."""
        ranges = self.bundle.ranges(plan)
        if precision in EIGHT_BITS and (ranges is None or precision not in ranges.excluded):
            raise ValueError(
                f"{precision} needs the ranges of the plan {plan!r}; collect them with: "
                f"fewstep quantize {self.bundle.root.name} --plan {plan} --precision {precision}"
            )
        return ranges

    def write(self, draft: Draft, plan_name: str, precision: Precision, layout: Layout | None) -> None:
        """One graph of a plan, and its entry in the draft's manifest."""
        plan, network = self.bundle.plan(plan_name), self._network(plan_name, precision)
        layout = layout or self._layout(f"{plan_name}.{precision}", plan, network)
        layers = self._layers(plan_name, precision)
        batched_guidance = plan.guided and _straight(plan, layout) and self._batched_guidance(plan_name, network, plan)
        output, decoder = self.bundle.manifest.output, self._decoder(precision)
        if layout == "step":
            model, end = step(network, layers=layers), postprocess(network.state, output, decoder)
        else:
            build = unroll if layout == "unrolled" else loop
            model, end = build(network, plan, output, decoder=decoder, batched_guidance=batched_guidance, layers=layers), None
        graph = self._entry(plan_name, precision, layout)
        graph.batched_guidance = batched_guidance
        name = Path(graph.file).stem
        draft.drop_graph(name)
        shared, models = self._shared(plan_name, precision, network, layers), {graph.file: model}
        if end:
            graph.postprocess = f"graphs/{name}.postprocess.onnx"
            models[graph.postprocess] = end
        for each in models.values():
            describe(each, facts(self.bundle.manifest, graph), self.bundle.manifest.signature)
        graph.data = sorted({data for file in models for data in self._save(draft, file, models[file], shared)})
        draft.manifest.graphs[name] = graph

    def _entry(self, plan_name: str, precision: Precision, layout: Layout) -> GraphEntry:
        """What a graph's entry says of it before it is built; a step is the denoiser's, of any plan."""
        denoiser, ranges = self.bundle.manifest.plans[plan_name].denoiser, self.ranges(plan_name, precision)
        limits, excluded = _limits(precision, ranges), self._excluded(plan_name, precision)
        if precision in EIGHT_BITS and (decoder := self._decoder(precision)):
            excluded = [*excluded, *layer_names(decoder.traced, decoder.weights)]
        name = plan_name if layout != "step" else denoiser
        name += f".{precision}" if layout == "unrolled" else f".{layout}.{precision}"
        return GraphEntry(
            file=f"graphs/{name}.onnx",
            denoiser=denoiser,
            plan=None if layout == "step" else plan_name,
            precision=precision,
            layout=layout,
            opset=OPSET,
            excluded=excluded,
            limit=limits.max_error,
            min_psnr_db=limits.min_psnr_db,
        )

    def _layout(self, title: str, plan: Plan, network: Network) -> Layout:
        layout, reason = choose_layout(plan.nfe, len(network.traced.nodes))
        self.report(f"{title}: {layout} ({reason})")
        return layout

    def _excluded(self, plan: str, precision: Precision) -> list[str]:
        """The layers that calibration found to need more than a precision gives."""
        ranges = self.ranges(plan, precision)
        return ranges.excluded.get(precision, []) if ranges else []

    def _layers(self, plan: str, precision: Precision) -> LayerPrecision:
        excluded = frozenset(self._excluded(plan, precision))
        if precision not in EIGHT_BITS:
            return LayerPrecision(excluded)
        kind: Literal["int8", "fp8"] = "fp8" if precision == "fp8" else "int8"
        return LayerPrecision(excluded, kind, self.ranges(plan, precision), for_cpu=precision == "int8")

    def _network(self, plan: str, precision: Precision) -> Network:
        denoiser, manifest = self.denoiser(plan), self.bundle.manifest
        return with_weights(trace_network(denoiser, manifest, precision), denoiser, manifest)

    def _decoder(self, precision: Precision) -> TracedDecoder | None:
        if self.torch_decoder is not None and precision not in self.decoders:
            self.decoders[precision] = trace_decoder(self.torch_decoder, self.bundle.manifest, precision)
        return self.decoders.get(precision)

    def _batched_guidance(self, plan_name: str, network: Network, plan: Plan) -> bool:
        """Whether guided rows of a network are evaluated in one batch; measured once where it was not said."""
        if self.batched_guidance is not None:
            return self.batched_guidance
        name = self.bundle.manifest.plans[plan_name].denoiser
        if name not in self.faster:
            if network.traced.bytes(network.weights) > MAX_MEASURED_BYTES:
                self.faster[name] = False
                self.report(f"{name}: guided rows in two passes, which need half the memory (too large to measure both here)")
            else:
                speedup = doubled_speedup(network, plan)
                self.faster[name] = speedup >= CLEARLY_FASTER
                how = "one batch" if self.faster[name] else "two passes"
                self.report(f"{name}: guided rows in {how} (batched guidance is {speedup:.2f} times as fast on this CPU)")
        return self.faster[name]

    def _save(self, draft: Draft, file: str, model: ir.Model, shared: Sequence[SharedWeights]) -> list[str]:
        """Write a model; the files of shared weights that it reads, written where they were not there."""
        path, data = draft.new(file), []
        for weights in shared:
            if weights.bytes > self.max_inline_bytes and weights.attach(model, draft.root):
                data.append(weights.file)
                if weights.write(draft):
                    self.report(f"{Path(weights.file).name}: {weights.bytes / 1e6:.1f} MB of weights, once for all graphs")
        _refuse_too_large(file, model)
        ir.save(model, path)
        return data

    def _shared(self, plan: str, precision: Precision, network: Network, layers: LayerPrecision) -> list[SharedWeights]:
        """The weights that a plan's graph may have in common with others."""
        manifest, name = self.bundle.manifest, self.bundle.manifest.plans[plan].denoiser
        found = {name: every_weight(network.traced, network.weights, layers)}
        if decoder := self._decoder(precision):
            found["decoder"] = every_weight(decoder.traced, decoder.weights, LayerPrecision(frozenset()))
        return [SharedWeights(part, precision, component_digest(manifest, part), found[part]) for part in found]


def _straight(plan: Plan, layout: Layout) -> bool:
    """Whether every guided row is known to be one: where some may not be, two passes are taken, one of them in an If."""
    return layout == "unrolled" or (layout == "loop" and bool((plan.guidance != 1).all()))


def _refuse_too_large(file: str, model: ir.Model) -> None:
    """Raises ValueError for a model that no protobuf holds."""
    constants = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    size = sum(c.nbytes for c in constants if c is not None and not isinstance(c, ir.ExternalTensor))
    if size > MAX_GRAPH_BYTES:
        raise ValueError(
            f"{file} would have {size / 1e9:.1f} GB of numbers of its own, such as layers left in higher precision; leave out "
            "fewer, with a lower --min-psnr for quantize, or fewer steps"
        )


def _limits(precision: Precision, ranges: Ranges | None) -> PrecisionLimits:
    """The limits of a precision; in eight bits the PSNR that calibration reached, less what other noise may cost."""
    limits = LIMITS[precision]
    if ranges and precision in EIGHT_BITS:
        return limits._replace(min_psnr_db=max(ranges.psnr_db[precision][1] - PSNR_MARGIN_DB, 0.0))
    return limits
