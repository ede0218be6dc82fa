"""Packages for phones, OpenVINO and browsers without a browser: what is written runs, is counted, and never half there."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import parser
from small import PATH, ROBOT, field, small
from test_cli import fewstep, refused

from fewstep.artifact.bundle import MANIFEST, Bundle, Draft
from fewstep.artifact.components import DenoiserEntry
from fewstep.artifact.manifest import GraphEntry, PlanEntry
from fewstep.artifact.signature import ImageOutput, Signature
from fewstep.exporter.edge.package import SIZES, package
from fewstep.exporter.edge.web import MODULE, WASM, ort_web
from fewstep.exporter.export import export_graphs
from fewstep.models.denoiser import save_network
from fewstep.runtime.noise import noise
from fewstep.sampling.guidance import Guidance
from fewstep.sampling.parametrisation import Edm
from fewstep.sampling.schedule import karras
from fewstep.sampling.solvers import ddim

EXAMPLE = Bundle.load(Path(__file__).parent.parent / "examples" / "digits.bundle")
needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs the extra openvino")

LOOP = """
<ir_version: 10, opset_import: ["": 20]>
sampler (float[batch, 1, 1, 4, 4] noise) => (uint8[batch, 4, 4, 1] images, float[batch, 1, 4, 4] sample)
<int64 trips = {3}, int64[1] axis = {1}, float half = {0.5}, float low = {0}, float high = {255}> {
  go = Constant <value = bool {1}> ()
  start = Squeeze (noise, axis)
  sample = Loop (trips, go, start) <body = body (int64 i, bool on, float[batch, 1, 4, 4] x) =>
    (bool still, float[batch, 1, 4, 4] y) { still = Identity (on)  y = Mul (x, half) }>
  wide = Mul (sample, high)
  clipped = Clip (wide, low, high)
  moved = Transpose <perm = [0, 2, 3, 1]> (clipped)
  images = Cast <to = 2> (moved)
}
"""


def made_up(root: Path, graphs: dict[str, GraphEntry], text: str = LOOP, data: bytes = b"") -> Bundle:
    """A bundle around a hand-written graph."""
    with Draft.create(root, Signature(output=ImageOutput(channels=1, height=4, width=4))) as draft:
        net = DenoiserEntry(kind="UNet2DModel", directory=None, parametrisation=Edm(sigma_data=0.5))
        draft.manifest.components["net"] = net
        table = ddim(karras(3, 0.002, 80.0), Guidance(1.0))
        draft.manifest.plans["ddim3"] = PlanEntry.of(table, denoiser="net", solver="ddim, 3 steps")
        draft.manifest.default = "ddim3"
        draft.manifest.graphs.update(graphs)
        for path in {path for graph in graphs.values() for path in graph.paths}:
            content = data if path.endswith(".data") else parser.parse_model(text).SerializeToString()
            draft.new(path).write_bytes(content)
    return Bundle.load(root)


def entry(**changes: object) -> GraphEntry:
    values = {"file": "graphs/g.onnx", "denoiser": "net", "plan": "ddim3", "precision": "fp32", "layout": "loop", "opset": 20}
    return GraphEntry.model_validate(values | {"limit": 1e-4} | changes)


def run(path: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(["images", "sample"], feeds)


def test_an_ort_file_gives_the_images_of_its_graph_and_names_its_operators(tmp_path: Path) -> None:
    package(EXAMPLE, tmp_path / "out", ["ort"], plans=["sid1", "sid2"])
    for name in ("sid1.fp32", "sid2.fp32"):
        path = tmp_path / "out" / "ort" / f"{name}.ort"
        assert path.read_bytes()[4:8] == b"ORTM"
        draws = EXAMPLE.plan(name[:4]).draws
        feeds = {"noise": noise(range(11), (draws, 1, 28, 28)), "labels": np.arange(11)}
        images, sample = run(path, feeds)
        expected = run(EXAMPLE.file(f"graphs/{name}.onnx"), feeds)
        assert np.abs(sample - expected[1]).max() < 1e-4  # the limit of fp32 graphs: operators are fused in another order
        assert (images != expected[0]).mean() < 1e-3
    operators = (tmp_path / "out" / "ort" / "required_operators.config").read_text()
    assert "Conv" in operators
    assert "nchwc" not in operators  # a layout of some processors only
    assert str(tmp_path) not in operators


@needs_openvino
def test_openvino_computes_the_same_in_f32_and_says_what_its_default_costs(tmp_path: Path) -> None:
    import openvino

    report = package(EXAMPLE, tmp_path / "out", ["openvino"])
    exact, default = report.deviations
    assert exact.setting == "f32"
    assert exact.max_error < 2e-5
    assert default.setting.startswith("default (")
    assert default.max_error < 0.2
    core = openvino.Core()
    compiled = core.compile_model(tmp_path / "out/openvino/sid1.fp32.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    feeds = {"noise": noise(range(3), (1, 1, 28, 28)), "labels": np.array([3, 1, 10])}
    expected = run(EXAMPLE.file("graphs/sid1.fp32.onnx"), feeds)
    assert np.abs(compiled(feeds)["sample"] - expected[1]).max() < 2e-5


@pytest.mark.parametrize("target", ["ort", "web", pytest.param("openvino", marks=needs_openvino)])
def test_a_plan_in_a_loop_is_packaged_like_an_unrolled_one(target: str, tmp_path: Path) -> None:
    graphs = {"ddim3.fp32": entry(), "net.step": entry(plan=None, layout="step", file="graphs/step.onnx")}
    bundle = made_up(tmp_path / "loop.bundle", graphs)
    report = package(bundle, tmp_path / "out", [target])
    (folder,) = (p for p in (tmp_path / "out").iterdir() if p.is_dir())
    assert any(p.name.startswith("ddim3.fp32.") for p in folder.iterdir())
    assert all(d.max_error < 1e-6 for d in report.deviations)
    if target == "web":
        facts = json.loads((folder / "facts.json").read_text())
        assert (facts["inputs"], facts["graphs"][0]["noise"], facts["graphs"][0]["takes"]) == ([], [1, 1, 4, 4], [])


@pytest.mark.parametrize("target", ["ort", "device", pytest.param("openvino", marks=needs_openvino)])
def test_weights_beside_a_graph_come_along(target: str, digits: Bundle) -> None:
    with digits.edit() as draft:
        graph = draft.manifest.graphs["sid1.fp32"]
        model = onnx.load(digits.file(graph.file))
        onnx.save_model(model, draft.new(graph.file), save_as_external_data=True, location="sid1.data", size_threshold=1024)
        graph.data = ["graphs/sid1.data"]
    bundle = Bundle.load(digits.root)
    assert bundle.manifest.files["graphs/sid1.data"].bytes > 2e6
    out = digits.root.parent / "out"
    report = package(bundle, out, [target], precisions=["fp32"])
    assert all(d.max_error < 1e-5 for d in report.deviations if "default" not in d.setting)
    beside = "sid1.data" if target == "device" else "sid1.fp32"
    (weights,) = (p.bytes for p in report.parts if p.part == f"{beside}: weights")
    assert 2e6 < weights < 3e6
    if target == "device":
        feeds = {"noise": noise([0], (1, 1, 28, 28)), "labels": np.array([3])}
        moved = run(out / "device/digits.bundle/graphs/sid1.fp32.onnx", feeds)
        np.testing.assert_array_equal(moved[0], run(EXAMPLE.file("graphs/sid1.fp32.onnx"), feeds)[0])


@pytest.fixture(scope="module")
def robot(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Arrays from a label and an array; a plan that is guided and one that is not."""
    root, signature = tmp_path_factory.mktemp("robot") / "robot.bundle", Signature(inputs=ROBOT, output=PATH)
    with Draft.create(root, signature) as draft:
        save_network(draft, "policy", field(signature))
        for name, guidance in (("two", Guidance()), ("guided", Guidance(2.0))):
            plan = ddim(karras(2, 0.5, 20.0), guidance)
            draft.manifest.plans[name] = PlanEntry.of(plan, denoiser="policy", solver="DDIM, 2 steps")
        draft.manifest.default = "two"
    return export_graphs(Bundle.load(root), ["two", "guided"], ["fp32"])


