"""What a model takes and gives: for protocol clients and for the playground."""

from __future__ import annotations

from pydantic import BaseModel, ValidationError

from fewstep.artifact.described import Described, described_inputs, described_output
from fewstep.artifact.signature import Output
from fewstep.runtime.batcher import Batcher
from fewstep.runtime.server.repository import Model, Repository, Version

__all__ = ["Description", "Metadata", "VersionState", "describe", "metadata", "states"]


class TensorMetadata(BaseModel):
    """A tensor of a request or answer. -1 is the number of samples.

    parameters: its `meaning`, whether it is `optional`, and the `names` of its values, where they have some.
    """

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, bool | str | list[str]]


class Metadata(BaseModel):
    """The protocol's model metadata."""

    name: str
    versions: list[str]
    platform: str = "fewstep"
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class VersionState(BaseModel):
    """A version in Triton's repository index. No version is UNAVAILABLE, which is a model that is being loaded."""

    name: str
    version: str
    state: str
    reason: str


class IndexRequest(BaseModel):
    """What POST /v2/repository/index takes."""

    ready: bool = False


class PlanDescription(BaseModel):
    """A sampler, where it runs, and the names of the inputs that it takes."""

    name: str
    takes: list[str]
    solver: str
    calls: int
    backend: str
    precision: str
    reason: str
    max_samples: int


class Field(BaseModel):
    """An input of the playground. shape: of one value; choices: how many different ones there are, where they have an end."""

    name: str
    shape: list[int]
    meaning: str
    optional: bool
    choices: int | None
    names: list[str]


class Shown(BaseModel):
    """What the playground shows: pictures, or tables with these heads, of every axis and of the last one's numbers."""

    name: str
    about: str
    pictures: bool
    axes: list[str]
    columns: list[str]


class Description(BaseModel):
    """What the playground needs to know of a model."""

    name: str
    version: int
    inputs: list[Field]
    output: Shown
    default: str
    plans: list[PlanDescription]


def metadata(model: Model, version: Version) -> Metadata:
    """The protocol's model metadata of a version.

    Args:
        model: of the repository.
        version: one of it.
    """
    inputs = [_tensor(each) for each in _inputs(version)]
    output = _tensor(described_output(version.bundle.manifest.signature))
    return Metadata(name=model.name, versions=[str(n) for n in model.versions], inputs=inputs, outputs=[output])


def _inputs(version: Version) -> list[Described]:
    """What its plans take, all together."""
    guided = any(batcher.generator.plan.guided for batcher in version.batchers.values())
    return described_inputs(version.bundle.manifest.signature, guided=guided)


def _tensor(of: Described) -> TensorMetadata:
    about: dict[str, bool | str | list[str]] = {"meaning": of.meaning, "optional": of.optional}
    named: dict[str, bool | str | list[str]] = {"names": list(of.names)} if of.names else {}
    return TensorMetadata(name=of.name, datatype=of.datatype, shape=[-1, *of.shape], parameters=about | named)


def states(repository: Repository, body: bytes) -> list[VersionState]:
    """Triton's repository index, of what is ready where the body says so.

    Args:
        repository: of the models.
        body: JSON, or nothing.

    Raises:
        ValueError: for another body.
    """
    try:
        asked = IndexRequest.model_validate_json(body or b"{}")
    except ValidationError:
        raise ValueError('the repository index takes {"ready": true}, or nothing') from None
    found = []
    for model in repository.models.values():
        current, versions = model.current, model.versions
        found += [
            VersionState(name=model.name, version=str(number), state="READY", reason="current" * (number == current))
            for number in versions
        ]
        if not versions and not asked.ready:
            found.append(VersionState(name=model.name, version="", state="UNAVAILABLE", reason="loading"))
    return found


def describe(model: Model) -> Description:
    """The playground's view of a model's current version."""
    version = model.version()
    manifest = version.bundle.manifest
    _, *inputs = _inputs(version)  # without the seeds, which have a field of their own
    plans = [_plan(name, manifest.plans[name].solver, batcher) for name, batcher in version.batchers.items()]
    return Description(
        name=model.name,
        version=version.number,
        inputs=[Field.model_validate(each._asdict()) for each in inputs],
        output=_shown(manifest.output),
        default=version.default,
        plans=plans,
    )


def _shown(output: Output) -> Shown:
    axes, columns = output.heads
    return Shown(name=output.tensor.name, about=output.about, pictures=output.pictures, axes=axes, columns=columns)


def _plan(name: str, solver: str, batcher: Batcher) -> PlanDescription:
    made = batcher.generator
    return PlanDescription(
        name=name,
        takes=[tensor.name for tensor in made.signature.tensors(guided=made.plan.guided)],
        solver=solver,
        calls=made.plan.nfe,
        backend=made.backend,
        precision=made.precision,
        reason=made.reason,
        max_samples=batcher.max_request,
    )
