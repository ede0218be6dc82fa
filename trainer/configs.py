"""Settings of training runs. Nothing here needs torch, so that the command line knows them at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from fewstep.artifact.spec import refuse_mixed_precision
from fewstep.sampling.guidance import Guidance
from fewstep.sampling.parametrisation import Edm, Eps, Flow, Parametrisation, Velocity
from fewstep.trainer.rates import Schedule, rates, refuse_rate

__all__ = ["Kind", "Mode", "RunConfig", "SidConfig", "TeacherConfig", "TuneConfig", "Weights", "plain_share", "refuse_parts"]

Kind: TypeAlias = Literal["edm", "eps", "v", "flow"]
Mode: TypeAlias = Literal["teacher", "lsg", "zero", "anti"]


@dataclass(frozen=True)
class RunConfig:
    """Settings that every run has.

    Args:
        iterations: updates.
        batch: samples of an update, over all processes.
        seed: of everything that is drawn.
        halflife_images: of the average of weights, in samples.
        mixed_precision: what networks compute in: auto, no, bf16 or fp16.
        accumulate: parts that a batch is computed in, one after the other.
        checkpointing: forget activations and compute them again, for memory.
        shard: every process keeps a share of the weights, see fewstep.trainer.shards.
        checkpoint_every: updates between two checkpoints.
        validate_every: updates between two looks at a metric.
        patience: looks without a better one that end the run (0: none does).
    """

    iterations: int = 2000
    batch: int = 32
    seed: int = 0
    halflife_images: float = 5e3
    mixed_precision: str = "auto"
    accumulate: int = 1
    checkpointing: bool = False
    shard: bool = False
    checkpoint_every: int = 50
    validate_every: int = 200
    patience: int = 0

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.batch < 1:
            raise ValueError(f"a run needs 1 iteration and 1 sample a batch, got {self.iterations} and {self.batch}")
        if self.validate_every < 1 or self.checkpoint_every < 1 or self.patience < 0:
            raise ValueError("a run looks at its metric and saves every 1 iteration or more, and its patience is 0 or more")
        refuse_parts(self.batch, self.accumulate)
        refuse_mixed_precision(self.mixed_precision)
        refuse_rate(self.rate())

    def rate(self) -> float:
        """The peak learning rate."""
        return 1e-3


class Weights(NamedTuple):
    """k_train, k_fake and k_teacher."""

    train: float
    fake: float
    teacher: float

    @classmethod
    def of(cls, mode: Mode, k: float) -> Weights:
        """The weights of a mode. Zhou et al. 2024 (arXiv 2406.01561, lsg) and 2025 (arXiv 2505.12674, zero and anti).

        teacher: k for the teacher alone. lsg: k everywhere. zero: the teacher plain, F without the condition. anti: the teacher
        plain, F guided by -k where it learns and where it is asked, for only as it was taught is it the score of what G makes;
        the paper gives no values.

        Args:
            mode: where guidance acts.
            k: its scale; not used with zero.

        Raises:
            ValueError: for another mode, or a k that is not a finite number of 0 or more.
        """
        if not 0 <= k < inf:
            raise ValueError(f"guidance in a distillation has a weight of 0 or more, got {k:g}; the mode anti is that below 0")
        made = {"teacher": cls(1, 1, k), "lsg": cls(k, k, k), "zero": cls(0, 0, 1), "anti": cls(-k, -k, 1)}
        if mode not in made:
            raise ValueError(f"guidance in a distillation is one of {', '.join(get_args(Mode))}, got {mode!r}")
        return made[mode]


@dataclass(frozen=True)
class TuneConfig(RunConfig):
    """Settings of training that goes on from a network, which is what it is.

    Args:
        lr: peak learning rate.
        warmup: updates until it is reached.
        noise_mean, noise_std: of ln(sigma / alpha) that training visits, for EDM and flows.
        tau: of Lskip, what the plain loss counts: 0.99 unless said, and 1, without Lskip, for a flow.
        skip: of Lskip, levels of 1000 that it looks ahead.
        shared: of Lskip, whether its second noise is the first one.
        curriculum: of CLTS, width of its normal, such as 0.3; none unless given.
        schedule: of the learning rate and of Adam's momentum: linear, constant, momentum-decay or compensation-only.
        drop_label: share of samples that are made from nothing, for guidance.
        compile: by torch.compile.
    """

    lr: float = 3e-3
    warmup: int = 100
    noise_mean: float = -0.6
    noise_std: float = 1.3
    tau: float | None = None
    skip: int = 9
    shared: bool = False
    curriculum: float | None = None
    schedule: Schedule = "linear"
    drop_label: float = 0.1
    compile: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.tau is None or 0 <= self.tau <= 1) or self.skip < 0:  # also where tau is not a number
            raise ValueError(f"Lskip needs 0 <= tau <= 1 and skip >= 0, got tau={self.tau}, skip={self.skip}")
        rates(self.schedule, 0, self.iterations, self.warmup)
        if self.curriculum is not None and not 0 < self.curriculum < inf:
            raise ValueError(f"the curriculum's normal needs a width above 0 that is finite, got {self.curriculum}")

    def rate(self) -> float:
        """The peak learning rate."""
        return self.lr


@dataclass(frozen=True)
class TeacherConfig(TuneConfig):
    """Settings of a teacher that begins from nothing.

    Args:
        kind: what the network estimates, edm, eps, v or flow.
        network: its configuration, a config.json as diffusers writes it, with _class_name; unless given, a UNet2DModel of
            `channels`, `layers` and `attention` for what has two axes and no arrays, else a FieldTransformer.
        channels: of the U-Net's levels.
        layers: of every level of the U-Net.
        attention: in the U-Net's middle.
        patch: pixels of a side that are folded into channels before it, of states with two axes; 2 unless given.
        sigma_data: standard deviation of the data, of edm networks; about 1 for latents.
    """

    kind: Kind = "edm"
    network: Mapping[str, Any] | None = None
    channels: tuple[int, ...] = (32, 64)
    layers: int = 1
    attention: bool = False
    patch: int | None = None
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.sigma_data < inf:
            raise ValueError(f"sigma_data, the standard deviation of the data, is above 0 and finite, got {self.sigma_data}")
        if self.patch is not None and self.patch < 1:
            raise ValueError(f"a patch has a side of 1 pixel or more, got {self.patch}")
        plain_share(self.tau, self.parametrisation())

    def parametrisation(self) -> Parametrisation:
        """What the network estimates. Raises ValueError for a kind there is not."""
        made: dict[str, Parametrisation] = {
            "eps": Eps(),
            "v": Velocity(),
            "flow": Flow(),
            "edm": Edm(sigma_data=self.sigma_data),
        }
        if self.kind not in made:
            raise ValueError(f"a network estimates one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        return made[self.kind]


@dataclass(frozen=True)
class SidConfig(RunConfig):
    """Settings of a distillation; the defaults brought generators of digits to their teacher (benchmarks/sid.py).

    Args:
        iterations: updates of G (and of F).
        steps: K, the network calls per sample; as many as `plan` has, or 1, unless given.
        lr: None is 6e-4, half that for several steps.
        alpha: of SiD's loss.
        mode: where guidance acts, teacher, lsg, zero (Zero-CFG) or anti (Anti-CFG), see Weights.
        guidance: scale that the teacher is guided with, 1 is none; the generator then makes guided samples in one pass.
        lo: noise level that T is guided above.
        hi: noise level that T is guided up to; all higher ones unless given.
        match: every step's output, drawn uniformly, or the final one alone.
        start: the network that G starts as; the teacher unless given.
        plan: a sampler of the bundle that G walks, such as a fitted table, instead of few steps with noise drawn anew; what it
            ends in alone is matched.
        sigma_start: where the few steps begin, for EDM.
        noise_mean, noise_std: of ln(sigma / alpha) where F learns.
        warmup, adversarial_from: shares of the run in which only F learns, and after which real samples join.
    """

    iterations: int = 800
    halflife_images: float = 2e3
    validate_every: int = 25
    steps: int | None = None
    lr: float | None = None
    alpha: float = 1.0
    mode: Mode = "teacher"
    guidance: float = 1.2
    lo: float = 0.0
    hi: float | None = None
    match: Literal["uniform", "final"] = "uniform"
    start: str | None = None
    plan: str | None = None
    sigma_start: float = 2.5
    noise_mean: float = -1.2
    noise_std: float = 1.2
    warmup: float = 0.0
    adversarial_from: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is not None and not 1 <= self.steps <= 4:
            raise ValueError(f"SiD generators take 1 to 4 steps, got {self.steps}; use a calibrated solver beyond that")
        if self.match not in ("uniform", "final"):
            raise ValueError(f"a generator matches every output (uniform) or the last (final), got {self.match!r}")
        if not (0 <= self.warmup < 1 and 0 <= self.adversarial_from <= 1):
            raise ValueError(
                f"shares of a run lie in 0 .. 1, got warmup {self.warmup}, adversarial_from {self.adversarial_from}"
            )
        if not isfinite(self.alpha):
            raise ValueError(f"SiD's alpha is a finite number, published 0.5 to 1.2, got {self.alpha}")
        Weights.of(self.mode, self.guidance)
        self.interval()

    def rate(self) -> float:
        """The learning rate."""
        return self.lr if self.lr is not None else 6e-4 if self.steps in (None, 1) else 3e-4

    def interval(self) -> Guidance:
        """How T is guided."""
        return Guidance.of({"scale": Weights.of(self.mode, self.guidance).teacher, "lo": self.lo, "hi": self.hi})


def refuse_parts(batch: int, accumulate: int) -> None:
    """Raises ValueError where a batch does not come apart into equal parts.

    Args:
        batch: samples of an update.
        accumulate: parts, over all processes.
    """
    if accumulate < 1 or batch % accumulate:
        raise ValueError(f"a batch is computed in equal parts: {batch} samples do not come apart into {accumulate}")


def plain_share(tau: float | None, parametrisation: Parametrisation) -> float:
    """What the plain loss counts: tau or, unless said, 0.99, and 1 where Lskip is not stated or has no end.

    Args:
        tau: of Lskip, as it was asked for.
        parametrisation: of the network.

    Raises:
        ValueError: for another tau than 1 of a flow, or of a network whose first level is noise alone.
    """
    flow = isinstance(parametrisation, Flow)
    if flow and tau not in (None, 1):
        raise ValueError(f"Lskip is stated for EDM, eps and v, not for flows, got tau={tau}; train a flow with tau 1")
    endless = isinstance(parametrisation, Velocity) and parametrisation.betas.zero_snr
    if endless and tau not in (None, 1):
        raise ValueError(f"Lskip is infinite where the first level is noise alone (zero SNR), got tau={tau}; train with tau 1")
    return 1.0 if flow or endless else 0.99 if tau is None else tau
