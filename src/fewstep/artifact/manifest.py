"""bundle.json: what a bundle's manifest may say. Unknown keys are refused, and every name it uses must be in it."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import fields
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, PositiveInt, SerializerFunctionWrapHandler, model_serializer, model_validator

from fewstep.artifact.components import Component, DecoderEntry, DenoiserEntry
from fewstep.artifact.records import Records
from fewstep.artifact.signature import Output, Signature, State
from fewstep.artifact.spec import Digest, Precision
from fewstep.sampling.plan import Plan
from fewstep.system.strict import Strict

__all__ = [
    "EngineEntry",
    "EngineFlag",
    "EngineKey",
    "FileEntry",
    "GraphEntry",
    "Layout",
    "Manifest",
    "PlanEntry",
    "RangesEntry",
    "check_name",
]

Layout = Literal["unrolled", "loop", "step"]
COORDINATES_TOLERANCE = 1e-6
EngineFlag = Literal["refit", "strip-plan", "version-compatible", "weight-streaming"]
MAX_FILES = 10_000
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}$"
Name = Annotated[str, Field(pattern=NAME)]


def check_name(name: str) -> None:
    """Whether a bundle or something in it can be called this, to be asked before the work that goes into it.

    Raises ValueError where it cannot.
    """
    if not re.fullmatch(NAME, name):
        raise ValueError(f"a name has letters, digits and _ . + - only, and begins with a letter or digit, got {name!r}")


# One wrong number is enough: a list of complaints about millions of them takes gigabytes.
Numbers = Annotated[list[float], Field(fail_fast=True)]
Rows = Annotated[list[Numbers], Field(fail_fast=True)]
Words = Annotated[list[str], Field(fail_fast=True)]


class PlanEntry(Strict):
    """A Plan for one denoiser. solver says in words how its numbers came about."""

    denoiser: Name
    solver: str
    alphas: Numbers
    sigmas: Numbers
    a: Rows
    b: Rows
    c: Numbers
    guidance: Numbers
    start: float | None = None
    timesteps: Numbers | None = None
    clip: Rows | None = None
    clip_range: float | None = None

    @classmethod
    def of(cls, plan: Plan, *, denoiser: str, solver: str) -> PlanEntry:
        """The entry of a plan.

        Args:
            plan: in the coordinates of that network.
            denoiser: the name of its network in the bundle.
            solver: how its numbers came about, in words.
        """
        tables = {field.name: getattr(plan, field.name) for field in fields(Plan)}
        lists = {name: table.tolist() if isinstance(table, np.ndarray) else table for name, table in tables.items()}
        return cls(denoiser=denoiser, solver=solver, **lists)

    def plan(self) -> Plan:
        return Plan(**{field.name: getattr(self, field.name) for field in fields(Plan)})

    @model_serializer(mode="wrap")
    def _without_what_is_absent(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in dump(self).items() if value is not None}

    @model_validator(mode="after")
    def _is_a_plan(self) -> PlanEntry:
        self.plan()
        return self


class RangesEntry(Strict):
    """What the layers of a plan's network see, for precisions that need it; see fewstep.artifact.ranges."""

    file: str


class GraphEntry(Strict):
    """An ONNX file, its weights in it or, where they are large, beside it in `data`, files that other graphs may read, too.

    unrolled and loop hold a whole plan: inputs noise (B, draws, C, ...) and those of the signature; outputs that of the
    signature and sample (B, C, ...) float32, the same before it is rounded or has units. step is one guided evaluation for
    whoever walks a plan: inputs x (B, C, ...), scales (4,), guidance_scale () and those of the signature; output denoised
    (B, C, ...); its `postprocess` turns a last state into the output.
    """

    file: str
    data: Words = Field(default=[])
    postprocess: str | None = None
    denoiser: Name
    plan: Name | None = Field(description="the plan inside; None for the step layout, which takes any plan of its denoiser")
    precision: Precision
    layout: Layout
    opset: PositiveInt
    batched_guidance: bool = Field(
        default=False, description="guided rows evaluate both conditions in one batch of twice the size"
    )
    excluded: Words = Field(default=[], description="layers left in higher precision because they hurt the image")
    limit: float = Field(gt=0, description="largest allowed |sample - reference| on golden.npz, in image values")
    min_psnr_db: float = Field(default=0, description="smallest allowed PSNR of sample against the reference there")

    @property
    def paths(self) -> list[str]:
        """Every file of the graph."""
        return [path for path in (self.file, *self.data, self.postprocess) if path]


class EngineKey(Strict):
    """Everything an engine depends on. Two engines with equal keys are interchangeable; a part that differs is named."""

    graph_sha256: str
    data_sha256: Words = Field(default=[], description="the graph's external weights")
    postprocess_sha256: str | None = Field(description="the graph that turns a step layout's last state into images")
    flavour: Literal["tensorrt_rtx", "tensorrt"]
    version: str
    targets: Words = Field(description='GPU architectures (SM) such as "89"; empty: what the flavour covers by default')
    gpu: str | None = Field(description="the GPU that a native build timed its kernels on; None for TensorRT-RTX")
    precision: Precision
    profiles: list[tuple[PositiveInt, PositiveInt, PositiveInt]] = Field(
        min_length=1,
        fail_fast=True,
        description="smallest, tuned and largest batch of each optimisation profile, by its index in the engine",
    )
    workspace_bytes: PositiveInt | None = None
    level: int | None = None
    flags: list[EngineFlag] = Field(default=[], fail_fast=True)

    def profile(self, batch: int) -> int | None:
        """Index of the optimisation profile to run a batch in; None when the engine has none for it."""
        return next((i for i, (low, _, high) in enumerate(self.profiles) if low <= batch <= high), None)


