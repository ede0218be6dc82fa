"""Walking a plan from outside: one call of a step graph for every row, with the state in numpy between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, TypeAlias, cast

from fewstep.artifact.signature import NEGATIVE
from fewstep.backends.base import Array, Binding, ExactBinding, Program, Tensor, buffers, first_rows
from fewstep.sampling.parametrisation import Scales
from fewstep.sampling.plan import Plan, trajectory

__all__ = ["CancelledError", "OnStep", "Preview", "Walk", "Walker"]


class Preview(NamedTuple):
    """After row `row` of `rows`. output() makes of the estimate so far what a call would give, images or values."""

    row: int
    rows: int
    output: Callable[[], Array]


NUMBERS = {"x", "scales", "guidance_scale"}
OnStep: TypeAlias = Callable[[Preview], bool | None]  # False stops


class CancelledError(Exception):
    """A callback asked to stop."""


class Walker:
    """A plan over the two programs of the step layout, as one program that takes noise. output: what it gives, by name."""

    def __init__(self, plan: Plan, scales: Callable[[float], Scales], step: Program, postprocess: Program, output: str) -> None:
        self.plan, self.scales, self.step, self.postprocess, self.output = plan, scales, step, postprocess, output
        self.concurrent, self.exact = step.concurrent, step.exact
        state = step.inputs["x"]
        condition = {name: t for name, t in step.inputs.items() if name not in NUMBERS}
        if not plan.guided:
            condition = {
                name: t
                for name, t in condition.items()
                if name.removeprefix(NEGATIVE) not in condition or name.removeprefix(NEGATIVE) == name
            }
        self.inputs = {"noise": Tensor(state.dtype, (None, plan.draws, *state.shape[1:])), **condition}
        self.outputs = postprocess.outputs

    @property
    def about(self) -> str:
        """See Program.about."""
        return self.step.about

    def prepare(self, first_s: Mapping[int, float], /) -> bool:
        """See Program.prepare."""
        each = {batch: seconds / self.plan.nfe for batch, seconds in first_s.items()}
        return any([self.step.prepare(each), self.postprocess.prepare(each)])

    def takes(self, batch: int) -> bool:
        """See Program.takes."""
        return self.step.takes(batch) and self.postprocess.takes(batch)

    def bind(self, batch: int) -> Walk:
        """See Program.bind."""
        step, postprocess = self.step.bind(batch), self.postprocess.bind(batch)
        return Walk(self, buffers(self.inputs, batch), step, postprocess)


class Walk:
    """A Walker bound to buffers: those of its programs, and the noise."""

    def __init__(self, walker: Walker, inputs: Mapping[str, Array], step: Binding, postprocess: Binding) -> None:
        self._walker, self._step, self._finish = walker, step, postprocess
        self.inputs, self.outputs = inputs, postprocess.outputs

    def run(self, on_step: OnStep | None = None) -> None:
        """Compute samples from noise and inputs; on_step sees every row. Raises CancelledError where it returns False."""
        plan, given = self._walker.plan, self._step.inputs
        for name in given.keys() - NUMBERS:
            # A step graph takes what guidance needs even where this plan has none.
            given[name][...] = self.inputs[name if name in self.inputs else name.removeprefix(NEGATIVE)]
        noise = self.inputs["noise"]
        x = plan.begin(noise[:, 0])
        for made in trajectory(self._denoise, x, plan, list(noise[:, 1:].swapaxes(0, 1))):
            x = made.x
            if on_step and on_step(Preview(made.row, plan.rows, partial(self._output, made.denoised))) is False:
                raise CancelledError(f"stopped after row {made.row + 1} of {plan.rows}")
        self._output(x)

    def narrowed(self, batch: int) -> Walk:
        """See Binding.narrowed."""
        step, postprocess = (cast("ExactBinding", binding).narrowed(batch) for binding in (self._step, self._finish))
        return Walk(self._walker, first_rows(self._walker.inputs, self.inputs, batch), step, postprocess)

    def _denoise(self, x: Array, sigma: float, scale: float = 1.0, timestep: float | None = None) -> Array:
        given = self._step.inputs
        given["x"][...] = x
        for name, value in (("scales", self._walker.scales(sigma).told(timestep)), ("guidance_scale", scale)):
            if name in given:
                given[name][...] = value
        self._step.run()
        return self._step.outputs["denoised"].copy()  # later rows may need it

    def _output(self, x: Array) -> Array:
        self._finish.inputs["x"][...] = x
        self._finish.run()
        return self._finish.outputs[self._walker.output].copy()
