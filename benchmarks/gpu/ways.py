"""One plan of a bundle in every way a user might run it on a GPU, all from the same noise to the same images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.signature import Input
from fewstep.artifact.spec import Precision
from fewstep.backends.base import Binding, buffers
from fewstep.backends.onnx import PLAIN_LAUNCH, OnnxGpuBinding
from fewstep.backends.sessions import CUDA, open_session
from fewstep.exporter.parity import walk
from fewstep.models.decoder import in_units
from fewstep.models.denoiser import Denoiser
from fewstep.runtime import Generator
from fewstep.runtime.noise import noise
from fewstep.sampling.guidance import guided
from fewstep.sampling.parametrisation import Edm
from fewstep.sampling.plan import Plan, sample
from gpu.networks import scheduler
from gpu.scale import Scale
from gpu.timing import Run

__all__ = ["TYPES", "Case"]

TYPES = {"fp32": torch.float32, "fp16": torch.float16}
Make = Callable[[Tensor, list[Tensor]], Tensor]  # last states from x_0 and the noise of later rows


@dataclass
class Case:
    """A plan of a bundle at a batch size. denoiser: its network in torch, on the device, in the precision.

    opened: what the cases of one plan share, for opening a session takes longer than timing it.
    """

    bundle: Bundle
    plan_name: str
    denoiser: Denoiser
    precision: Precision
    batch: int
    scale: Scale
    opened: dict[str, Any] = field(default_factory=dict)

    def at(self, batch: int) -> Case:
        """The same at another batch size."""
        return Case(self.bundle, self.plan_name, self.denoiser, self.precision, batch, self.scale, self.opened)

    @cached_property
    def plan(self) -> Plan:
        return self.bundle.plan(self.plan_name)

    @cached_property
    def noise(self) -> npt.NDArray[np.float32]:
        return noise(list(range(self.batch)), (self.plan.draws, *self.bundle.manifest.state.shape))

    @cached_property
    def condition(self) -> dict[str, Any]:
        """Labels that count up; arrays at random. With what means none, where the plan is guided."""
        return self.bundle.manifest.signature.example(self.batch, guided=self.plan.guided)

    def graph(self, layout: str) -> str:
        """The name of a graph of the bundle."""
        denoiser = self.bundle.manifest.plans[self.plan_name].denoiser
        return {
            "unrolled": f"{self.plan_name}.{self.precision}",
            "loop": f"{self.plan_name}.loop.{self.precision}",
            "step": f"{denoiser}.step.{self.precision}",
        }[layout]

    def generator(self, layout: str) -> Generator:
        """The runtime with a graph, for all batch sizes."""
        if layout not in self.opened:
            choices: Any = {"graph": self.graph(layout), "plan": self.plan_name, "backend": "cuda"}
            self.opened[layout] = Generator(self.bundle, **choices, buckets=self.scale.batches)
        made: Generator = self.opened[layout]
        return made

    def bare(self, layout: str) -> Run | None:
        """The graph alone, as the runtime binds it: inputs that lie ready on the host go up, images come down.

        None where the plan has no graph in this layout.
        """
        if self.graph(layout) not in self.bundle.manifest.graphs:
            return None
        with self.generator(layout)._pool.borrow(self.batch) as binding:
            return self._bound(binding)

    def launched(self) -> Run:
        """The same session without a CUDA graph."""
        program: Any = self.generator("unrolled")._pool.program
        arrays = buffers(program.inputs, self.batch), buffers(program.outputs, self.batch)
        return self._bound(OnnxGpuBinding(program.session(self.batch), *arrays, PLAIN_LAUNCH))

    def _bound(self, binding: Binding) -> Run:
        for name, array in {"noise": self.noise, **self.condition}.items():
            binding.inputs[name][...] = array

        def run() -> npt.NDArray[np.uint8]:
            binding.run()
            return binding.outputs["images"].copy()

        return run

    def whole(self) -> Run:
        """Generator(seeds=..., inputs): noise is drawn, inputs are checked, numbers that are not finite are looked for."""
        generator, seeds = self.generator("unrolled"), range(self.batch)
        return lambda: generator(seeds=seeds, **self.condition)

    def chosen_otherwise(self, options: Mapping[str, str]) -> Run:
        """The graph with other options of the CUDA provider, by plain calls of ONNX Runtime."""
        file = self.bundle.file(self.bundle.manifest.graphs[self.graph("unrolled")].file)
        session = open_session(file, self.plan_name, provider=CUDA, provider_options=options)
        feeds = {"noise": self.noise, **self.condition}
        return lambda: session.run(["images"], feeds)[0]

    def python_loop(self) -> Run:
        """One session of the step graph, called from a loop in Python, states in numpy."""
        graph = self.bundle.manifest.graphs[self.graph("step")]
        assert graph.postprocess is not None
        if "step" not in self.opened:
            self.opened["step"] = tuple(
                open_session(self.bundle.file(file), self.plan_name, provider=CUDA) for file in (graph.file, graph.postprocess)
            )
        step, postprocess = self.opened["step"]
        wanted, golden = [given.name for given in step.get_inputs()], {"noise": self.noise, **self.condition}
        made: dict[str, npt.NDArray[np.uint8]] = {}

        def evaluate(arrays: Mapping[str, Any]) -> npt.NDArray[Any]:
            found: npt.NDArray[Any] = step.run(["denoised"], {name: arrays[name] for name in wanted})[0]
            return found

        def end(arrays: Mapping[str, Any]) -> npt.NDArray[Any]:
            made["images"], last = postprocess.run(["images", "sample"], dict(arrays))
            return last

        def run() -> npt.NDArray[np.uint8]:
            walk(self.bundle, graph, self.plan, golden, evaluate, end)
            return made["images"]

        return run

    # In torch.

    @cached_property
    def given(self) -> tuple[Tensor, ...]:
        return tuple(self._on_device(self.condition[each.name]) for each in self.bundle.manifest.signature.inputs)

    @cached_property
    def null(self) -> tuple[Tensor, ...]:
        return tuple(map(self._none, self.bundle.manifest.signature.inputs)) if self.plan.guided else ()

    def _none(self, each: Input) -> Tensor:
        """What means none, as often as there are samples."""
        if each.null_tensor:
            return self._on_device(self.condition[each.null_tensor.name])
        constant = np.asarray(each.null_constant)
        return self._on_device(np.repeat(constant[None], self.batch, 0))

    def _on_device(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.scale.device)

    def eager(self) -> Run:
        """The plan in plain torch."""
        make = self._make(self.denoiser)
        return lambda: self._images(make, self.noise)

    def compiled(self, mode: str) -> Run:
        """The same with the network compiled for this batch; max-autotune, which measures kernels, takes minutes."""
        denoiser = copy.copy(self.denoiser)
        denoiser._modules = dict(self.denoiser._modules)
        denoiser.net = torch.compile(self.denoiser.net, dynamic=False, **self.scale.compiling[mode])  # type: ignore[assignment]
        make = self._make(denoiser)

        def run() -> npt.NDArray[np.uint8]:
            torch.compiler.cudagraph_mark_step_begin()
            return self._images(make, self.noise)

        return run

    def captured(self) -> Run:
        """The whole plan as one graph of torch.cuda; where there is no GPU, the same calls without it."""
        make = self._make(self.denoiser)
        if self.scale.device != "cuda":
            return lambda: self._images(make, self.noise)
        static = torch.from_numpy(self.noise).cuda()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode(), torch.cuda.stream(side):
            for _ in range(3):
                self._bytes(make, static)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph):
            out = self._bytes(make, static)
        host = torch.from_numpy(self.noise)

        def run() -> npt.NDArray[np.uint8]:
            static.copy_(host)
            graph.replay()
            images: npt.NDArray[np.uint8] = out.cpu().numpy()
            return images

        return run

    def _make(self, denoiser: Denoiser) -> Make:
        denoise, plan = Told(denoiser), self.plan
        return lambda x, draws: sample(guided(denoise, self.given, self.null), x, plan, draws)

    def _bytes(self, make: Make, start: Tensor) -> Tensor:
        x = make(self.plan.begin(start[:, 0]), list(start[:, 1:].unbind(1)))
        return in_units(x, self.bundle.manifest.output).round().to(torch.uint8).permute(0, 2, 3, 1)

    def _images(self, make: Make, array: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        with torch.inference_mode():
            images: npt.NDArray[np.uint8] = self._bytes(make, self._on_device(array)).cpu().numpy()
        return images

    def diffusers_loop(self) -> Run | None:
        """What a pipeline of diffusers does: its scheduler around the network, batched guidance in every step.

        None where diffusers has no scheduler for the plan: fitted tables, few-step generators, guidance in an interval.
        """
        plan, scales = self.plan, self.plan.guidance
        if plan.c.any() or not (scales == scales[0]).all():
            return None
        if isinstance(self.denoiser.parametrisation, Edm):
            lower = np.tril_indices(plan.rows, -1)
            euler = np.allclose(plan.a[lower], 0) and np.allclose(plan.b[lower], 0) and plan.rows > 1
            return (lambda: self._images(self._edm_loop, self.noise)) if euler else None
        return lambda: self._images(self._ddim_loop, self.noise)

    def _edm_loop(self, x: Tensor, _: list[Tensor]) -> Tensor:
        from diffusers import EDMEulerScheduler

        made: Any = EDMEulerScheduler(sigma_data=0.5)
        made.set_timesteps(self.plan.rows, device=x.device)
        made.sigmas = torch.tensor(self.plan.sigmas, dtype=torch.float32)
        made.timesteps = made.precondition_noise(made.sigmas[:-1])
        for t in made.timesteps:
            scaled = made.scale_model_input(x, t)
            x = made.step(self._guided(scaled, 1000 * t.float()), t, x).prev_sample  # the scheduler's t is ln(sigma) / 4
        return x

    def _ddim_loop(self, x: Tensor, _: list[Tensor]) -> Tensor:
        made = scheduler()
        made.set_timesteps(self.plan.rows, device=x.device)
        for t in made.timesteps:
            x = made.step(self._guided(x, t.float()), t, x).prev_sample
        return x

    def _guided(self, x: Tensor, t: Tensor) -> Tensor:
        scale, t = float(self.plan.guidance[0]), t.to(x.device)
        if scale == 1:
            return self.denoiser.evaluate(x, t, *self.given)
        both = tuple(torch.cat(pair) for pair in zip(self.given, self.null, strict=True))
        conditional, unconditional = self.denoiser.evaluate(torch.cat([x, x]), t, *both).chunk(2)
        return unconditional + scale * (conditional - unconditional)


class Told:
    """A denoiser that makes what its network is told of a noise level once, as graphs have it: torch cannot capture a copy of a
    number to the GPU, and waits for every one."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self.levels: dict[float, Tensor] = {}

    def __call__(self, x: Tensor, sigma: float, *condition: Tensor, timestep: float | None = None) -> Tensor:
        scales = self.denoiser.scales(sigma).told(timestep)
        told = float(scales.timestep)
        if told not in self.levels:
            self.levels[told] = torch.tensor(told, device=x.device)
        out = self.denoiser.evaluate(float(scales.into) * x, self.levels[told], *condition)
        return float(scales.skip) * x + float(scales.out) * out
