"""A whole bundle of a few KB that makes images, with every kind of entry that a manifest has."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto as Type
from onnx import helper, numpy_helper

from fewstep.artifact.bundle import Bundle, Draft
from fewstep.artifact.manifest import (
    Condition,
    EngineEntry,
    EngineKey,
    GraphEntry,
    ImageSpec,
    NetworkEntry,
    PlanEntry,
    RangesEntry,
)
from fewstep.sampling.parametrisation import Edm
from fewstep.sampling.plan import Plan

LABELS, TEXT = Condition(kind="labels", classes=3), Condition(kind="embeddings", tokens=2, width=3)
ONE = Plan(*(np.array(table) for table in ([1.0, 1.0], [2.5, 0.0], [[0.0]], [[1.0]], [0.0], [1.0])))
STATE = ("batch", 1, 4, 4)
WEIGHTS = {
    "one": np.array([1]),
    "rows": np.array([0, -1]),
    "pixels": np.array([-1, 1, 1, 1]),
    "hundred": np.full((1, 4, 4), 100, np.float32),
    "zero": np.array(0, np.float32),
    "top": np.array(255, np.float32),
}


def sampler(condition: Condition) -> onnx.ModelProto:
    """sample = noise + mean of the condition."""
    nodes = [helper.make_node("Squeeze", ["noise", "one"], ["x"]), *_shifted(condition, "sample"), *_pictures()]
    return _model(nodes, [_value("noise", ("batch", 1, 1, 4, 4)), *_given(condition)], _made())


def step(condition: Condition) -> onnx.ModelProto:
    """denoised = (x + mean of the condition) weight + scales[0]."""
    nodes = [
        *_shifted(condition, "shifted"),
        helper.make_node("Gather", ["scales", "one"], ["skip"]),
        helper.make_node("Mul", ["shifted", "weight"], ["weighted"]),
        helper.make_node("Add", ["weighted", "skip"], ["denoised"]),
    ]
    given = [_value("x", STATE), _value("scales", (4,)), _value("weight", ()), *_given(condition)]
    return _model(nodes, given, [_value("denoised", STATE)])


def postprocess() -> onnx.ModelProto:
    """sample = x."""
    return _model([helper.make_node("Identity", ["x"], ["sample"]), *_pictures()], [_value("x", STATE)], _made())


def sampler_bundle(path: Path, condition: Condition = LABELS) -> Bundle:
    """Plan "one" in a graph with weights beside it, "two" over a step graph; an engine that is none, ranges, a reference."""
    with Draft.create(path, image=ImageSpec(channels=1, height=4, width=4), condition=condition) as draft:
        manifest = draft.manifest
        for plan, network in (("one", "net"), ("two", "other")):
            manifest.networks[network] = NetworkEntry(directory=None, parametrisation=Edm(sigma_data=0.5))
            manifest.plans[plan] = PlanEntry.of(ONE, network=network, solver="one row")
        manifest.default = "one"
        whole, data = draft.new("graphs/one.onnx"), {"location": "one.bin", "size_threshold": 90}
        onnx.save(sampler(condition), whole, save_as_external_data=True, **data)
        onnx.save(step(condition), draft.new("graphs/two.onnx"))
        onnx.save(postprocess(), draft.new("graphs/two.postprocess.onnx"))
        manifest.graphs["one.fp32"] = _graph("one", "net", "one", "unrolled", data="graphs/one.bin")
        manifest.graphs["two.fp32"] = _graph("two", "other", None, "step", postprocess="graphs/two.postprocess.onnx")
        draft.new("engines/one.engine").write_bytes(b"no engine")
        manifest.engines["one"] = EngineEntry(
            file="engines/one.engine", graph="one.fp32", key=_key(), layers={"fp32": 1}, inspected=False, seconds=1.0
        )
        ranges = {"plan": "one", "samples": 1, "layers": {"conv": {"input": [[0, 1]], "output": [[-1, 1]]}}}
        draft.new("ranges.json").write_text(json.dumps(ranges))
        manifest.ranges["one"] = RangesEntry(file="ranges.json")
        given = {spec.name: np.zeros((1, *spec.shape), spec.dtype) for spec in condition.inputs()}
        sample = np.zeros((1, 1, 4, 4), np.float32)
        golden = {"noise": np.zeros((1, 1, 1, 4, 4), np.float32), "states": sample[None], "sample": sample, **given}
        np.savez_compressed(draft.new("golden.npz"), **{f"one/{name}": array for name, array in golden.items()})
    return Bundle.load(path)


def _shifted(condition: Condition, to: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Cast", [condition.inputs()[0].name], ["number"], to=Type.FLOAT),
        helper.make_node("Reshape", ["number", "rows"], ["wide"]),
        helper.make_node("ReduceMean", ["wide", "one"], ["mean"]),
        helper.make_node("Reshape", ["mean", "pixels"], ["shift"]),
        helper.make_node("Add", ["x", "shift"], [to]),
    ]


def _pictures() -> list[onnx.NodeProto]:
    return [
        helper.make_node("Mul", ["sample", "hundred"], ["scaled"]),
        helper.make_node("Clip", ["scaled", "zero", "top"], ["level"]),
        helper.make_node("Cast", ["level"], ["bytes"], to=Type.UINT8),
        helper.make_node("Transpose", ["bytes"], ["images"], perm=[0, 2, 3, 1]),
    ]


def _value(name: str, shape: tuple[str | int, ...], kind: int = Type.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _given(condition: Condition) -> list[onnx.ValueInfoProto]:
    types = {"int64": Type.INT64, "float32": Type.FLOAT}
    return [_value(spec.name, ("batch", *spec.shape), types[spec.dtype]) for spec in condition.inputs()]


def _made() -> list[onnx.ValueInfoProto]:
    return [_value("images", ("batch", 4, 4, 1), Type.UINT8), _value("sample", STATE)]


def _model(nodes: list[onnx.NodeProto], given: list[onnx.ValueInfoProto], made: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
    read = {name for node in nodes for name in node.input}
    tensors = [numpy_helper.from_array(value, name) for name, value in WEIGHTS.items() if name in read]
    graph = helper.make_graph(nodes, "small", given, made, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _graph(name: str, network: str, plan: str | None, layout: str, **more: str) -> GraphEntry:
    entry = {"precision": "fp32", "opset": 20, "limit": 0.1} | more
    return GraphEntry(file=f"graphs/{name}.onnx", network=network, plan=plan, layout=layout, **entry)


def _key() -> EngineKey:
    return EngineKey(
        graph_sha256="0" * 64,
        data_sha256=None,
        postprocess_sha256=None,
        flavour="tensorrt",
        version="10.8",
        targets=["89"],
        gpu=None,
        precision="fp32",
        profiles=[(1, 1, 8)],
    )
