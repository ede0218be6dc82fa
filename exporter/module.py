"""Any torch module as a bundle: no class that is known by name, no configuration, no weights for training."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fewstep.artifact.bundle import Bundle, Draft
from fewstep.artifact.card import write_card
from fewstep.artifact.components import DenoiserEntry
from fewstep.artifact.draft import reason
from fewstep.artifact.manifest import Layout, PlanEntry
from fewstep.artifact.signature import ArrayOutput, Axis, Column, Input, Output, Signature, State
from fewstep.artifact.spec import Precision
from fewstep.exporter.export import export_graphs
from fewstep.exporter.parity import check_graphs
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
            (B, C, *axes). Whatever torch.export takes. In fp16 it gets x and arrays in fp16, and timestep in fp32 still.
        out: where the bundle is to be.
        state: what samplers walk on.
        parametrisation: what F estimates, and what it is told of the noise level.
        plans: samplers by name, on grids of that parametrisation; the first is the default.
        inputs: what samples are made from, in order.
        output: what a last state is; numbers without names and units unless given.
        encode: modules by the name of an input, which make of it what F takes under that name. They run once, before the loop
            (in the step layout, in every step).
        precisions: of the graphs, as for fewstep export; eight bits need ranges, and so a network that is trained here.
        layouts: of the graphs, by their size unless given.
        track: shows progress.

    Returns:
        The bundle, at `out`. It holds graphs and references alone: it is checked, built and run like any other, and neither
        fitted nor distilled.

    Raises:
        FileExistsError: where something is at `out`.
        ValueError: for an input that no module of `encode` and F agree on, what torch.export refuses, or a plan that does not
            fit.
    """
    if unknown := sorted(encode.keys() - {each.name for each in inputs}):
        raise ValueError(f"encode names {unknown[0]!r}, which is no input; give it to inputs, too")
    if not plans:
        raise ValueError("a bundle has a plan at least, such as solvers.heun(parametrisation.grid(18)); give one to plans")
    try:
        signature = Signature(inputs=tuple(inputs), output=output or _unnamed(state))
    except ValidationError as error:
        raise ValueError(reason(error)) from None
    net = _Encoded(module, encode).eval()
    denoiser = Denoiser(net, parametrisation=parametrisation, family=_family(type(module).__name__, inputs))
    _refuse_other_shape(denoiser, signature, state)
    path = Path(out)
    entry = DenoiserEntry(kind=type(module).__name__, directory=None, digest=_digest(net), parametrisation=parametrisation)
    with Draft.create(path, signature, state=state) as draft:
        draft.manifest.components[NAME] = entry
        for name, plan in plans.items():
            draft.manifest.plans[name] = PlanEntry.of(plan, denoiser=NAME, solver=f"{name}, given")
        draft.manifest.default = next(iter(plans))
        write_card(draft)
    try:
        bundle = Bundle.load(path)
        made = export_graphs(bundle, list(plans), precisions, layouts=layouts, denoisers={NAME: denoiser}, track=track)
        _refuse_deviations(made)
        return made
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)  # without a graph it is of no use to anyone
        raise


def _refuse_deviations(bundle: Bundle) -> None:
    """Raises ValueError where a graph does not make what the module makes."""
    for parity in check_graphs(bundle):
        if not parity.ok:
            raise ValueError(
                f"the graph {parity.graph} is {parity.max_error:.2g} from the module, {parity.limit:.2g} are allowed; "
                "export it in fp32, or with parts of the module in fp32"
            )


class _Encoded(nn.Module):
    """F with what makes its conditions: nodes that depend on conditions alone are written once, before the loop."""

    def __init__(self, module: nn.Module, encode: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.module, self.encode = module, nn.ModuleDict(dict(encode))

    def forward(self, x: Tensor, timestep: Tensor, inputs: Tensors) -> Tensor:
        given = {name: self.encode[name](value) if name in self.encode else value for name, value in inputs.items()}
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


def _refuse_other_shape(denoiser: Denoiser, signature: Signature, state: State) -> None:
    """Raises ValueError where a module does not make states of states."""
    given = [torch.from_numpy(value) for value in signature.example(2, guided=False).values()]
    x = torch.zeros(2, *state.shape)
    try:
        with torch.no_grad():
            made = denoiser.evaluate(x, torch.ones(1), *given)
    except Exception as error:  # of whatever kind a module raises for what it does not expect
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"the module does not run with these inputs and state {state.shape}: {reason}") from error
    if made.shape != x.shape:
        raise ValueError(f"the module makes {tuple(made.shape[1:])} of states {state.shape}; it gives what it was given")


def _digest(net: nn.Module) -> str:
    """Of a module's weights."""
    found = hashlib.sha256(repr(net).encode())
    for name, tensor in net.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
