"""A whole bundle of a few KB that makes images: every kind of entry a manifest has, one row, weights beside the graph."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto as Type
from onnx import helper, numpy_helper

from fewstep.bundle import Bundle, Draft
from fewstep.manifest import Condition, EngineEntry, EngineKey, GraphEntry, ImageSpec, NetworkEntry, PlanEntry, RangesEntry
from fewstep.parametrisation import Edm
from fewstep.plan import Plan

LABELS, TEXT = Condition(kind="labels", classes=3), Condition(kind="embeddings", tokens=2, width=3)
PLAN = Plan(*(np.array(table) for table in ([1.0, 1.0], [2.5, 0.0], [[0.0]], [[1.0]], [0.0], [1.0])))


def sampler(condition: Condition) -> onnx.ModelProto:
    """sample = noise + mean of the condition, images = sample in levels of 1/100."""
    given = [
        helper.make_tensor_value_info(spec.name, Type.INT64 if spec.dtype == "int64" else Type.FLOAT, ["batch", *spec.shape])
        for spec in condition.inputs()
    ]
    noise = helper.make_tensor_value_info("noise", Type.FLOAT, ["batch", 1, 1, 4, 4])
    outputs = [
        helper.make_tensor_value_info("images", Type.UINT8, ["batch", 4, 4, 1]),
        helper.make_tensor_value_info("sample", Type.FLOAT, ["batch", 1, 4, 4]),
    ]
    name = condition.inputs()[0].name
    nodes = [
        helper.make_node("Squeeze", ["noise", "one"], ["x"]),
        helper.make_node("Cast", [name], ["number"], to=Type.FLOAT),
        helper.make_node("Reshape", ["number", "rows"], ["wide"]),
        helper.make_node("ReduceMean", ["wide", "one"], ["mean"]),
        helper.make_node("Reshape", ["mean", "pixels"], ["shift"]),
        helper.make_node("Add", ["x", "shift"], ["sample"]),
        helper.make_node("Mul", ["sample", "hundred"], ["scaled"]),
        helper.make_node("Clip", ["scaled", "zero", "top"], ["level"]),
        helper.make_node("Cast", ["level"], ["bytes"], to=Type.UINT8),
        helper.make_node("Transpose", ["bytes"], ["images"], perm=[0, 2, 3, 1]),
    ]
    weights = {
        "one": np.array([1]),
        "rows": np.array([0, -1]),
        "pixels": np.array([-1, 1, 1, 1]),
        "hundred": np.full((1, 4, 4), 100, np.float32),
        "zero": np.float32(0),
        "top": np.float32(255),
    }
    tensors = [numpy_helper.from_array(np.asarray(value), key) for key, value in weights.items()]
    graph = helper.make_graph(nodes, "sampler", [noise, *given], outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def sampler_bundle(path: Path, condition: Condition = LABELS) -> Bundle:
    """A bundle with the graph, its weights beside it, an engine that is none, ranges and a reference."""
    with Draft.create(path, image=ImageSpec(channels=1, height=4, width=4), condition=condition) as draft:
        manifest = draft.manifest
        manifest.networks["net"] = NetworkEntry(directory=None, parametrisation=Edm(sigma_data=0.5))
        manifest.plans["one"] = PlanEntry.of(PLAN, network="net", solver="one row")
        manifest.default = "one"
        file = draft.new("graphs/one.onnx")
        onnx.save(sampler(condition), file, save_as_external_data=True, location="one.bin", size_threshold=90)
        manifest.graphs["one.fp32"] = GraphEntry(
            file="graphs/one.onnx",
            data="graphs/one.bin",
            network="net",
            plan="one",
            precision="fp32",
            layout="unrolled",
            opset=20,
            limit=0.1,
        )
        draft.new("engines/one.engine").write_bytes(b"no engine")
        manifest.engines["one"] = EngineEntry(
            file="engines/one.engine", graph="one.fp32", key=_key(), layers={"fp32": 1}, inspected=False, seconds=1.0
        )
        ranges = {"plan": "one", "samples": 1, "layers": {"conv": {"input": [[0, 1]], "output": [[-1, 1]]}}}
        draft.new("ranges.json").write_text(json.dumps(ranges))
        manifest.ranges["one"] = RangesEntry(file="ranges.json")
        golden = {"one/noise": np.zeros((1, 1, 1, 4, 4), np.float32), "one/sample": np.zeros((1, 1, 4, 4), np.float32)}
        np.savez_compressed(draft.new("golden.npz"), **golden)
    return Bundle.load(path)


def _key() -> EngineKey:
    return EngineKey(
        graph_sha256="0" * 64,
        data_sha256=None,
        finish_sha256=None,
        flavour="tensorrt",
        version="10.8",
        targets=["89"],
        gpu=None,
        precision="fp32",
        profiles=[(1, 1, 8)],
    )
