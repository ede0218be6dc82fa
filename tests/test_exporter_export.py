"""Exporting into bundles: choices, large weights, and what is refused; on a small network of random weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from small import small

from fewstep.artifact.bundle import Bundle, Draft
from fewstep.artifact.manifest import Layout, PlanEntry
from fewstep.calibration.ranges import calibrate_ranges
from fewstep.exporter.edge.sizes import graph_parts
from fewstep.exporter.export import MAX_UNROLLED_NODES, choose_layout, export_graphs
from fewstep.exporter.parity import check_graphs
from fewstep.models.denoiser import save_network
from fewstep.runtime import Generator
from fewstep.runtime.walker import CancelledError, Preview
from fewstep.sampling.guidance import Guidance
from fewstep.sampling.schedule import karras
from fewstep.sampling.solvers import ddim


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("shared") / "small.bundle"
    made = small("unet")
    with Draft.create(path, made.signature) as draft:
        save_network(draft, "teacher", made.denoiser)
        for name, guidance in (("plain", Guidance()), ("interval", Guidance(2.0, 1.0))):
            plan = ddim(karras(2, 0.5, 20.0), guidance)
            draft.manifest.plans[name] = PlanEntry.of(plan, denoiser="teacher", solver="DDIM")
        draft.manifest.default = "plain"
    return Bundle.load(path)


@pytest.fixture(scope="module")
def exported(shared: Bundle) -> Bundle:
    """The guided plan in all layouts; weights of more than 100 kB beside the graph."""
    layouts: list[Layout] = ["unrolled", "loop", "step"]
    return export_graphs(shared, ["interval"], ["fp32"], layouts=layouts, batched_guidance=True, max_inline_bytes=100_000)


def test_all_layouts_give_the_same_images_with_weights_beside_the_graph(exported: Bundle) -> None:
    graphs = exported.manifest.graphs
    assert set(graphs) == {"interval.fp32", "interval.loop.fp32", "teacher.step.fp32"}
    (data,) = {path for graph in graphs.values() for path in graph.data}  # one file, which all of them read
    for graph in graphs.values():
        assert graph.data == [data]
        assert exported.file(graph.file).stat().st_size < 0.6 * exported.file(data).stat().st_size
        onnx.checker.check_model(str(exported.file(graph.file)))
    assert graphs["teacher.step.fp32"].postprocess
    exported.verify()
    results = check_graphs(exported)
    assert all(r.ok and r.psnr_db > 90 for r in results)
    assert [len(r.drift) for r in results] == [2, 1, 2]  # the states of a Loop stay inside
    made = [Generator(exported, graph=name, plan="interval")(labels=[0, 1, 2], seeds=[5, 6, 7]) for name in graphs]
    for images in made[1:]:
        assert np.abs(images.astype(int) - made[0].astype(int)).max() <= 1
    assert made[0].std() > 10


def test_a_generator_takes_the_straight_graph_where_there_is_one_and_walks_where_there_is_none(exported: Bundle) -> None:
    assert Generator.open(exported.root, plan="interval").graph == "interval.fp32"
    assert Generator.open(exported.root, plan="plain").graph == "teacher.step.fp32"
    with pytest.raises(ValueError, match="holds the plan 'interval', not 'plain'"):
        Generator(exported, graph="interval.fp32", plan="plain")
    assert Generator(exported, graph="teacher.step.fp32").plan.rows == exported.plan("plain").rows


@pytest.mark.parametrize("change", ["missing", "altered", "truncated"])
def test_weights_beside_the_graph_are_checked_like_all_files(change: str, exported: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "small.bundle"
    shutil.copytree(exported.root, copy)
    data = copy / exported.manifest.graphs["interval.fp32"].data[0]
    content = data.read_bytes()
    data.unlink()
    if change != "missing":
        data.write_bytes(content[:-1] if change == "truncated" else bytes([content[0] ^ 1]) + content[1:])
    message = {"missing": "is missing", "altered": "does not match its sha256", "truncated": "truncated or altered"}[change]
    with pytest.raises(ValueError, match=message):
        Generator(Bundle.load(copy), graph="interval.fp32")
    with pytest.raises(ValueError, match=message):
        check_graphs(Bundle.load(copy))


def test_the_layout_is_chosen_by_size_and_the_choices_are_said(shared: Bundle, tmp_path: Path) -> None:
    assert choose_layout(10, MAX_UNROLLED_NODES // 10)[0] == "unrolled"
    layout, reason = choose_layout(10, MAX_UNROLLED_NODES)
    assert layout == "loop"
    assert f"over {MAX_UNROLLED_NODES} load and build slowly" in reason
    said: list[str] = []
    shutil.copytree(shared.root, tmp_path / "copy.bundle")
    bundle = export_graphs(Bundle.load(tmp_path / "copy.bundle"), ["interval"], ["fp32"], report=said.append)
    assert any("interval.fp32: unrolled (3 evaluations of" in line for line in said)
    (measured,) = (line for line in said if "as fast on this CPU" in line)
    assert bundle.manifest.graphs["interval.fp32"].batched_guidance == ("one batch" in measured)


def test_an_architecture_is_traced_once_and_gives_the_same_bytes(
    exported: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other weights are another file all the same."""
    copy = Bundle.load(shutil.copytree(exported.root, tmp_path / "copy.bundle"))
    paths = copy.manifest.graphs["interval.fp32"].paths
    before = [copy.file(path).read_bytes() for path in paths]
    with copy.edit() as draft:
        save_network(draft, "other", small("unet", seed=1).denoiser)
        draft.manifest.plans["other"] = draft.manifest.plans["interval"].model_copy(update={"denoiser": "other"})
    monkeypatch.setattr("fewstep.exporter.graph.network.trace", lambda *_, **__: pytest.fail("traced again"))
    again = export_graphs(
        Bundle.load(copy.root), ["interval", "other"], ["fp32"], batched_guidance=True, max_inline_bytes=100_000
    )
    assert before == [again.file(path).read_bytes() for path in again.manifest.graphs["interval.fp32"].paths]
    assert before[1] != again.file(again.manifest.graphs["other.fp32"].data[0]).read_bytes()
    assert all(result.ok for result in check_graphs(again))