@pytest.mark.parametrize("target", ["ort", pytest.param("openvino", marks=needs_openvino)])
def test_a_converted_graph_gives_the_arrays_of_its_bundle(target: str, robot: Bundle, tmp_path: Path) -> None:
    report = package(robot, tmp_path / "out", [target], plans=["two", "guided"])
    exact = [d for d in report.deviations if "default" not in d.setting]
    assert {d.graph for d in exact} == {"two.fp32", "guided.fp32"}
    assert all(d.max_error < 1e-5 and d.output_error < 1e-3 for d in exact)  # the output is in millimetres
    if target == "ort":
        feeds = {"noise": noise(range(3), (1, 2, 8)), **robot.manifest.signature.example(3, guided=True)}
        moved, original = (
            ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(["values"], feeds)[0]
            for path in (tmp_path / "out/ort/guided.fp32.ort", robot.file("graphs/guided.fp32.onnx"))
        )
        np.testing.assert_allclose(moved, original, rtol=1e-4, atol=1e-5)


def test_a_page_describes_a_field_for_every_input_and_what_it_shows(robot: Bundle, tmp_path: Path) -> None:
    package(robot, tmp_path / "out", ["web"], plans=["two", "guided"])
    facts = json.loads((tmp_path / "out/web/facts.json").read_text())
    task, observation = facts["inputs"]
    assert (task["name"], task["dtype"], task["shape"], task["choices"], task["none"]) == ("task", "int64", [], 3, 3)
    assert observation == {
        "name": "observation",
        "dtype": "float32",
        "shape": [5],
        "meaning": "observation, finite, zeros for none",
        "choices": None,
        "names": [],
        "none": 0,
    }
    output = facts["output"]
    assert (output["name"], output["shape"], output["pictures"]) == ("values", [8, 2], False)
    assert (output["axes"], output["columns"]) == (["time (s)"], ["x (mm)", "y (m)"])
    assert [graph["takes"] for graph in facts["graphs"]] == [["task", "observation"]] * 2


