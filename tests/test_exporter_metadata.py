"""What ONNX files say of themselves, read as anybody would: by ONNX Runtime, without the onnx package."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
from small import IMAGE, PATH, POOLED, ROBOT, field, small

import fewstep
from fewstep.artifact.bundle import Bundle, Draft
from fewstep.artifact.card import inherited
from fewstep.artifact.digests import component_digest
from fewstep.artifact.manifest import PlanEntry
from fewstep.artifact.records import Distilled, Trained
from fewstep.artifact.signature import Input, LabelInput, Signature
from fewstep.exporter.edge.package import package
from fewstep.exporter.export import export_graphs
from fewstep.exporter.facts import facts as facts_of
from fewstep.models.denoiser import save_network
from fewstep.sampling.guidance import Guidance
from fewstep.sampling.schedule import karras
from fewstep.sampling.solvers import ddim

NAMES = ("bag", "coat, long", "Stiefel für Schnee")
NAMED = (LabelInput(classes=3, names=NAMES),)


def unexported(root: Path, network: str, inputs: Sequence[Input]) -> Bundle:
    """A bundle of a small network with a guided plan; its teacher has a license, the student it was distilled to has none."""
    with Draft.create(root, Signature(inputs=tuple(inputs), output=IMAGE)) as draft:
        for name in ("teacher", "student"):
            save_network(draft, name, small(network).denoiser)
        plan = ddim(draft.manifest.denoisers["teacher"].parametrisation.grid(2), Guidance(2.0, 1.0))
        if network == "unet":
            plan = ddim(karras(2, 0.5, 20.0), Guidance(2.0, 1.0))
        draft.manifest.plans["two"] = PlanEntry.of(plan, denoiser="student", solver="DDIM, 2 steps")
        draft.manifest.default = "two"
        known = draft.manifest.records.components
        known["teacher"] = Trained(settings={}, mixed_precision="no", license="CC BY 4.0")
        sources = {"teacher": "teacher", "teacher_sha256": "0" * 64, "start": "teacher", "start_sha256": "0" * 64}
        licenses = inherited(draft.manifest, "teacher")
        known["student"] = Distilled(settings={}, mixed_precision="no", inherited_licenses=licenses, **sources)
    return Bundle.load(root)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    bundle = unexported(tmp_path_factory.mktemp("named") / "small.bundle", "unet", NAMED)
    return export_graphs(bundle, ["two"], ["fp32"], layouts=["unrolled", "loop", "step"], max_inline_bytes=100_000)


def said(path: Path) -> ort.ModelMetadata:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).get_modelmeta()


@pytest.mark.parametrize("layout", ["unrolled", "loop"])
def test_a_whole_plan_says_what_it_is(layout: str, exported: Bundle) -> None:
    name = "two.fp32" if layout == "unrolled" else f"two.{layout}.fp32"
    meta = said(exported.file(exported.manifest.graphs[name].file))
    facts = meta.custom_metadata_map
    assert {
        "fewstep.version": fewstep.__version__,
        "fewstep.bundle": "small",
        "fewstep.plan": "two",
        "fewstep.solver": "DDIM, 2 steps",
        "fewstep.calls": str(exported.plan("two").nfe),
        "fewstep.network": "student",
        "fewstep.precision": "fp32",
        "fewstep.layout": layout,
        "fewstep.output": "image",
        "fewstep.shape": "4x8x8",
        "fewstep.low": "-1",
        "fewstep.high": "1",
        "fewstep.input.labels": "3 classes",
        "fewstep.input.labels.names": "\n".join(NAMES),
        "fewstep.license": "teacher: CC BY 4.0",
        "fewstep.network_sha256": component_digest(exported.manifest, "student"),
    }.items() <= facts.items()
    assert facts["fewstep.inputs"].splitlines() == [
        "noise: float32 (batch, 1, 4, 8, 8), unit normal, of a seed",
        "labels: int64 (batch), 0 to 2 for a class, 3 for none",
    ]
    assert facts["fewstep.outputs"].splitlines() == [
        "images: uint8 (batch, 8, 8, 4), 0 to 255",
        "sample: float32 (batch, 4, 8, 8), the same as the network has it, before rounding and units",
    ]
    assert (meta.producer_name, meta.graph_name) == ("fewstep", "small.two.fp32.sampler")
    assert meta.description == meta.graph_description
    assert meta.description.startswith("Makes 4x8x8 images with the network student of small: the plan two (DDIM")
    model = onnx.load(exported.file(exported.manifest.graphs[name].file), load_external_data=False)
    assert model.producer_version == fewstep.__version__
    assert {given.name: given.doc_string for given in model.graph.input}["labels"] == "0 to 2 for a class, 3 for none"


def test_a_step_and_its_finish_say_what_they_are(exported: Bundle) -> None:
    graph = exported.manifest.graphs["student.step.fp32"]
    step, postprocess = (said(exported.file(str(path))) for path in (graph.file, graph.postprocess))
    assert (step.graph_name, postprocess.graph_name) == ("small.student.fp32.step", "small.student.fp32.postprocess")
    for meta in (step, postprocess):
        facts = meta.custom_metadata_map
        assert facts_of(exported.manifest, graph).items() <= facts.items()
        assert not {"fewstep.plan", "fewstep.solver", "fewstep.calls", "fewstep.plan_sha256"} & facts.keys()
        assert "one step of any plan, fp32" in meta.description
    assert "guidance_scale: float32 (), 1 is none" in step.custom_metadata_map["fewstep.inputs"]
    assert postprocess.custom_metadata_map["fewstep.inputs"] == "x: float32 (batch, 4, 8, 8), a state of the sampler"


def test_a_graph_of_prompts_says_what_it_takes(tmp_path: Path) -> None:
    bundle = export_graphs(unexported(tmp_path / "text.bundle", "sd3", POOLED), ["two"], ["fp32"])
    facts = said(bundle.file(bundle.manifest.graphs["two.fp32"].file)).custom_metadata_map
    assert (facts["fewstep.input.prompt_embeds"], facts["fewstep.input.pooled_prompt_embeds"]) == ("5x12", "6")
    assert not [key for key in facts if key.endswith(".names")]
    assert "prompt_embeds: float32 (batch, 5, 12), prompt embeds, finite" in facts["fewstep.inputs"].splitlines()
    assert "negative_pooled_prompt_embeds: float32 (batch, 6), the same for what means none" in facts["fewstep.inputs"]


def test_a_graph_of_arrays_says_what_their_numbers_are(tmp_path: Path) -> None:
    signature = Signature(inputs=ROBOT, output=PATH)
    with Draft.create(tmp_path / "robot.bundle", signature) as draft:
        save_network(draft, "policy", field(signature))
        draft.manifest.plans["two"] = PlanEntry.of(ddim(karras(2, 0.5, 20.0)), denoiser="policy", solver="DDIM, 2 steps")
    bundle = export_graphs(Bundle.load(tmp_path / "robot.bundle"), ["two"], ["fp32"])
    meta = said(bundle.file(bundle.manifest.graphs["two.fp32"].file))
    facts = meta.custom_metadata_map
    assert {
        "fewstep.output": "array",
        "fewstep.shape": "2x8",
        "fewstep.axes": "time (s)",
        "fewstep.columns": "x (mm)\ny (m)",
        "fewstep.mean_std": "10 2\n-0.003 0.0005",
        "fewstep.input.task": "3 classes",
        "fewstep.input.observation": "5",
    }.items() <= facts.items()
    assert facts["fewstep.outputs"].splitlines()[0] == "values: float32 (batch, 8, 2), in units: x (mm), y (m)"
    assert meta.description.startswith("Makes 2x8 arrays with the network policy of robot: the plan two (DDIM")


def test_the_hashes_are_of_what_the_graph_was_made_from(exported: Bundle, tmp_path: Path) -> None:
    """Equal for equal numbers, whatever they are called; other for other numbers or weights."""
    copy = Bundle.load(shutil.copytree(exported.root, tmp_path / "other.bundle"))
    graph = copy.manifest.graphs["two.fp32"]
    before = facts_of(copy.manifest, graph)
    assert before == facts_of(exported.manifest, graph)
    copy.manifest.plans["two"].solver = "by hand"
    assert facts_of(copy.manifest, graph) == before | {"fewstep.solver": "by hand"}
    copy.manifest.plans["two"].guidance[0] += 1e-9
    after = facts_of(copy.manifest, graph)
    assert {key for key in before if before[key] != after[key]} == {"fewstep.solver", "fewstep.plan_sha256", "fewstep.made_of"}
    files = [path for path in copy.manifest.files if path.startswith("components/student/")]
    (weights,) = (path for path in files if path.endswith(".safetensors"))
    copy.manifest.files[weights].sha256 = "0" * 64
    assert facts_of(copy.manifest, graph)["fewstep.network_sha256"] != before["fewstep.network_sha256"]


def test_the_same_export_gives_the_same_bytes_anywhere(exported: Bundle, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    again = export_graphs(
        unexported(tmp_path / "elsewhere" / "small.bundle", "unet", NAMED),
        ["two"],
        ["fp32"],
        layouts=["unrolled", "step"],
        batched_guidance=exported.manifest.graphs["two.fp32"].batched_guidance,
        max_inline_bytes=100_000,
    )
    for name in again.manifest.graphs:
        for path in again.manifest.graphs[name].paths:
            assert again.file(path).read_bytes() == exported.file(path).read_bytes(), path
            assert str(tmp_path).encode() not in again.file(path).read_bytes()


def test_conversions_keep_what_a_graph_says(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="needs OpenVINO")
    bundle = export_graphs(unexported(tmp_path / "small.bundle", "unet", NAMED), ["two"], ["fp32"])
    package(bundle, tmp_path / "out", ["ort", "openvino", "device"])
    facts = said(bundle.file("graphs/two.fp32.onnx")).custom_metadata_map
    for path in ("ort/two.fp32.ort", "device/small.bundle/graphs/two.fp32.onnx"):
        assert said(tmp_path / "out" / path).custom_metadata_map == facts
    ir = openvino.Core().read_model(tmp_path / "out" / "openvino" / "two.fp32.xml")
    assert ir.get_rt_info(["framework", "fewstep.input.labels.names"]).astype(str) == "\n".join(NAMES)
    device = Bundle.load(tmp_path / "out" / "device" / "small.bundle")
    known = facts_of(device.manifest, device.manifest.graphs["two.fp32"])
    assert known.items() <= facts.items()
    assert "fewstep.network_sha256" in known  # of files that are not there


def test_a_plan_hash_is_one_that_anybody_can_compute(exported: Bundle) -> None:
    plan = exported.manifest.plans["two"].model_dump_json(exclude={"solver", "denoiser"})
    facts = facts_of(exported.manifest, exported.manifest.graphs["two.fp32"])
    assert facts["fewstep.plan_sha256"] == hashlib.sha256(plan.encode()).hexdigest()
