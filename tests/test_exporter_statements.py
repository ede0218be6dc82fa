"""Facts that stand twice, in a graph and in its manifest, are compared; every one of them, in every layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from small import PATH, ROBOT, field
from test_cli import fewstep, refused

from fewstep.artifact.bundle import MANIFEST, Bundle, Draft
from fewstep.artifact.manifest import PlanEntry
from fewstep.artifact.signature import LabelInput, Signature
from fewstep.exporter.export import export_graphs
from fewstep.exporter.parity import check_graphs
from fewstep.models.denoiser import save_network
from fewstep.sampling.guidance import Guidance
from fewstep.sampling.schedule import karras
from fewstep.sampling.solvers import ddim


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits with a guided plan in every layout, as one batch and as two passes."""
    root = tmp_path_factory.mktemp("statements") / "digits.bundle"
    shutil.copytree(Path(__file__).parent.parent / "examples" / "digits.bundle", root)
    with Bundle.load(root).edit() as draft:
        for name in ("both", "calls"):
            plan = ddim(karras(2, 0.1, 80.0), Guidance(2.0))
            draft.manifest.plans[name] = PlanEntry.of(plan, denoiser="teacher", solver="DDIM")
    bundle = export_graphs(Bundle.load(root), ["both"], ["fp32"], layouts=["unrolled", "loop"], batched_guidance=True)
    bundle = export_graphs(bundle, ["calls"], ["fp32"], layouts=["unrolled", "loop", "step"], batched_guidance=False)
    export_graphs(bundle, ["calls"], ["fp16", "bf16"], batched_guidance=False)
    return root


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Bundle:
    shutil.copytree(made, tmp_path / "digits.bundle")
    return Bundle.load(tmp_path / "digits.bundle")


def test_what_is_right_is_ok(bundle: Bundle) -> None:
    results = check_graphs(bundle)
    assert {result.graph for result in results} == set(bundle.manifest.graphs)
    assert all(result.ok and not result.skipped for result in results)


def by_hand(bundle: Bundle, where: str, value: Any) -> Bundle:
    path = bundle.root / MANIFEST
    raw = json.loads(path.read_text())
    *keys, last = where.split("/")
    inner = raw
    for key in keys:
        inner = inner[int(key) if key.isdigit() else key]
    inner[last] = value
    path.write_text(json.dumps(raw))
    return Bundle.load(bundle.root)


GRAPHS = ["sid1.fp32", "sid1.int8", "both.fp32", "both.loop.fp32", "calls.fp16", "calls.bf16", "teacher.step.fp32"]
FACTS = {
    "signature/inputs/0/classes": (9, r"knows more than 9 classes by labels, the manifest says 9"),
    "signature/inputs/0/classes ": (11, r"knows fewer than 11 classes by labels, the manifest says 11"),
    "signature/output/low": (0.0, r"makes images of another range than the manifest's|has fewstep.low -1 by its file"),
    "signature/output/high": (2.0, r"makes images of another range than the manifest's|has fewstep.high 1 by its file"),
    "graphs/{}/opset": (19, "has opset 20 by its file and 19 by the manifest"),
    "graphs/{}/limit": (2.0, "may be off by 2, .* by "),
}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("where", FACTS)
def test_a_manifest_changed_by_hand_is_found_out(where: str, name: str, bundle: Bundle) -> None:
    value, message = FACTS[where]
    changed = by_hand(bundle, where.strip().format(name), value)
    changed.manifest.graphs = {name: changed.manifest.graphs[name]}
    with pytest.raises(ValueError, match=rf"the graph '{name}' .*(knows|has|may)" if "classes" in where else message):
        check_graphs(changed)


@pytest.mark.parametrize(("name", "batched_guidance"), [("both.fp32", False), ("both.loop.fp32", False), ("calls.fp32", True)])
def test_how_guided_rows_run_is_compared(name: str, batched_guidance: bool, bundle: Bundle) -> None:
    with pytest.raises(
        ValueError,
        match=rf"'{name}' has batched_guidance {not batched_guidance} by its file and {batched_guidance} by the manifest",
    ):
        check_graphs(by_hand(bundle, f"graphs/{name}/batched_guidance", batched_guidance))


@pytest.mark.parametrize(
    ("name", "precision", "found"),
    [
        ("sid1.fp32", "fp16", "fp32"),
        ("sid1.fp16", "fp32", "fp16"),
        ("calls.bf16", "fp16", "bf16"),
        ("sid1.int8", "int8-fp16", "int8"),
        ("sid1.int8-fp16", "int8", "int8-fp16"),
        ("sid1.int8-fp16", "fp8", "int8-fp16"),
    ],
)
def test_the_precision_is_compared(name: str, precision: str, found: str, bundle: Bundle) -> None:
    changed = by_hand(by_hand(bundle, f"graphs/{name}/precision", precision), f"graphs/{name}/excluded", [])
    with pytest.raises(ValueError, match=rf"'{name}' has precision {found} by its file and {precision} by the manifest"):
        check_graphs(changed)


