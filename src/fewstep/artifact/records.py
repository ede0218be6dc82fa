"""How the parts of a bundle came about: a record for each network and each plan that something is known of."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, JsonValue

from fewstep.system.strict import Strict

__all__ = [
    "Adopted",
    "Distilled",
    "Fitted",
    "Imported",
    "Look",
    "NetworkRecord",
    "PlanRecord",
    "Records",
    "Searched",
    "Trained",
]


def _as_json(settings: Any) -> Any:
    """Tuples as lists, which is what JSON has."""
    return json.loads(json.dumps(settings))


Settings = Annotated[dict[str, JsonValue], BeforeValidator(_as_json)]


class Look(Strict):
    """What a metric said after so many updates; lower is better."""

    iteration: int
    value: float


class _Learnt(Strict):
    """What training and distilling say alike. settings: all of the run's, as its configuration takes them.

    mixed_precision: what the network computed in. data: what samples were read from, None for none. license: in words, of
    the samples or of who made the network; inherited_licenses: of the networks that it was made from, by their names.
    """

    settings: Settings
    mixed_precision: str
    data: str | None = None
    data_sha256: str | None = None
    samples: int | None = None
    metrics: list[Look] = Field(default=[])
    license: str | None = None
    inherited_licenses: dict[str, str] = Field(default={})


class Trained(_Learnt):
    """A network trained on samples. rows: of the arrays that samples were made from, where there were some.

    start: the network that it went on from; None where it began from nothing.
    """

    kind: Literal["trained"] = "trained"
    rows: int | None = None
    start: str | None = None
    start_sha256: str | None = None


class Distilled(_Learnt):
    """A generator of few calls. teacher, start: the networks it learnt from and began as; plan_data: what the plan it walks was
    fitted to. validated_on: images that chose among its weights. retries: how often it went on from an earlier point.
    """

    kind: Literal["distilled"] = "distilled"
    teacher: str
    teacher_sha256: str
    start: str
    start_sha256: str
    plan_sha256: str | None = None
    plan_data: str | None = None
    validated: bool = False
    validated_on: str | None = None
    retries: int = 0


class Imported(Strict):
    """A checkpoint's network. scheduler: its configuration; mu: the shift of a flow that shifts dynamically. proof: what was
    compared with the original, see fewstep.models.proof.
    """

    kind: Literal["imported"] = "imported"
    source: str
    pipeline: str | None = None
    scheduler: Settings
    mu: float | None = None
    proof: dict[str, Any]
    notes: list[str] = Field(default=[])
    license: str | None = None


class Adopted(Strict):
    """Where a plan was taken over from, and the guidance that took the place of its own. A record itself where it had none."""

    kind: Literal["adopted"] = "adopted"
    bundle: str
    plan: str
    guidance: Settings | None = None


class Fitted(Strict):
    """A plan whose numbers were fitted. network_sha256: of the network it was fitted to, with its decoder. data, features: real
    samples and in whose features. losses: of a table on noise that was not fitted; steps: of every row, plain and fitted.
    """

    kind: Literal["fitted"] = "fitted"
    settings: Settings
    network_sha256: str
    inputs_sha256: str | None = None
    data: str | None = None
    features: list[str] = Field(default=[])
    trained_in: list[str | None] = Field(default=[])
    losses: list[float] = Field(default=[])
    steps: list[Settings] = Field(default=[])
    consistency: list[float] = Field(default=[])
    adopted: Adopted | None = None


class Searched(Strict):
    """A plan whose guidance was searched. levels: of the grid, None for pure noise; similarity: of both estimates at every row;
    trials: all that were made.
    """

    kind: Literal["searched"] = "searched"
    settings: Settings
    network_sha256: str
    inputs_sha256: str | None = None
    evaluator_sha256: str
    guidance: dict[str, float | None]
    levels: list[float | None]
    similarity: list[float]
    trials: list[Settings]
    adopted: Adopted | None = None


NetworkRecord = Annotated[Trained | Distilled | Imported, Field(discriminator="kind")]
PlanRecord = Annotated[Fitted | Searched | Adopted, Field(discriminator="kind")]


class Records(Strict):
    """By the names of what they speak of, which are not one name space."""

    components: dict[str, NetworkRecord] = Field(default={})
    plans: dict[str, PlanRecord] = Field(default={})