def test_what_means_none_is_a_field_of_the_graphs_that_take_it(tmp_path: Path) -> None:
    made = small("text")
    with Draft.create(tmp_path / "text.bundle", made.signature) as draft:
        save_network(draft, "teacher", made.denoiser)
        grid = made.denoiser.parametrisation.grid(2)
        for name, guidance in (("plain", Guidance()), ("guided", Guidance(2.0))):
            draft.manifest.plans[name] = PlanEntry.of(ddim(grid, guidance), denoiser="teacher", solver="DDIM")
    bundle = export_graphs(Bundle.load(tmp_path / "text.bundle"), ["plain", "guided"], ["fp32"])
    package(bundle, tmp_path / "out", ["web"], plans=["plain", "guided"])
    facts = json.loads((tmp_path / "out/web/facts.json").read_text())
    assert [(each["name"], each["shape"], each["none"]) for each in facts["inputs"]] == [
        ("prompt_embeds", [5, 12], None),
        ("negative_prompt_embeds", [5, 12], None),
    ]
    plain, guided = (set(graph["takes"]) for graph in facts["graphs"])
    assert (plain, guided) == ({"prompt_embeds"}, {"prompt_embeds", "negative_prompt_embeds"})


def test_the_report_counts_every_byte_of_the_package(tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = package(EXAMPLE, out, ["ort", "web", "device"])
    about = json.loads((out / SIZES).read_text())
    on_disk = {p.relative_to(out).as_posix(): p.stat().st_size for p in out.rglob("*") if p.is_file() and p.name != SIZES}
    assert about["files"] == on_disk
    for target in ("ort", "web", "device"):
        measured = sum(size for path, size in on_disk.items() if path.startswith(target + "/"))
        assert about["shipped_bytes"][target] == measured
        assert sum(p.bytes for p in report.parts if p.target == target and p.shipped) == measured
    parts = {(p.target, p.part): p for p in report.parts}
    model = onnx.load(EXAMPLE.file("graphs/sid1.fp32.onnx"))
    raw = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    weights = parts["web", "sid1.fp32: weights"]
    assert raw <= weights.bytes < raw * 1.02
    assert weights.gzip_bytes is not None
    assert weights.gzip_bytes < weights.bytes
    (runtime,) = (p for p in report.parts if p.target == "ort" and not p.shipped)
    assert ort.__version__ in runtime.part
    assert runtime.bytes > 10e6


def test_a_package_replaces_its_own_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    package(EXAMPLE, out, ["web"])
    package(EXAMPLE, out, ["ort"])
    assert sorted(p.name for p in out.iterdir()) == ["ort", SIZES]
    (out / "ort" / "notes.txt").write_text("mine")
    before = sorted(p.name for p in tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"out exists and ort/notes.txt was not written by fewstep package"):
        package(EXAMPLE, out, ["ort"])
    assert sorted(p.name for p in tmp_path.rglob("*")) == before
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(out)
    for name in ("file", "link"):
        with pytest.raises(ValueError, match=rf"{name} exists and it was not written by fewstep package"):
            package(EXAMPLE, tmp_path / name, ["ort"])


def test_nothing_is_left_where_a_target_refuses(digits: Bundle) -> None:
    path = digits.root / MANIFEST
    path.write_text(path.read_text().replace('"limit": 0.0001', '"limit": 1e-12'))
    with pytest.raises(ValueError, match=r"sid1.fp32 as ort is off by .*, the bundle allows 1e-12; nothing was written"):
        package(Bundle.load(digits.root), digits.root.parent / "out", ["web", "ort"])
    assert [p.name for p in digits.root.parent.iterdir()] == [digits.root.name]
    with pytest.raises(ValueError, match="lies inside the bundle"):
        package(digits, digits.root / "out", ["ort"])


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"plans": ["sid9"]}, "has no plan 'sid9'; it has: "),
        ({"plans": ["table4"]}, r"has no graph of the plan 'table4' \(it has: none\); write it with: fewstep export"),
        ({"precisions": ["bf16"]}, r"has no bf16 graph of the plan 'sid1' \(it has: fp16, fp32, int8, int8-fp16\)"),
        (
            {"ort_web_package": Path("nowhere")},
            "nowhere is not the npm package onnxruntime-web .* npm install onnxruntime-web@",
        ),
    ],
)
def test_what_there_is_not_gets_a_sentence(choice: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        package(EXAMPLE, tmp_path / "out", ["web"], **choice)
    assert not list(tmp_path.iterdir())


def test_a_page_gets_weights_that_lie_beside_a_graph_in_the_same_file(digits: Bundle, tmp_path: Path) -> None:
    name, beside = "sid1.fp32", "graphs/sid1.data"
    with digits.edit() as draft:
        file = draft.manifest.graphs[name].file
        model = onnx.load(draft.root / file)
        onnx.save(model, draft.new(file), save_as_external_data=True, location=Path(beside).name, size_threshold=4096)
        draft.manifest.graphs[name].data = [beside]
    bundle = Bundle.load(digits.root)
    assert bundle.manifest.files[file].bytes < bundle.manifest.files[beside].bytes
    package(bundle, tmp_path / "out", ["web"])
    alone = tmp_path / "out" / "web" / f"{name}.onnx"
    facts = json.loads(alone.with_name("facts.json").read_text())
    assert facts["graphs"][0]["bytes"] == alone.stat().st_size
    feeds = {"noise": np.ones((1, 1, 1, 28, 28), np.float32), "labels": np.array([3])}
    made, wanted = (ort.InferenceSession(path).run(None, feeds) for path in (alone, EXAMPLE.root / file))
    assert all(np.array_equal(*pair) for pair in zip(made, wanted, strict=True))


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({"plan": None, "layout": "step"}, {}, "needs the whole plan in a graph, those of 'ddim3' hold one step"),
        (
            {},
            {"text": LOOP.replace("noise", "latent")},
            "graphs of this bundle are made from noise; this one also takes latent",
        ),
        ({}, {"text": LOOP.replace("Mul (x", "Mull (x")}, r"ONNX Runtime .* refuses the graph 'g'"),
    ],
)
def test_a_graph_that_a_page_cannot_run_is_refused(changes: dict, more: dict, message: str, tmp_path: Path) -> None:
    bundle = made_up(tmp_path / "made.bundle", {"g": entry(**changes)}, **more)
    with pytest.raises(ValueError, match=message):
        package(bundle, tmp_path / "out", ["web"])
    assert not (tmp_path / "out").exists()


