"""What will not work, said before TensorRT is asked: a table of rules over flavour, settings, graph and machine.
The tests have TensorRT-RTX confirm what it can without a GPU; the rest is NVIDIA's documentation of 10.x, 11.x and RTX 1.x.
"""

from __future__ import annotations

from fewstep.exporter.engine.cases import EngineCase, EngineFinding, Row
from fewstep.system.extras import install

__all__ = ["ROWS", "explain"]

ROWS = (
    Row(
        "not-installed",
        "stops",
        lambda c: c.flavour.version is None and c.flavour.extra,
        "{flavour} or polygraphy, which drives it, is missing here",
        install("{found}"),
    ),
    Row(
        "too-old",
        "stops",
        lambda c: not c.flavour.rtx and c.flavour.major is not None and c.flavour.major < 10,
        "{flavour} is older than 10, which strong typing and this builder need",
        "upgrade TensorRT (JetPack 6.1 and newer bring 10)",
    ),
    Row(
        "targets-on-native",
        "stops",
        lambda c: not c.flavour.rtx and ", ".join(c.settings.targets),
        "{flavour} builds for the GPU at hand alone, not for SM {found}",
        "leave --target out and build on that GPU, or use --flavour tensorrt_rtx",
    ),
    Row(
        "native-without-gpu",
        "stops",
        lambda c: not c.flavour.rtx and c.machine.sm is None,
        "{flavour} times its kernels on a GPU and there is none here",
        "build on the target machine with: fewstep build BUNDLE, or use --flavour tensorrt_rtx, which needs no GPU",
    ),
    Row(
        "unknown-target",
        "stops",
        lambda c: c.flavour.rtx and ", ".join(t for t in c.settings.targets if t not in c.flavour.targets),
        "{flavour} does not build for SM {found}",
        "choose among its targets (75, 80, 86, 89, 120, 121 in 1.7); data-centre GPUs (SM 90, 100) take --flavour tensorrt",
    ),
    Row(
        "gpu-not-among-targets",
        "note",
        lambda c: (
            c.flavour.rtx and c.machine.sm and c.machine.sm not in (c.settings.targets or c.flavour.targets) and c.machine.sm
        ),
        "the GPU here is SM {found} and will not run this engine",
        "add --target for it, or use --flavour tensorrt",
    ),
    Row(
        "default-targets",
        "note",
        lambda c: c.flavour.rtx and not c.settings.targets,
        "without --target the engine is for Ampere and newer GPUs and not for Turing (SM 75)",
        "name the GPUs with --target where you know them",
    ),
    Row(
        "fp8-target",
        "stops",
        lambda c: c.graph.precision == "fp8" and ", ".join(c.below(89)),
        "{graph} computes in fp8, which {found} cannot",
        "leave that target out, or export int8-fp16 for it",
    ),
    Row(
        "fp8-default-targets",
        "note",
        lambda c: c.graph.precision == "fp8" and c.flavour.rtx and not c.settings.targets,
        "{graph} computes in fp8, so its engine runs on SM 89 and newer only",
        "export int8-fp16 for older GPUs",
    ),
    Row(
        "bf16-target",
        "stops",
        lambda c: c.graph.precision == "bf16" and ", ".join(c.below(80)),
        "{graph} computes in bf16, which {found} cannot",
        "leave that target out, or export fp16 for it",
    ),
    Row(
        "needs-gpu",
        "stops",
        lambda c: (
            c.flavour.rtx and c.machine.sm is None and ", ".join(f for f in c.settings.flags if f in ("refit", "strip-plan"))
        ),
        "{flavour} cannot build with {found} where there is no GPU",
        "leave the flag out, or build on a machine with a GPU",
    ),
    Row(
        "no-lean-runtime",
        "stops",
        lambda c: c.flavour.rtx and "version-compatible" in c.settings.flags,
        "{flavour} has no lean runtime, so its engines are tied to its version",
        "leave version-compatible out and build again after an upgrade",
    ),
    Row(
        "timing-cache",
        "stops",
        lambda c: c.flavour.rtx and c.settings.timing_cache,
        "{flavour} times no kernels while it builds, so a timing cache would be ignored",
        "leave it out; its runtime cache, filled on the target, is what speeds up the first call",
    ),
    Row(
        "level",
        "stops",
        lambda c: c.flavour.rtx and c.settings.level is not None and str(c.settings.level),
        "{flavour} writes the same engine at every optimisation level, so level {found} would be ignored",
        "leave it out",
    ),
    Row(
        "small-workspace",
        "note",
        lambda c: (size := c.settings.workspace_bytes) and size < 16 << 20 and f"{size / 2**20:g}",
        "{found} MB of workspace are less than the 16 MB TensorRT suggests; single convolutions fail with 1 MB",
        "leave --workspace-mb out or raise it when the build finds no kernel",
    ),
    Row(
        "bucket-size",
        "note",
        lambda c: c.flavour.rtx and len(c.settings.batch) > 1 and len(c.settings.batch),
        "each of {found} batch buckets stores code and weights again and costs its share of build time and memory",
        "give one --batch where size matters more than latency",
    ),
    Row(
        "fixed-batch",
        "stops",
        lambda c: (k := c.graph.fixed_batch) and c.settings.batch != (k,) and k,
        "{graph} has a fixed batch of {found}",
        "build it with --batch {found}, or export it with a dynamic batch",
    ),
    Row(
        "dynamic-size",
        "stops",
        lambda c: ", ".join(c.graph.dynamic),
        "{graph} has dynamic sizes other than the batch ({found}), which no profile here covers",
        "export it with these sizes fixed",
    ),
    Row(
        "check-batch",
        "note",
        lambda c: c.graph.golden_batch > c.settings.batch[-1] and c.graph.golden_batch,
        "golden.npz holds {found} images per call, more than the largest batch of this engine",
        "raise --batch to check the engine with it in one call",
    ),
    Row(
        "opset-altered",
        "stops",
        lambda c: c.graph.opset != c.graph.declared_opset and f"{c.graph.opset}, the manifest says {c.graph.declared_opset}",
        "{graph} has opset {found}",
        "it is not the graph that was exported; export it again",
    ),
    Row(
        "opset-unknown",
        "stops",
        lambda c: c.graph.opset > c.graph.known_opset and c.graph.opset,
        "{graph} has opset {found}, newer than any that the installed onnx knows",
        "upgrade onnx and TensorRT, or export it again",
    ),
    Row(
        "opset-new",
        "note",
        lambda c: c.flavour.newest_opset < c.graph.opset <= c.graph.known_opset and c.graph.opset,
        "{graph} has opset {found}, newer than {flavour} is documented to read",
        "export with opset 20 when its parser refuses an operator",
    ),
    Row(
        "foreign-operators",
        "stops",
        lambda c: ", ".join(c.graph.foreign[:3]),
        "{graph} uses operators outside the ONNX standard ({found}), which TensorRT lacks or takes for others of that name",
        "export it with standard operators",
    ),
    Row(
        "asymmetric",
        "stops",
        lambda c: c.graph.asymmetric and c.graph.asymmetric[0],
        "{graph} is quantized asymmetrically (the zero point of {found} is not 0), which TensorRT does not compute",
        "export it as int8-fp16, the eight-bit form for GPUs",
    ),
    Row(
        "quantized-bias",
        "stops",
        lambda c: c.graph.wide_integers and c.graph.wide_integers[0],
        "{graph} has a bias quantized to int32 ({found}), which TensorRT does not read",
        "export it as int8-fp16, the eight-bit form for GPUs",
    ),
    Row(
        "e5m2",
        "stops",
        lambda c: c.graph.e5m2 and c.graph.e5m2[0],
        "{graph} is quantized to fp8 e5m2 ({found}), TensorRT knows e4m3 alone",
        "quantize it to FLOAT8E4M3FN",
    ),
    Row(
        "open-loop",
        "stops",
        lambda c: c.graph.open_loops and c.graph.open_loops[0],
        "{graph} has a Loop without a condition input ({found}), which TensorRT's parser refuses",
        "give it a constant true",
    ),
    Row(
        "loop",
        "note",
        lambda c: c.graph.loops and len(c.graph.loops),
        "{graph} keeps its sampler as a Loop, so no kernel is fused across steps",
        "export the unrolled layout when latency matters more than size",
    ),
    Row(
        "step-layout",
        "note",
        lambda c: c.graph.layout == "step",
        "{graph} is one network evaluation: two engines are built, one for it and one that ends in images",
        "whoever runs them walks the plan",
    ),
    Row(
        "stray-data",
        "stops",
        lambda c: ", ".join(c.graph.stray_data),
        "{graph} reads weights from a file the bundle has no hash for ({found})",
        "do not use this graph; export it again",
    ),
    Row(
        "protobuf-limit",
        "stops",
        lambda c: c.graph.graph_bytes >= 2 << 30 and f"{c.graph.graph_bytes / 2**30:.1f}",
        "{graph} is one file of {found} GiB, ONNX ends at 2",
        "export it with external data",
    ),
    Row(
        "memory",
        "note",
        lambda c: 0 < c.machine.memory_bytes < c.memory_bytes and f"{c.memory_bytes / 2**30:.1f}",
        "building {graph} takes about {found} GiB of memory, more than this machine has",
        "build on a larger machine, or with one --batch, when it is killed",
    ),
)


def explain(case: EngineCase) -> list[EngineFinding]:
    """What the table says about a case, what stops it first. Pure."""
    findings = []
    for row in ROWS:
        if found := row.when(case):
            names = {"found": found, "graph": repr(case.graph.name), "flavour": case.flavour.title}
            findings.append(EngineFinding(row.rule, row.severity, row.reason.format(**names), row.instead.format(**names)))
    return sorted(findings, key=lambda f: f.severity != "stops")
