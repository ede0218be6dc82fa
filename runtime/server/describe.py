"""What a model takes and gives: for protocol clients and for the playground."""

from __future__ import annotations

from pydantic import BaseModel, ValidationError

from fewstep.runtime.batcher import Batcher
from fewstep.runtime.server.repository import Model, Repository, Version

__all__ = ["Description", "Metadata", "State", "describe", "metadata", "states"]

DATATYPES = {"int64": "INT64", "float32": "FP32"}


class TensorSpec(BaseModel):
    """A tensor of a request or answer. -1 is the number of images; labels have the parameter `names`, where classes have."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, list[str]] | None = None


class Metadata(BaseModel):
    """The protocol's model metadata."""

    name: str
    versions: list[str]
    platform: str = "fewstep"
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]


class State(BaseModel):
    """A version in Triton's repository index. No version is UNAVAILABLE, which is a model that is being loaded."""

    name: str
    version: str
    state: str
    reason: str


class IndexRequest(BaseModel):
    """What POST /v2/repository/index takes."""

    ready: bool = False


class PlanDescription(BaseModel):
    """A sampler, and where it runs."""

    name: str
    solver: str
    calls: int
    backend: str
    precision: str
    reason: str
    max_images: int


class Description(BaseModel):
    """What the playground needs to know of a model."""

    name: str
    version: int
    classes: int
    names: list[str]
    condition: str
    width: int
    height: int
    default: str
    plans: list[PlanDescription]


def metadata(model: Model, version: Version) -> Metadata:
    """The protocol's model metadata of a version."""
    manifest = version.bundle.manifest
    condition, image = manifest.condition, manifest.image
    specs = [*condition.inputs()]
    if any(batcher.generator.plan.guided for batcher in version.batchers.values()):
        specs += condition.null_inputs()
    inputs = [TensorSpec(name="seeds", datatype="UINT64", shape=[-1])]
    inputs += [TensorSpec(name=s.name, datatype=DATATYPES[s.dtype], shape=[-1, *s.shape]) for s in specs]
    for spec in inputs:
        if spec.name == "labels" and condition.names:
            spec.parameters = {"names": list(condition.names)}
    images = TensorSpec(name="images", datatype="UINT8", shape=[-1, image.height, image.width, image.channels])
    return Metadata(name=model.name, versions=[str(n) for n in model.versions], inputs=inputs, outputs=[images])


def states(repository: Repository, body: bytes) -> list[State]:
    """Triton's repository index, of what is ready where the body says so. Raises ValueError for another body."""
    try:
        asked = IndexRequest.model_validate_json(body or b"{}")
    except ValidationError:
        raise ValueError('the repository index takes {"ready": true}, or nothing') from None
    found = []
    for model in repository.models.values():
        current, versions = model.current, model.versions
        found += [
            State(name=model.name, version=str(number), state="READY", reason="current" * (number == current))
            for number in versions
        ]
        if not versions and not asked.ready:
            found.append(State(name=model.name, version="", state="UNAVAILABLE", reason="loading"))
    return found


def describe(model: Model) -> Description:
    """The playground's view of a model's current version."""
    version = model.version()
    manifest = version.bundle.manifest
    return Description(
        name=model.name,
        version=version.number,
        classes=manifest.condition.classes,
        names=list(manifest.condition.names),
        condition=manifest.condition.kind,
        width=manifest.image.width,
        height=manifest.image.height,
        default=version.default,
        plans=[_plan(name, manifest.plans[name].solver, batcher) for name, batcher in version.batchers.items()],
    )


def _plan(name: str, solver: str, batcher: Batcher) -> PlanDescription:
    made = batcher.generator
    return PlanDescription(
        name=name,
        solver=solver,
        calls=made.plan.nfe,
        backend=made.backend,
        precision=made.precision,
        reason=made.reason,
        max_images=batcher.max_request,
    )