def test_the_npm_package_is_told_from_another(tmp_path: Path) -> None:
    (tmp_path / "dist").mkdir()
    for name in (MODULE, WASM):
        (tmp_path / "dist" / name).write_bytes(name.encode())
    about = tmp_path / "package.json"
    about.write_text('{"name": "onnxruntime-web", "version": "1.30.0"}')
    runtime = ort_web(tmp_path)
    assert (runtime.version, runtime.module.bytes) == ("1.30.0", len(MODULE))
    about.write_text('{"name": "left-pad", "version": "1.30.0"}')
    with pytest.raises(ValueError, match="is not the npm package onnxruntime-web"):
        ort_web(tmp_path)
    about.write_text('{"name": "onnxruntime-web", "version": "1.30.0"}')
    shutil.rmtree(tmp_path / "dist")
    with pytest.raises(ValueError, match="is not the npm package onnxruntime-web"):
        ort_web(tmp_path)


def test_the_command_writes_a_folder_per_target_and_prints_the_sizes(tmp_path: Path) -> None:
    done = fewstep("package", EXAMPLE.root, "--target", "web", "--target", "device", "--out", "out", "--json", cwd=tmp_path)
    result = json.loads(done.stdout)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["device", SIZES, "web"]
    assert result["shipped_bytes"] == json.loads((tmp_path / "out" / SIZES).read_text())["shipped_bytes"]
    assert "web  sid1.fp32: weights" in done.stderr
    assert "next: python -m http.server -d out/web" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--target", "phone"], "target is ort, web, openvino, device or all, got 'phone'"),
        (["--target", "ort", "--ort-web", "x"], "--ort-web brings files for the page; add --target web or leave it out"),
        (["--target", "ort", "--precision", "fp64"], "precision is one of fp32, fp16, bf16, int8, int8-fp16, fp8, got 'fp64'"),
        (["--target", "ort", "--plan", "fast"], "has no plan 'fast'; it has: "),
        (["--target", "web", "--ort-web", "."], "is not the npm package onnxruntime-web"),
        (["--target", "ort", "--out", "digits.bundle"], "lies inside the bundle"),
        (["--target", "ort", "--out", "."], "was not written by fewstep package"),
    ],
)
def test_the_command_refuses_with_one_sentence(arguments: list[str], sentence: str, digits: Bundle) -> None:
    here = digits.root.parent
    before = {p: p.stat().st_mtime_ns for p in here.rglob("*")}
    assert sentence in refused("package", "digits.bundle", *arguments, cwd=here)
    assert {p: p.stat().st_mtime_ns for p in here.rglob("*")} == before


def test_without_openvino_its_target_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ValueError, match=r'needs OpenVINO; .*pip install "\.\[openvino\]"'):
        package(EXAMPLE, tmp_path / "out", ["openvino"])
    assert not list(tmp_path.iterdir())
