"""A bundle as a Triton model repository, which needs nothing of fewstep to run.

    repository/
      digits.sid1/            an ensemble of the two below: seeds and the signature's inputs in, its output out
      digits.sid1.noise/      noise from seeds; Python backend
      digits.sid1.sampler/    the plan's graph, or its TensorRT engines, one for every GPU architecture

Triton lists a batch's dimension nowhere: a shape here is that of one sample.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

from google.protobuf import text_format
from google.protobuf.json_format import Parse
from tritonclient.grpc import model_config_pb2 as pb

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.described import Described, described_inputs, described_output
from fewstep.artifact.external import check_files
from fewstep.artifact.manifest import EngineEntry
from fewstep.artifact.spec import Precision
from fewstep.artifact.staging import staged
from fewstep.runtime.buckets import buckets_to
from fewstep.runtime.selection import ON_CPU, ON_GPU, graphs_of

__all__ = ["TritonSettings", "write_repository"]

Device = Literal["gpu", "cpu"]
Write = Callable[[str, Path], pb.ModelConfig]
CONFIG = "config.pbtxt"


class TritonSettings(NamedTuple):
    """precision: fp16 on a GPU and fp32 on a CPU unless said. The rest as in fewstep.runtime.batcher.Batcher."""

    device: Device = "gpu"
    precision: Precision | None = None
    max_batch: int = 32
    wait_ms: float = 2.0
    max_waiting: int = 256
    timeout_s: float = 10.0


def write_repository(bundle: Bundle, out: Path, plans: Sequence[str], settings: TritonSettings) -> list[str]:
    """Write models of the named plans into a model repository, which may hold others; the names of the ensembles.

    A model that is there is replaced. Where the bundle has TensorRT engines of the graph and a GPU is wanted, they are taken.

    Args:
        bundle: with whole graphs of the plans.
        out: the repository's directory.
        plans: by name.
        settings: of every model.

    Raises:
        ValueError: where a plan has no whole graph in that precision, an engine takes smaller batches only, or something else
            is in the way.
        OSError: where it cannot be written.
    """
    if settings.max_waiting < settings.max_batch:
        raise ValueError(f"a queue holds a batch of {settings.max_batch} at least, got max_waiting {settings.max_waiting}")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a directory with --out")
    models = [_Model(bundle, plan, settings) for plan in plans]
    parts = [part for model in models for part in model.parts()]
    for name, _ in parts:
        if (out / name).exists() and not (out / name / CONFIG).is_file():
            raise ValueError(f"{out / name} is there and no Triton model; remove it or name another --out")
    for name, write in parts:
        with staged(out / name) as directory:
            (directory / "1").mkdir()
            config = write(name, directory / "1")
            (directory / CONFIG).write_text(text_format.MessageToString(config), "utf-8")
    return [model.name for model in models]


class _Model:
    """The three parts of one plan."""

    def __init__(self, bundle: Bundle, plan: str, settings: TritonSettings) -> None:
        self.bundle, self.settings, self.name = bundle, settings, f"{bundle.manifest.name}.{plan}"
        graph = _graph(bundle, plan, settings)
        self.graph = bundle.manifest.graphs[graph]
        check_files(bundle, self.graph)
        self.engines = _engines(bundle, graph) if settings.device == "gpu" else {}
        self.buckets = buckets_to(settings.max_batch)
        for name, engine in self.engines.items():
            if untaken := [size for size in self.buckets if engine.key.profile(size) is None]:
                raise ValueError(f"the engine {name} does not take batch {untaken[0]}; build it for that, or lower the batch")
        manifest, table = bundle.manifest, bundle.plan(plan)
        self.seeds, *self.inputs = described_inputs(manifest.signature, guided=table.guided, by_graph=True)
        self.output = described_output(manifest.signature)
        self.noise_tensor = Described("noise", "FP32", (table.draws, *manifest.state.shape), "unit normal")

    def parts(self) -> list[tuple[str, Write]]:
        """Names of the models and what writes each; the ensemble last, for it needs the others."""
        return [(f"{self.name}.noise", self.noise), (f"{self.name}.sampler", self.sampler), (self.name, self.ensemble)]

    def noise(self, name: str, directory: Path) -> pb.ModelConfig:
        here = resources.files("fewstep.runtime")
        for source, target in (("deploy/triton_noise.py", "model.py"), ("noise.py", "noise.py")):
            (directory / target).write_bytes(here.joinpath(source).read_bytes())
        on_cpu = [{"kind": pb.ModelInstanceGroup.KIND_CPU}]
        tensors = {"input": [_tensor(self.seeds)], "output": [_tensor(self.noise_tensor)]}
        return self._config(name, backend="python", **tensors, instance_group=on_cpu)

    def sampler(self, name: str, directory: Path) -> pb.ModelConfig:
        cpu = self.settings.device == "cpu"
        kind = pb.ModelInstanceGroup.KIND_CPU if cpu else pb.ModelInstanceGroup.KIND_GPU
        what = self._with_engines(directory) if self.engines else self._with_graph(directory)
        return self._config(
            name,
            input=[_tensor(each) | _reshape(each) for each in (self.noise_tensor, *self.inputs)],
            output=[_tensor(self.output)],
            instance_group=[{"kind": kind}],
            dynamic_batching=self._batching(),
            model_warmup=list(self._warm_up()),
            **what,
        )

    def ensemble(self, name: str, _: Path) -> pb.ModelConfig:
        given = {each.name: each.name for each in self.inputs}
        noise = {"model_name": f"{name}.noise", "input_map": {"seeds": "seeds"}, "output_map": {"noise": "noise"}}
        sampler = {
            "model_name": f"{name}.sampler",
            "input_map": {"noise": "noise", **given},
            "output_map": {self.output.name: self.output.name},
        }
        steps = [{**step, "model_version": -1} for step in (noise, sampler)]
        tensors = {"input": [_tensor(each) for each in (self.seeds, *self.inputs)], "output": [_tensor(self.output)]}
        said = {each.name: {"string_value": _about(each)} for each in (self.seeds, *self.inputs, self.output)}
        return self._config(name, platform="ensemble", **tensors, ensemble_scheduling={"step": steps}, parameters=said)

    def _config(self, name: str, **parts: Any) -> pb.ModelConfig:
        config = {"name": name, "max_batch_size": self.settings.max_batch, **parts}
        return Parse(json.dumps(config), pb.ModelConfig())  # older protobufs take no dictionaries in dictionaries

    def _with_graph(self, directory: Path) -> dict[str, Any]:
        shutil.copyfile(self.bundle.file(self.graph.file), directory / "model.onnx")
        for path in self.graph.data:  # the graph names it without a directory
            shutil.copyfile(self.bundle.file(path), directory / Path(path).name)
        return {"backend": "onnxruntime", "default_model_filename": "model.onnx"}

    def _with_engines(self, directory: Path) -> dict[str, Any]:
        files = {}
        for engine in self.engines.values():
            sm = engine.key.targets[0]
            files[f"{sm[:-1]}.{sm[-1]}"] = f"model.sm{sm}.plan"
            shutil.copyfile(self.bundle.file(engine.file), directory / f"model.sm{sm}.plan")
        found: dict[str, Any] = {"platform": "tensorrt_plan", "cc_model_filenames": files}
        if self.graph.layout == "unrolled":  # a loop cannot be captured
            shapes = {each.name: list(each.shape) for each in (self.noise_tensor, *self.inputs)}
            specs = [
                {"batch_size": size, "input": {name: {"dim": dims} for name, dims in shapes.items()}} for size in self.buckets
            ]
            found["optimization"] = {"cuda": {"graphs": True, "graph_spec": specs}}
        return found

    def _batching(self) -> dict[str, Any]:
        settings = self.settings
        policy = {
            "timeout_action": pb.ModelQueuePolicy.REJECT,
            "default_timeout_microseconds": round(settings.timeout_s * 1e6),
            "allow_timeout_override": True,
            "max_queue_size": settings.max_waiting,
        }
        return {
            "preferred_batch_size": self.buckets[1:] or self.buckets,
            "max_queue_delay_microseconds": round(settings.wait_ms * 1e3),
            "default_queue_policy": policy,
        }

    def _warm_up(self) -> Iterator[dict[str, Any]]:
        made = {self.noise_tensor.name: {"random_data": True}} | {each.name: {"zero_data": True} for each in self.inputs}
        inputs = {each.name: _kind(each) | made[each.name] for each in (self.noise_tensor, *self.inputs)}
        for size in self.buckets:
            yield {"name": f"batch {size}", "batch_size": size, "inputs": inputs}


def _tensor(of: Described) -> dict[str, Any]:
    return {"name": of.name, **_kind(of)}


def _kind(of: Described) -> dict[str, Any]:
    """A number for every sample has the shape (1,) in Triton, which knows no shapes without a dimension."""
    return {"data_type": f"TYPE_{of.datatype}", "dims": list(of.shape) or [1]}


def _reshape(of: Described) -> dict[str, Any]:
    return {} if of.shape else {"reshape": {"shape": []}}


def _about(of: Described) -> str:
    """What a configuration has no fields for, as JSON."""
    said = {"meaning": of.meaning} | ({"names": of.names} if of.names else {})
    return json.dumps(said, ensure_ascii=False)


def _graph(bundle: Bundle, plan: str, settings: TritonSettings) -> str:
    """The whole graph of a plan in the precision that was asked for, else in the best one for the device."""
    bundle.pick("plan", plan, bundle.manifest.plans)
    whole = {p: name for p, name in graphs_of(bundle, plan).items() if bundle.manifest.graphs[name].plan == plan}
    order = [settings.precision] if settings.precision else ON_GPU if settings.device == "gpu" else ON_CPU
    for precision in order:
        if precision in whole:
            return whole[precision]
    raise ValueError(
        f"{bundle.root.name} has no whole graph of the plan {plan!r} in {' or '.join(order)} (it has: "
        f"{', '.join(sorted(whole)) or 'none'}); write it with: fewstep export {bundle.root.name} --plan {plan} "
        f"--precision {order[0]}"
    )


def _engines(bundle: Bundle, graph: str) -> dict[str, EngineEntry]:
    """The engines of a graph that Triton can run: it has no TensorRT-RTX, and does not refit."""
    sha256 = bundle.manifest.files[bundle.manifest.graphs[graph].file].sha256
    return {
        name: engine
        for name, engine in bundle.manifest.engines.items()
        if engine.graph == graph
        and engine.key.flavour == "tensorrt"
        and engine.key.graph_sha256 == sha256
        and "strip-plan" not in engine.key.flags
    }