def test_eight_bits_need_ranges_and_a_plan(shared: Bundle) -> None:
    with pytest.raises(ValueError, match=r"int8 needs the ranges of the plan 'plain'; collect them with: fewstep quantize"):
        export_graphs(shared, ["plain"], ["int8"])
    with pytest.raises(ValueError, match="which the step layout does not know"):
        export_graphs(shared, ["plain"], ["int8"], layouts=["step"])
    with pytest.raises(ValueError, match="fp32 rounds nothing"):
        calibrate_ranges(shared, "plain", ["fp32"])


@pytest.mark.parametrize("content", [b"not a graph", b""])
def test_a_graph_that_is_none_is_refused_in_words(content: bytes, digits: Bundle) -> None:
    with digits.edit() as draft:
        draft.new(digits.manifest.graphs["sid2.fp32"].file).write_bytes(content)
    with pytest.raises(ValueError, match=r"('|/)(graphs/)?sid2\.fp32.*; export it again"):
        check_graphs(Bundle.load(digits.root))
    with pytest.raises(ValueError, match=r"('|/)(graphs/)?sid2\.fp32.*; export it again"):
        Generator.open(digits.root, plan="sid2", precision="fp32")


def test_a_graph_of_an_opset_to_come_is_refused_in_words(digits: Bundle) -> None:
    path = digits.file(digits.manifest.graphs["sid2.fp32"].file)
    model = onnx.load(path)
    model.opset_import[0].version = 99
    with digits.edit() as draft:
        draft.new(digits.manifest.graphs["sid2.fp32"].file).write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=r"refuses the graph .*[Oo]pset 99.*; export it again"):
        Generator.open(digits.root, plan="sid2", precision="fp32")


def test_a_plan_of_another_network_is_refused(exported: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "small.bundle"
    shutil.copytree(exported.root, copy)
    with Bundle.load(copy).edit() as draft:
        shipped = exported.manifest.denoisers["teacher"].model_copy(update={"directory": None})
        draft.manifest.components["other"] = shipped
        draft.manifest.plans["foreign"] = exported.manifest.plans["plain"].model_copy(update={"denoiser": "other"})
    with pytest.raises(ValueError, match=r"the plan 'foreign' belongs to the network 'other', the graph .* to 'teacher'"):
        Generator(Bundle.load(copy), graph="teacher.step.fp32", plan="foreign")
    with pytest.raises(ValueError, match="no graph of the plan 'foreign'"):
        Generator.open(copy, plan="foreign")


@pytest.fixture(scope="module")
def in_bf16(shared: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    copy = tmp_path_factory.mktemp("bf16") / "small.bundle"
    shutil.copytree(shared.root, copy)
    return export_graphs(Bundle.load(copy), ["plain"], ["fp32", "bf16"], layouts=["loop", "step"])


def test_bf16_that_no_cpu_computes_does_not_keep_others_from_being_checked(in_bf16: Bundle) -> None:
    for result in check_graphs(in_bf16):
        assert result.ok
        assert ("no bf16 kernels" in result.skipped) == result.graph.endswith("bf16")
    with pytest.raises(ValueError, match=r"no bf16 kernels for .* here; use fp32 or fp16"):
        Generator.open(in_bf16.root, plan="plain", precision="bf16")


def test_the_weights_inside_a_loop_count_as_weights(in_bf16: Bundle) -> None:
    graph, weights = graph_parts("ort", "loop", in_bf16.file("graphs/plain.loop.fp32.onnx"))
    assert weights.bytes > graph.bytes > 0


def test_walking_shows_every_row_and_stops_when_asked(in_bf16: Bundle) -> None:
    generator = Generator(in_bf16, graph="teacher.step.fp32", plan="plain", backend="cpu")
    seen = []

    def look(preview: Preview) -> None:
        seen.append((preview.row, preview.output().shape))

    images = generator(labels=[0, 1], seeds=[5, 6], on_step=look)
    np.testing.assert_array_equal(images, generator(labels=[0, 1], seeds=[5, 6]))
    assert seen == [(0, images.shape), (1, images.shape)]
    with pytest.raises(CancelledError, match="stopped after row 1 of 2"):
        generator(labels=[0, 1], seeds=[5, 6], on_step=lambda _: False)
    with pytest.raises(ValueError, match=r"holds the whole plan in one graph; for previews export it with --layout step"):
        Generator(in_bf16, graph="plain.loop.fp32", backend="cpu")(labels=[0], seeds=[0], on_step=print)
