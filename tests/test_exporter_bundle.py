"""Exporting into bundles and checking parity there, on the shipped digits."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from fewstep.artifact.bundle import MANIFEST, Bundle
from fewstep.artifact.manifest import PlanEntry
from fewstep.exporter.export import export_graphs
from fewstep.exporter.parity import check_graphs
from fewstep.models.denoiser import load_network
from fewstep.sampling.schedule import karras
from fewstep.sampling.solvers import ddim


def test_the_shipped_graphs_agree_with_torch(digits: Bundle) -> None:
    digits.verify()
    results = {r.graph: r for r in check_graphs(digits)}
    assert set(results) == set(digits.manifest.graphs)
    assert all(r.ok and not r.skipped for r in results.values())
    for name, result in results.items():
        precision = name.split(".")[1]
        assert result.max_error < {"fp32": 1e-4, "fp16": 3e-2}.get(precision, 0.3)
        assert result.psnr_db > {"fp32": 120, "fp16": 70}.get(precision, 40)
        assert len(result.drift) == digits.plan(result.plan).rows


def test_a_new_plan_of_the_shipped_teacher_is_exported_and_checked(digits: Bundle) -> None:
    with digits.edit() as draft:
        plan = ddim(karras(2, 0.002, 80.0))
        draft.manifest.plans["ddim2"] = PlanEntry.of(plan, denoiser="teacher", solver="DDIM")
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
    with pytest.raises(ValueError, match=r"was shipped without the denoiser 'sid2'"):
        export_graphs(digits, ["sid2"], ["fp32"])


def test_polygraphys_runner_gives_the_runtimes_image(digits: Bundle) -> None:
    from polygraphy.backend.onnxrt import OnnxrtRunner

    path = digits.file(digits.manifest.graphs["sid2.fp32"].file)
    golden = np.load(digits.file("golden.npz"))
    feeds = {name: golden[f"sid2/{name}"] for name in ("noise", "labels")}
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    with OnnxrtRunner(session) as runner:
        np.testing.assert_array_equal(runner.infer(feeds)["images"], session.run(["images"], feeds)[0])


def rewritten(bundle: Bundle, name: str, content: bytes) -> Bundle:
    with bundle.edit() as draft:
        draft.new(name).write_bytes(content)
    return Bundle.load(bundle.root)


def test_a_reference_that_cannot_be_read_is_said(digits: Bundle) -> None:
    with pytest.raises(ValueError, match=r"golden.npz cannot be read .*; export the plans again with: fewstep export"):
        check_graphs(rewritten(digits, "golden.npz", b"not a zip"))


def test_a_manifest_that_promises_other_images_than_the_graphs_make_is_refused(digits: Bundle) -> None:
    path = digits.root / MANIFEST
    raw = json.loads(path.read_text())
    raw["signature"]["output"]["height"] = raw["state"]["axes"][0] = 32
    path.write_text(json.dumps(raw))  # by hand: an edit would remove what was made for other images
    message = r"sid1/noise is float32 \[4, 1, 1, 28, 28\], the manifest calls for float32 \[4, 1, 1, 32, 28\]"
    with pytest.raises(ValueError, match=message):
        check_graphs(Bundle.load(digits.root))


def test_weights_that_do_not_fit_their_configuration_are_refused(digits: Bundle) -> None:
    name = "components/teacher/config.json"
    config = json.loads(digits.file(name).read_text()) | {"block_out_channels": [32, 128]}
    with pytest.raises(ValueError, match=r"the weights of network 'teacher' do not fit its config.json"):
        load_network(rewritten(digits, name, json.dumps(config).encode()), "teacher")


def test_a_command_that_is_refused_leaves_no_plan_behind(digits: Bundle) -> None:
    before = {p: p.read_bytes() for p in digits.root.rglob("*") if p.is_file()}
    arguments = ["export", str(digits.root), "--solver", "ddim", "--steps", "14", "--precision", "int8", "--layout", "step"]
    done = subprocess.run([sys.executable, "-m", "fewstep.cli", *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert "which the step layout does not know" in done.stderr
    assert {p: p.read_bytes() for p in digits.root.rglob("*") if p.is_file()} == before
