"""Exporting into bundles, checking parity there, and building engines, on the shipped digits."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from fewstep.bundle import MANIFEST, Bundle
from fewstep.exporter.engine import build_engines
from fewstep.exporter.export import export_graphs
from fewstep.exporter.parity import check_graphs
from fewstep.manifest import PlanEntry
from fewstep.schedule import karras
from fewstep.solvers import ddim


def test_the_shipped_graphs_agree_with_torch(digits: Bundle) -> None:
    digits.verify()
    results = {r.graph: r for r in check_graphs(digits)}
    assert set(results) == set(digits.manifest.graphs)
    for result in results.values():
        assert result.ok
        assert result.max_error < (1e-4 if result.graph.endswith("fp32") else 3e-2)


def test_a_new_plan_of_the_shipped_teacher_is_exported_and_checked(digits: Bundle) -> None:
    with digits.edit() as draft:
        plan = ddim(karras(2, 0.002, 80.0))
        draft.manifest.plans["ddim2"] = PlanEntry.of(plan, network="teacher", solver="DDIM")
    exported = export_graphs(Bundle.load(digits.root), ["ddim2"], ["fp32"])
    assert set(exported.manifest.graphs) == {*digits.manifest.graphs, "ddim2.fp32"}
    assert all(r.ok for r in check_graphs(exported))
    exported.verify()


def test_a_graph_with_a_changed_weight_is_out_of_its_limit(digits: Bundle) -> None:
    name = "sid1.fp32"
    path = digits.file(digits.manifest.graphs[name].file)
    model = onnx.load(path)
    weight = next(i for i in model.graph.initializer if i.name.endswith("conv_out.weight"))
    weight.raw_data = (np.frombuffer(weight.raw_data, np.float32) * 1.01).tobytes()
    with digits.edit() as draft:
        draft.new(digits.manifest.graphs[name].file).write_bytes(model.SerializeToString())
    results = {r.graph: r.ok for r in check_graphs(Bundle.load(digits.root))}
    assert not results.pop(name)
    assert all(results.values())


def test_a_network_left_out_of_the_bundle_is_named(digits: Bundle) -> None:
    with pytest.raises(ValueError, match=r"was shipped without the network 'sid1'"):
        export_graphs(digits, ["sid1"], ["fp32"])


@pytest.mark.parametrize("graph", ["sid1.fp32", "sid1.fp16"])
def test_an_engine_is_built_in_the_precision_of_its_graph(digits: Bundle, graph: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    built = build_engines(digits, [graph], targets=["89"], batch=(1, 2, 4))
    engine = built.manifest.engines[graph]
    precision = graph.split(".")[1]
    convolutions = sum(n.op_type == "Conv" for n in onnx.load(digits.file(digits.manifest.graphs[graph].file)).graph.node)
    assert set(engine.layers) == {precision}
    assert engine.layers[precision] >= convolutions > 20
    assert engine.graph_sha256 == digits.manifest.files[digits.manifest.graphs[graph].file].sha256
    assert built.file(engine.file).stat().st_size > 100_000


def test_a_graph_that_lies_about_its_precision_gets_no_engine(digits: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx")
    path = digits.root / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["graphs"]["sid1.fp32"]["precision"] = "fp16"
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"exported as fp16 but its engine would compute in \{'fp32': \d+\}"):
        build_engines(Bundle.load(digits.root), ["sid1.fp32"])
    assert not Bundle.load(digits.root).manifest.engines


def test_a_graph_tensorrt_cannot_parse_is_refused_in_words(digits: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx")
    with digits.edit() as draft:
        draft.new(digits.manifest.graphs["sid1.fp32"].file).write_bytes(b"not a graph")
    with pytest.raises(ValueError, match=r"refuses the graph 'sid1\.fp32'"):
        build_engines(Bundle.load(digits.root), ["sid1.fp32"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": ["90"]}, "builds for SM 75, 80, 86, 89, 120, 121, not 90"),
        ({"batch": (4, 2, 8)}, "smallest <= usual <= largest"),
        ({"graphs": ["sid9.fp32"]}, "no graph 'sid9.fp32'"),
    ],
)
def test_bad_engine_settings_are_refused(digits: Bundle, settings: dict[str, object], message: str) -> None:
    arguments = {"graphs": ["sid1.fp32"]} | settings
    with pytest.raises(ValueError, match=message):
        build_engines(digits, arguments.pop("graphs"), **arguments)


def test_polygraphys_runner_gives_the_runtimes_image(digits: Bundle) -> None:
    from polygraphy.backend.onnxrt import OnnxrtRunner

    path = digits.file(digits.manifest.graphs["sid2.fp32"].file)
    golden = np.load(digits.file("golden.npz"))
    feeds = {name: golden[f"sid2/{name}"] for name in ("noise", "labels")}
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    with OnnxrtRunner(session) as runner:
        np.testing.assert_array_equal(runner.infer(feeds)["images"], session.run(["images"], feeds)[0])
