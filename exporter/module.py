"""Any torch module as a bundle: no class that is known by name, no configuration, no weights for training."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fewstep.artifact.bundle import Bundle, Draft, check_new
from fewstep.artifact.card import write_card
from fewstep.artifact.components import DenoiserEntry
from fewstep.artifact.draft import reason
from fewstep.artifact.manifest import Layout, PlanEntry
from fewstep.artifact.signature import ArrayOutput, Axis, Column, Input, Output, Signature, State
from fewstep.artifact.spec import Precision
from fewstep.artifact.staging import assembled, recover
from fewstep.exporter.export import export_graphs
from fewstep.exporter.graph.precision import EIGHT_BITS
from fewstep.exporter.parity import check_graphs
from fewstep.exporter.trying import refuse_unfit
from fewstep.models.denoiser import Denoiser
from fewstep.models.families.base import Constants, Facts, Family, Tensors
from fewstep.sampling.parametrisation import Parametrisation
from fewstep.sampling.plan import Plan
from fewstep.system.progress import Track, silent

__all__ = ["export"]

NAME = "model"  # of the network in the bundle


def export(
    module: nn.Module,
    out: str | Path,
    *,
    state: State,
    parametrisation: Parametrisation,
    plans: Mapping[str, Plan],
    inputs: Sequence[Input] = (),
    output: Output | None = None,
    encode: Mapping[str, nn.Module] = {},
    precisions: Sequence[Precision] = ("fp32",),
    layouts: Sequence[Layout] = (),
    track: Track = silent,
) -> Bundle:
    """Export a module F(x, timestep, **inputs) and samplers of it as a bundle of graphs, proven against the module.

    Args:
        module: takes x (B, C, *axes) float32, timestep (1,) or (B,) float32 and every input by its name, (B, ...); gives
            (B, C, *axes). Of a class it gets the number, int64 (B,), and one more than the last for "none". Whatever
            torch.export takes. In fp16 it gets x and arrays in fp16, and timestep in fp32 still. It is exported in eval mode,
            and is afterwards as it was.
        out: where the bundle is to be.
        state: what samplers walk on.
        parametrisation: what F estimates, and what it is told of the noise level.
        plans: samplers by name, on grids of that parametrisation; the first is the default.
        inputs: what samples are made from, in order.
        output: what a last state is; numbers without names and units unless given.
        encode: modules by the name of an input, which make of it what F takes under that name. They run once, before the loop
            (in the step layout, in every step).
        precisions: of the graphs: fp32, fp16, bf16; eight bits need ranges, and so a network that is trained here.
        layouts: of the graphs, by their size unless given.
        track: shows progress.

    Returns:
        The bundle, at `out`. It holds graphs and references alone: it is checked, built and run like any other, and neither
        fitted nor distilled.

    Raises:
        FileExistsError: where something is at `out`.
        ValueError: for an input that no module of `encode` and F agree on, a module that makes something else than states or
            draws numbers of its own, what torch.export refuses, or a plan that does not fit.
    """
    _refuse_other_kinds(module, plans, encode, precisions)
    if unknown := sorted(encode.keys() - {each.name for each in inputs}):
        raise ValueError(f"encode names {unknown[0]!r}, which is no input; give it to inputs, too")
    root = Path(os.path.realpath(out))
    recover(root)
    check_new(root)
    try:
        signature = Signature(inputs=tuple(inputs), output=output or _unnamed(state))
    except ValidationError as error:
        raise ValueError(reason(error)) from None
    with _evaluating(_Encoded(module, encode, signature)) as net:
        denoiser = Denoiser(net, parametrisation=parametrisation, family=_family(type(module).__name__, inputs))
        refuse_unfit(denoiser, signature, state, next(iter(plans.values())))
        entry = DenoiserEntry(kind=type(module).__name__, directory=None, digest=_digest(net), parametrisation=parametrisation)
        with assembled(root) as place:  # nobody sees it before its graphs are proven
            check_new(root)  # another process may have made it meanwhile
            with Draft.create(place, signature, state=state) as draft:
                draft.manifest.components[NAME] = entry
                for name, plan in plans.items():
                    draft.manifest.plans[name] = PlanEntry.of(plan, denoiser=NAME, solver=f"{name}, given")
                draft.manifest.default = next(iter(plans))
                write_card(draft)
            about = {"layouts": layouts, "denoisers": {NAME: denoiser}, "track": track}
            _refuse_deviations(export_graphs(Bundle.load(place), list(plans), precisions, **about))  # type: ignore[arg-type]
    return Bundle.load(root)


def _refuse_other_kinds(
    module: object, plans: Mapping[str, Plan], encode: Mapping[str, nn.Module], precisions: Sequence[Precision]
) -> None:
    """Raises ValueError for what is no module, no plan or no precision of a module's graphs."""
    others = {"the module": module} | {f"encode[{name!r}]": each for name, each in encode.items()}
    for what, each in others.items():
        if not isinstance(each, nn.Module):
            raise ValueError(f"{what} is a torch.nn.Module, got {each!r:.80}")
    if not plans:
        raise ValueError("a bundle has a plan at least, such as solvers.heun(parametrisation.grid(18)); give one to plans")
    for name, plan in plans.items():
        if not isinstance(plan, Plan):
            raise ValueError(f"plans[{name!r}] is a fewstep.Plan, such as a solver makes of a grid, got {plan!r:.80}")
    if not precisions:
        raise ValueError("a bundle of a module has a graph at least; give a precision")
    if eight := [precision for precision in precisions if precision in EIGHT_BITS]:
        raise ValueError(
            f"modules are exported in fp32, fp16 and bf16; {eight[0]} needs the ranges of layers, which are collected where "
            "a bundle has its networks"
        )


