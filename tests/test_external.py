"""Weights beside a graph: found in its bytes, and none read that the manifest has no hash for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from small_graphs import bundle_of, convolution

from fewstep.artifact.bundle import Bundle
from fewstep.artifact.external import check_files, locations
from fewstep.runtime import Generator


def outside(tensor: onnx.TensorProto, file: str) -> None:
    """Move a tensor's values to a file."""
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", file), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)


def test_every_place_a_tensor_may_stand_in_is_looked_at() -> None:
    model = convolution()
    values = numpy_helper.from_array(np.zeros(4, np.float32), "t")
    places = {}
    for place in ("initializer", "attribute", "list", "inner graph", "sparse", "function"):
        places[place] = onnx.TensorProto()
        places[place].CopyFrom(values)
        outside(places[place], f"{place}.bin")
    model.graph.initializer.append(places["initializer"])
    node = model.graph.node[0]
    node.attribute.append(helper.make_attribute("a", places["attribute"]))
    node.attribute.append(helper.make_attribute("b", [places["list"]]))
    body = helper.make_graph([], "body", [], [], [places["inner graph"]])
    node.attribute.append(
        helper.make_attribute("c", helper.make_graph([helper.make_node("If", [], [], then_branch=body)], "outer", [], []))
    )
    model.graph.sparse_initializer.add().values.CopyFrom(places["sparse"])
    constant = helper.make_node("Constant", [], ["x"], value=places["function"])
    model.functions.append(helper.make_function("d", "f", [], ["x"], [constant], [helper.make_opsetid("", 20)]))
    assert locations(model.SerializeToString()) == {f"{place}.bin" for place in places}
    assert locations(convolution().SerializeToString()) == set()


@pytest.mark.parametrize("content", [b"not a graph", b"\x0b", b"\xff" * 20, b"\x3a\xff\x01x"])
def test_bytes_that_are_no_onnx_file_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="is not a readable ONNX file"):
        locations(content)


@pytest.mark.parametrize("location", ["beside.bin", "../secret.bin", "/etc/hostname"])
def test_weights_without_a_hash_are_never_read(location: str, digits: Bundle) -> None:
    graph = digits.manifest.graphs["sid1.fp32"]
    model = onnx.load(digits.file(graph.file))
    outside(model.graph.initializer[0], location)
    with digits.edit() as draft:
        draft.new(graph.file).write_bytes(model.SerializeToString())
    (digits.root / "graphs" / "beside.bin").write_bytes(bytes(16))
    with pytest.raises(ValueError, match=f"reads weights from '{location}', which the bundle has no hash for"):
        Generator.open(digits.root, plan="sid1", precision="fp32", backend="cpu")


def test_a_plain_graph_passes(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "small.bundle", convolution(), "fp32")
    check_files(bundle, bundle.manifest.graphs["small"])