def test_a_plan_changed_by_hand_is_found_out_by_the_graph_that_was_made_of_it(bundle: Bundle) -> None:
    levels = bundle.manifest.plans["both"].sigmas
    changed = by_hand(bundle, "plans/both/sigmas", [levels[0] * 1.001, *levels[1:]])
    assert "was made with another network, plan, decoder or signature than the manifest has now" in refused(
        "check", changed.root
    )
    with pytest.raises(ValueError, match=r"'both.fp32' was made with another network, plan"):
        check_graphs(changed)


def test_another_graph_in_place_of_one_is_found_out(bundle: Bundle) -> None:
    """Signed as it should be: by a tool, or a copy that mixed two bundles."""
    for name, other in (("sid1.fp32", "calls.loop.fp32"), ("both.loop.fp32", "both.fp32"), ("calls.fp32", "teacher.step.fp32")):
        content = bundle.file(bundle.manifest.graphs[other].file).read_bytes()
        with bundle.edit() as draft:
            draft.new(bundle.manifest.graphs[name].file).write_bytes(content)
        with pytest.raises(ValueError, match=r"has layout \w+ by its file and \w+ by the manifest"):
            check_graphs(Bundle.load(bundle.root))
        bundle = Bundle.load(bundle.root)


def test_a_graph_that_does_not_run_is_one_sentence(bundle: Bundle) -> None:
    model = onnx.load(bundle.file(bundle.manifest.graphs["sid1.fp32"].file))
    model.graph.input[0].name = "loudness"
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name == "noise":
                node.input[i] = "loudness"
    with bundle.edit() as draft:
        draft.new(bundle.manifest.graphs["sid1.fp32"].file).write_bytes(model.SerializeToString())
    assert "takes 'loudness', which no graph of this bundle does" in refused("check", bundle.root)


def test_a_step_graph_without_any_reference_is_not_passed(bundle: Bundle) -> None:
    references = bundle.references("sid1", "sid2")
    with bundle.edit() as draft:
        np.savez_compressed(draft.new("golden.npz"), **{f"{p}/{k}": v for p, a in references.items() for k, v in a.items()})
        draft.manifest.graphs = {"teacher.step.fp32": draft.manifest.graphs["teacher.step.fp32"]}
    with pytest.raises(ValueError, match=r"golden.npz has no reference for a plan of 'teacher'"):
        check_graphs(Bundle.load(bundle.root))


def robot(root: Path) -> Bundle:
    """Told a task of which no number means none."""
    signature = Signature(inputs=(LabelInput(name="task", classes=3, null=False), *ROBOT[1:]), output=PATH)
    with Draft.create(root, signature) as draft:
        save_network(draft, "policy", field(signature))
        draft.manifest.plans["two"] = PlanEntry.of(ddim(karras(2, 0.5, 20.0)), denoiser="policy", solver="DDIM")
    return export_graphs(Bundle.load(root), ["two"], ["fp32"], layouts=["loop", "step"])


ROBOTS = {
    "signature/output/columns/0/mean": (11.0, "makes values of another range than the manifest's: they are off by up to 1;"),
    "signature/output/columns/1/std": (0.0006, "makes values of another range than the manifest's: they are off by up to "),
    "signature/inputs/0/classes": (2, "knows more than 2 classes by task, the manifest says 2"),
    "signature/inputs/0/classes ": (4, "knows fewer than 4 classes by task, the manifest says 4"),
}


@pytest.mark.parametrize("said", [True, False])
def test_units_and_values_of_arrays_are_compared_in_both_kinds_of_graphs(said: bool, tmp_path: Path) -> None:
    """By what a graph says of itself, and by what it makes where it says nothing."""
    bundle = robot(tmp_path / "robot.bundle")
    if not said:
        bundle = without_facts(bundle)
    assert all(result.ok and not result.skipped for result in check_graphs(bundle))
    manifest = bundle.root / MANIFEST
    before = manifest.read_text()
    for where, (value, message) in ROBOTS.items():
        for name in ("two.loop.fp32", "policy.step.fp32"):
            changed = by_hand(bundle, where.strip(), value)
            changed.manifest.graphs = {name: changed.manifest.graphs[name]}
            found = r"has fewstep.(input.task|mean_std) [\s\S]* by its file" if said else message
            with pytest.raises(ValueError, match=rf"the graph '{name}' {found}"):
                check_graphs(changed)
            manifest.write_text(before)


def without_facts(bundle: Bundle) -> Bundle:
    """As if another tool had written the graphs."""
    with bundle.edit() as draft:
        for path in (path for graph in bundle.manifest.graphs.values() for path in (graph.file, graph.postprocess) if path):
            model = onnx.load(bundle.file(path), load_external_data=False)
            del model.metadata_props[:]
            onnx.save(model, draft.new(path))
    return Bundle.load(bundle.root)


def test_the_shipped_bundle_is_right() -> None:
    assert "OUT" not in fewstep("check", Path(__file__).parent.parent / "examples" / "digits.bundle").stdout