@contextmanager
def _evaluating(net: _Encoded) -> Iterator[_Encoded]:
    """A module in eval mode, whose parts are as they were afterwards."""
    training = [each for each in net.modules() if each.training]
    try:
        yield net.eval()
    finally:
        for each in training:
            each.training = True


def _refuse_deviations(bundle: Bundle) -> None:
    """Raises ValueError where a graph does not make what the module makes."""
    for parity in check_graphs(bundle):
        if not parity.ok and not math.isfinite(parity.max_error):
            raise ValueError(
                f"the samples of the graph {parity.graph}, or the module's own, are not finite; choose other levels"
            )
        if not parity.ok:
            full = bundle.manifest.graphs[parity.graph].precision == "fp32"
            way_out = "say with other operations what ONNX computes otherwise" if full else "export it in fp32"
            raise ValueError(
                f"the graph {parity.graph} is {parity.max_error:.2g} from the module, {parity.limit:.2g} are allowed; {way_out}"
            )


class _Encoded(nn.Module):
    """F with what makes its conditions: nodes that depend on conditions alone are written once, before the loop."""

    def __init__(self, module: nn.Module, encode: Mapping[str, nn.Module], signature: Signature) -> None:
        super().__init__()
        self.module, self.encode = module, nn.ModuleDict(dict(encode))
        self.numbers = {each.name: f"numbers_{each.name}" for each in signature.inputs if each.values is not None}
        for each in signature.inputs:
            if each.values is not None:
                self.register_buffer(self.numbers[each.name], torch.arange(each.values))

    def forward(self, x: Tensor, timestep: Tensor, inputs: Tensors) -> Tensor:
        # Looked up, so that a graph refuses numbers that mean nothing, whatever the module makes of them.
        known = {name: getattr(self, table)[inputs[name]] for name, table in self.numbers.items()}
        given = {
            name: self.encode[name](value) if name in self.encode else value for name, value in {**inputs, **known}.items()
        }
        made: Tensor = self.module(x, timestep, **given)
        return made


def _family(kind: str, inputs: Sequence[Input]) -> Family:
    def call(net: nn.Module, x: Tensor, timestep: Tensor, given: Tensors, _: Tensors) -> Tensor:
        made: Tensor = net(x, timestep, given)
        return made

    def facts(*_: object) -> Facts:
        return {}

    def constants(_: object, __: Constants) -> dict[str, Tensor]:
        return {}

    return Family(kind, tuple(each.name for each in inputs), call, facts, axes=None, tensors=constants)


def _unnamed(state: State) -> ArrayOutput:
    axes = tuple(Axis(name=f"axis_{i}", size=side) for i, side in enumerate(state.axes))
    return ArrayOutput(axes=axes, columns=tuple(Column(name=f"column_{i}") for i in range(state.channels)))


def _digest(net: nn.Module) -> str:
    """Of a module's weights."""
    found = hashlib.sha256(repr(net).encode())
    for name, tensor in net.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
