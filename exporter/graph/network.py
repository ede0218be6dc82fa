"""From a denoiser or decoder in torch to its traced form, in a precision."""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.artifact.manifest import Manifest
from fewstep.artifact.spec import Precision
from fewstep.exporter.graph.evaluation import Network
from fewstep.exporter.graph.layouts import TracedDecoder
from fewstep.exporter.graph.traced import Traced, trace
from fewstep.models.decoder import Decoder
from fewstep.models.denoiser import Denoiser, on_meta, weights

__all__ = ["DTYPES", "trace_decoder", "trace_network", "with_weights"]

KEPT = 8  # traces, without weights
_traces: dict[tuple[Any, ...], Traced] = {}

# What the layers that are not quantized compute in.
DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.float32,
    "int8-fp16": torch.float16,
    "fp8": torch.float16,
}


class _Evaluation(nn.Module):
    """One network evaluation; the weights are called denoiser.net.*, the timestep and the condition are inputs."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.denoiser.evaluate(*inputs)


class _Decoding(nn.Module):
    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, *inputs: Tensor) -> Tensor:
        image: Tensor = self.decoder(*inputs)
        return image


def trace_network(denoiser: Denoiser, manifest: Manifest, precision: Precision) -> Traced:
    """One evaluation of a denoiser's network with its casts around it, traced.

    Good for every network of its architecture, and kept for the next ones, for tracing is most of what an export of a small
    network takes.

    Args:
        denoiser: whose architecture is traced, without its weights.
        manifest: that says the state and the inputs.
        precision: of the graph; layers in eight bits come later.

    Raises:
        ValueError: for a network that torch.export does not take.
    """
    if denoiser.architecture is None:
        return _traced(denoiser, manifest, precision)
    key = (denoiser.architecture, DTYPES[precision], manifest.state.shape, repr(manifest.signature.tensors(guided=False)))
    if key not in _traces:
        if len(_traces) == KEPT:
            del _traces[next(iter(_traces))]
        _traces[key] = _traced(denoiser, manifest, precision)
    return _traces[key]


def _place(error: Exception) -> str:
    """The line that torch.export stopped at, where it says so."""
    found = re.findall(r"# File: (.+?) in .+?, code: (.+)", str(getattr(error, "partial_fx_graph", "")))
    return f" (at {found[-1][0]}: {found[-1][1].strip()})" if found else ""


def _traced(denoiser: Denoiser, manifest: Manifest, precision: Precision) -> Traced:
    inputs = {"x": torch.zeros(2, *manifest.state.shape), "timestep": torch.tensor(1.0)}
    for spec in manifest.signature.tensors(guided=False):
        inputs[spec.name] = torch.zeros(2, *spec.shape, dtype=getattr(torch, spec.dtype))
    module = _Evaluation(on_meta(denoiser))
    _compute_in(module.denoiser.net, DTYPES[precision])
    try:
        return trace("net", module, inputs, static=["timestep"])
    except Exception as error:  # of whatever kind torch.export raises for code that it cannot follow
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
        kind = f"{denoiser.family.kind}{'' if precision == 'fp32' else f' in {precision}'}"
        raise ValueError(f"torch.export does not take this {kind}: {reason}{_place(error)}") from error


def _compute_in(net: nn.Module, dtype: torch.dtype) -> None:
    """Weights in a precision; what a module keeps in double precision has its reasons."""
    net._apply(lambda t: t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t)  # type: ignore[no-untyped-call]


def with_weights(traced: Traced, denoiser: Denoiser, manifest: Manifest) -> Network:
    """A traced architecture with a denoiser's weights.

    Args:
        traced: by `trace_network`, of this architecture.
        denoiser: with the weights.
        manifest: that says the state and the signature.
    """
    named = weights(_Evaluation(denoiser))
    return Network(traced, named, denoiser.scales, manifest.state.shape, manifest.signature)


def trace_decoder(decoder: Decoder, manifest: Manifest, precision: Precision) -> TracedDecoder:
    """A decoder, traced, with its weights.

    Args:
        decoder: with its weights.
        manifest: that says the state.
        precision: of the graph; a decoder has no layers in eight bits.
    """
    module = _Decoding(copy.deepcopy(decoder)).to(device="meta", dtype=DTYPES[precision])
    traced = trace("decoder", module, {"latent": torch.zeros(2, *manifest.state.shape)})
    return TracedDecoder(traced, weights(_Decoding(decoder)))