class EngineEntry(Strict):
    """A TensorRT engine. A graph of the step layout has a second one in `postprocess`."""

    file: str
    postprocess: str | None = None
    graph: Name
    key: EngineKey
    layers: dict[str, int] = Field(description="convolutions, matrix products and attention by the precision they compute in")
    inspected: bool = Field(
        description="the finished engine was read back on a GPU, beyond the typed network it was built from"
    )
    seconds: float = Field(ge=0, description="what the build took")

    @property
    def paths(self) -> list[str]:
        """Every file of the engine."""
        return [path for path in (self.file, self.postprocess) if path]


class FileEntry(Strict):
    sha256: Digest
    bytes: int = Field(ge=0)


class Manifest(Strict):
    """bundle.json. card_sha256: of the card.md that fewstep wrote last; another one is somebody's own words."""

    version: Literal[2] = Field(default=2, alias="schema")
    name: Name
    signature: Signature
    state: State
    components: dict[Name, Component] = Field(default={})
    plans: dict[Name, PlanEntry] = Field(default={})
    default: Name | None = None
    ranges: dict[Name, RangesEntry] = Field(default={})
    graphs: dict[Name, GraphEntry] = Field(default={})
    engines: dict[Name, EngineEntry] = Field(default={})
    records: Records = Field(default_factory=Records)
    card_sha256: Digest | None = None
    files: dict[str, FileEntry] = Field(default={}, max_length=MAX_FILES)

    @property
    def output(self) -> Output:
        """What the model gives."""
        return self.signature.output

    @property
    def denoisers(self) -> dict[str, DenoiserEntry]:
        """The networks that plans walk, by name."""
        return {name: entry for name, entry in self.components.items() if isinstance(entry, DenoiserEntry)}

    @property
    def decoder(self) -> DecoderEntry | None:
        """What turns the last state into the output; None where the state is it."""
        return next((entry for entry in self.components.values() if isinstance(entry, DecoderEntry)), None)

    @model_validator(mode="after")
    def _names_resolve(self) -> Manifest:
        wanted: list[tuple[str, str, Collection[str]]] = []
        wanted += [("denoiser", plan.denoiser, self.denoisers) for plan in self.plans.values()]
        wanted += [("plan", self.default, self.plans)] if self.default else []
        for graph in self.graphs.values():
            wanted += [("denoiser", graph.denoiser, self.denoisers)] + [("file", path, self.files) for path in graph.paths]
            wanted += [("plan", graph.plan, self.plans)] if graph.plan else []
        for plan, ranges in self.ranges.items():
            wanted += [("plan", plan, self.plans), ("file", ranges.file, self.files)]
        for engine in self.engines.values():
            wanted += [("graph", engine.graph, self.graphs)] + [("file", path, self.files) for path in engine.paths]
        for kind, name, known in wanted:
            if name not in known:
                raise ValueError(f"it refers to the {kind} {name!r}, which it does not hold")
        return self

    @model_validator(mode="after")
    def _plans_are_in_the_coordinates_of_their_networks(self) -> Manifest:
        for name, plan in self.plans.items():
            parametrisation = self.denoisers[plan.denoiser].parametrisation
            for alpha, sigma in zip(plan.alphas, plan.sigmas, strict=True):
                if abs(alpha - parametrisation.alpha(sigma)) > COORDINATES_TOLERANCE:
                    raise ValueError(
                        f"the plan {name!r} has alpha {alpha:g} at sigma {sigma:g}, which is not in the {parametrisation.kind} "
                        f"coordinates of its network {plan.denoiser!r}; write it on a grid of that network's parametrisation"
                    )
        return self

    @model_validator(mode="after")
    def _guided_plans_have_something_to_go_away_from(self) -> Manifest:
        for name, plan in self.plans.items():
            if not self.signature.guidable and any(scale != 1 for scale in plan.guidance):
                raise ValueError(
                    f"the plan {name!r} is guided, and no input of this bundle means none; write one without guidance"
                )
        return self

    @model_validator(mode="after")
    def _states_become_the_output(self) -> Manifest:
        output = self.output
        decoders = sum(isinstance(entry, DecoderEntry) for entry in self.components.values())
        if decoders > 1:
            raise ValueError(f"a bundle has one decoder at most, this one has {decoders}")
        if not decoders and self.state.shape != output.shape:
            raise ValueError(f"states {self.state.shape} become outputs {output.shape} by a decoder, and there is none")
        if decoders and not output.decodable:
            raise ValueError("a decoder makes images in [-1, 1]; let the output be one, with low -1 and high 1")
        return self
