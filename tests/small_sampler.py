"""A whole bundle of a few KB that makes samples, with every kind of entry that a manifest has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto as Type
from onnx import helper, numpy_helper

from fewstep.artifact.bundle import Bundle, Draft
from fewstep.artifact.components import DenoiserEntry
from fewstep.artifact.manifest import EngineEntry, EngineKey, GraphEntry, PlanEntry, RangesEntry
from fewstep.artifact.signature import (
    ArrayInput,
    ArrayOutput,
    Axis,
    Column,
    ImageOutput,
    Input,
    LabelInput,
    Output,
    Signature,
    TensorSpec,
)
from fewstep.sampling.parametrisation import Edm
from fewstep.sampling.plan import Plan

LABELS, TEXT = (LabelInput(classes=3),), (ArrayInput(name="prompt_embeds", shape=(2, 3), null="given"),)
IMAGE = ImageOutput(channels=1, height=4, width=4)
# Where a robot is to be, six times.
PATH = ArrayOutput(
    axes=(Axis(name="time", size=6, unit="s"),),
    columns=(Column(name="x", unit="mm", mean=10.0, std=2.0), Column(name="y", unit="mm")),
)
ONE = Plan(*(np.array(table) for table in ([1.0, 1.0], [2.5, 0.0], [[0.0]], [[1.0]], [0.0], [1.0])))
TYPES = {"int64": Type.INT64, "float32": Type.FLOAT, "uint8": Type.UINT8}
Tensors = dict[str, np.ndarray]


class _Writer:
    """The graphs of a signature: what their tensors are called, and the constants that they read."""

    def __init__(self, signature: Signature) -> None:
        self.signature, self.state = signature, signature.output.shape
        ones = (1,) * len(self.state)
        self.weights: Tensors = {
            "one": np.array([1]),
            "rows": np.array([0, -1]),
            "wide": np.array([-1, *ones]),
            "hundred": np.full(self.state, 100, np.float32),
            "zero": np.array(0, np.float32),
            "top": np.array(255, np.float32),
        }
        for key in ("std", "mean"):
            numbers = [getattr(column, key) for column in getattr(signature.output, "columns", [])]
            self.weights[key] = np.resize(np.float32(numbers), signature.output.tensor.shape)

    def sampler(self) -> onnx.ModelProto:
        """sample = noise + mean of the first input."""
        nodes = [helper.make_node("Squeeze", ["noise", "one"], ["x"]), *self._shifted("sample"), *self._output()]
        return self._model(nodes, [_value("noise", (1, *self.state)), *self._given()], self._made())

    def step(self) -> onnx.ModelProto:
        """denoised = (x + mean of the first input) guidance_scale + scales[0]."""
        nodes = [
            *self._shifted("shifted"),
            helper.make_node("Gather", ["scales", "one"], ["skip"]),
            helper.make_node("Mul", ["shifted", "guidance_scale"], ["scaled"]),
            helper.make_node("Add", ["scaled", "skip"], ["denoised"]),
        ]
        alone = [helper.make_tensor_value_info(name, Type.FLOAT, shape) for name, shape in _ALONE]
        return self._model(nodes, [_value("x", self.state), *alone, *self._given()], [_value("denoised", self.state)])

    def postprocess(self) -> onnx.ModelProto:
        """sample = x."""
        nodes = [helper.make_node("Identity", ["x"], ["sample"]), *self._output()]
        return self._model(nodes, [_value("x", self.state)], self._made())

    def _shifted(self, to: str) -> list[onnx.NodeProto]:
        return [
            helper.make_node("Cast", [self.signature.inputs[0].name], ["number"], to=Type.FLOAT),
            helper.make_node("Reshape", ["number", "rows"], ["row"]),
            helper.make_node("ReduceMean", ["row", "one"], ["average"]),
            helper.make_node("Reshape", ["average", "wide"], ["shift"]),
            helper.make_node("Add", ["x", "shift"], [to]),
        ]

    def _output(self) -> list[onnx.NodeProto]:
        last = [0, *range(2, len(self.state) + 1), 1]
        if self.signature.output.tensor.name == "values":
            return [
                helper.make_node("Transpose", ["sample"], ["free"], perm=last),
                helper.make_node("Mul", ["free", "std"], ["spread"]),
                helper.make_node("Add", ["spread", "mean"], ["values"]),
            ]
        return [
            helper.make_node("Mul", ["sample", "hundred"], ["level"]),
            helper.make_node("Clip", ["level", "zero", "top"], ["clipped"]),
            helper.make_node("Cast", ["clipped"], ["bytes"], to=Type.UINT8),
            helper.make_node("Transpose", ["bytes"], ["images"], perm=last),
        ]

    def _given(self) -> list[onnx.ValueInfoProto]:
        return [_tensor(spec) for spec in self.signature.tensors(guided=False)]

    def _made(self) -> list[onnx.ValueInfoProto]:
        return [_tensor(self.signature.output.tensor), _value("sample", self.state)]

    def _model(
        self, nodes: list[onnx.NodeProto], given: list[onnx.ValueInfoProto], made: list[onnx.ValueInfoProto]
    ) -> onnx.ModelProto:
        read = {name for node in nodes for name in node.input}
        tensors = [numpy_helper.from_array(value, name) for name, value in self.weights.items() if name in read]
        graph = helper.make_graph(nodes, "small", given, made, tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


_ALONE: tuple[tuple[str, tuple[int, ...]], ...] = (("scales", (4,)), ("guidance_scale", ()))  # without a batch


def sampler_bundle(path: Path, inputs: Sequence[Input] = LABELS, output: Output = IMAGE) -> Bundle:
    """Plan "one" in a graph with weights beside it, "two" over a step graph; an engine that is none, ranges, a reference."""
    signature = Signature(inputs=tuple(inputs), output=output)
    write = _Writer(signature)
    with Draft.create(path, signature) as draft:
        manifest = draft.manifest
        for plan, denoiser in (("one", "net"), ("two", "other")):
            manifest.components[denoiser] = DenoiserEntry(
                kind="UNet2DModel", directory=None, parametrisation=Edm(sigma_data=0.5)
            )
            manifest.plans[plan] = PlanEntry.of(ONE, denoiser=denoiser, solver="one row")
        manifest.default = "one"
        whole, data = draft.new("graphs/one.onnx"), {"location": "one.bin", "size_threshold": 70}
        onnx.save(write.sampler(), whole, save_as_external_data=True, **data)
        onnx.save(write.step(), draft.new("graphs/two.onnx"))
        onnx.save(write.postprocess(), draft.new("graphs/two.postprocess.onnx"))
        manifest.graphs["one.fp32"] = _graph("one", "net", "one", "unrolled", data=["graphs/one.bin"])
        manifest.graphs["two.fp32"] = _graph("two", "other", None, "step", postprocess="graphs/two.postprocess.onnx")
        draft.new("engines/one.engine").write_bytes(b"no engine")
        manifest.engines["one"] = EngineEntry(
            file="engines/one.engine", graph="one.fp32", key=_key(), layers={"fp32": 1}, inspected=False, seconds=1.0
        )
        ranges = {"plan": "one", "samples": 1, "layers": {"conv": {"input": [[0, 1]], "output": [[-1, 1]]}}}
        draft.new("ranges.json").write_text(json.dumps(ranges))
        manifest.ranges["one"] = RangesEntry(file="ranges.json")
        golden = _golden(signature)
        np.savez_compressed(draft.new("golden.npz"), **{f"one/{name}": array for name, array in golden.items()})
    return Bundle.load(path)


def _golden(signature: Signature) -> Tensors:
    """What the plan makes of nothing: zeros."""
    given = {spec.name: np.zeros((1, *spec.shape), spec.dtype) for spec in signature.tensors(guided=False)}
    sample = np.zeros((1, *signature.output.shape), np.float32)
    return {"noise": sample[None], "states": sample[None], "sample": sample, **given}


def _tensor(spec: TensorSpec) -> onnx.ValueInfoProto:
    return _value(spec.name, spec.shape, TYPES[spec.dtype])


def _value(name: str, shape: tuple[int, ...], kind: int = Type.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, ("batch", *shape))


def _graph(name: str, denoiser: str, plan: str | None, layout: str, **more: Any) -> GraphEntry:
    entry = {"precision": "fp32", "opset": 20, "limit": 0.1} | more
    return GraphEntry(file=f"graphs/{name}.onnx", denoiser=denoiser, plan=plan, layout=layout, **entry)


def _key() -> EngineKey:
    return EngineKey(
        graph_sha256="0" * 64,
        postprocess_sha256=None,
        flavour="tensorrt",
        version="10.8",
        targets=["89"],
        gpu=None,
        precision="fp32",
        profiles=[(1, 1, 8)],
    )
