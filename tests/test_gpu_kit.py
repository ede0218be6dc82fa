"""The kit that measures on a GPU, rehearsed: all its parts and processes with tiny networks, the CPU in the GPU's place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import stand_in_cuda
import torch
from conftest import ROOT
from gpu import color, correctness, parcels, tables, teacher
from gpu.job import Work
from gpu.run import PARTS, Kit, chosen, end, needed, tasks_of
from gpu.scale import REAL, REHEARSAL
from gpu.timing import in_turns, psnr_db
from gpu.training import SIZES

from fewstep.artifact.bundle import Bundle
from fewstep.backends.onnx import GRAPH_ID
from fewstep.backends.sessions import CUDA
from fewstep.exporter.parity import check_graphs
from fewstep.runtime import Generator
from fewstep.system.machine import this_machine

RUN = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / "gpu" / "run.py")]
WITHOUT_GPU = pytest.mark.skipif(this_machine().gpu is not None, reason="what happens without a GPU cannot be tried with one")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*RUN, *map(str, arguments)], env=env, capture_output=True, text=True, timeout=500, check=False)


def result(folder: Path, part: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{part}.json").read_text("utf-8"))
    return found


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A color set of a thousand images, each of one color by its class."""
    labels = np.arange(1000) % 10
    pixels = np.broadcast_to((labels * 25)[:, None, None, None], (1000, 32, 32, 3)).astype(np.uint8)
    path = tmp_path_factory.mktemp("color") / "cifar10.zip"
    color.write_color(pixels, labels, path)
    return path


@pytest.fixture(scope="module")
def rehearsed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a whole rehearsal leaves."""
    out = tmp_path_factory.mktemp("rehearsal")
    done = run("--rehearse", "--minutes", "8", "--out", out, "--data", images)
    assert done.returncode == 0, done.stdout[-3000:] + (out / "errors.log").read_text("utf-8")[-3000:]
    return out


@pytest.mark.parametrize("part", PARTS)
def test_a_rehearsal_does_every_task_of_every_part(part: str, rehearsed: Path) -> None:
    found = result(rehearsed, part)
    assert found["status"] == "done"
    assert found["machine"]["onnxruntime"] == ort.__version__
    assert found["tasks"].keys() == tasks_of(part, REHEARSAL).keys()
    for name, task in found["tasks"].items():
        assert (task["status"], task["reason"]) == ("done", ""), name
        assert not task.get("left_out"), name


def test_every_graph_is_checked_with_cuda_graphs_and_without(rehearsed: Path) -> None:
    tasks = result(rehearsed, "correctness")["tasks"]
    shipped = Bundle.load(ROOT / "examples" / "digits.bundle").manifest.graphs
    ways = ("states", "runtime, CUDA graphs", "runtime, plain launches")
    seen = {(row["graph"], row["way"]) for row in tasks["shipped"]["rows"] if row["way"] != "TF32"}
    assert seen == {(name, way) for name in shipped for way in ways}
    layouts = {(row["layout"], row["plan"]) for row in tasks["classes"]["rows"]}
    assert layouts == {(layout, plan) for layout in ("unrolled", "loop", "step") for plan in ("plain", "guided")}
    assert {row["backend"] for row in tasks["chosen"]["rows"]} == {"cuda"}


def test_ways_are_timed_where_their_images_are_equal(rehearsed: Path) -> None:
    tasks = result(rehearsed, "latency")["tasks"]
    plain = {row["way"] for row in tasks["digits"]["rows"] if row["plan"] == "guided"}
    assert {
        "eager torch",
        "torch, CUDA graph",
        "diffusers' scheduler",
        "one graph",
        "Generator",
        "step graph, Python loop",
    } <= plain
    compiled = {row["way"] for row in tasks["compiled_large.tiny"]["rows"]}
    assert compiled == {"eager torch", "torch.compile, reduce-overhead", "torch.compile, max-autotune"}
    for task in tasks.values():
        for row in task["rows"]:
            assert "skipped" not in row, row
            assert row["psnr_db"] > 30
            assert 0 < row["p50_ms"] <= row["p99_ms"]


def test_a_killed_run_and_one_on_another_device_learn_the_same(rehearsed: Path) -> None:
    tasks = result(rehearsed, "training")["tasks"]
    (resumed,) = tasks["resume"]["rows"]
    assert resumed["killed_equal"]
    exact = [row["apart"] for row in tasks["equal"]["rows"] if row["precision"] == "fp32"]
    assert exact == [0, 0]  # the same device, in a rehearsal
    assert {row["run"] for row in tasks["rates"]["rows"]} == {"teacher", "SiD"}


def test_a_teacher_comes_back_small_and_learns_on(rehearsed: Path, images: Path, tmp_path: Path) -> None:
    task = result(rehearsed, "teacher")["tasks"]["teach"]
    assert all((rehearsed / name).stat().st_size < teacher.FILE_BYTES for name in task["weights"])
    assert (rehearsed / "samples.png").exists()
    teacher.as_bundle(rehearsed, tmp_path / "color.bundle")
    made = Bundle.load(tmp_path / "color.bundle").manifest
    assert made.default == "heun18"
    assert made.records.components["teacher"].settings == {"runs": task["runs"]}
    about = color.open_color(images), teacher.TEACHINGS["tiny"], teacher.Teaching()
    run = teacher.TeacherRun(tmp_path / "next.bundle", "teacher", *about)
    assert teacher.go_on(run, rehearsed) == task["runs"]
    kept = teacher.read(rehearsed)[1]
    assert all(torch.equal(kept[key], value) for key, value in run.denoiser.net.state_dict().items())


@pytest.mark.parametrize("damage", ["gone", "changed", "foreign"])
def test_another_teacher_is_refused(damage: str, rehearsed: Path, tmp_path: Path) -> None:
    for path in rehearsed.glob("teacher*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    file = tmp_path / "teacher-1.safetensors"
    if damage == "gone":
        file.unlink()
    elif damage == "changed":
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    else:
        (tmp_path / "teacher.json").write_text("{}")
    with pytest.raises(ValueError, match="holds no earlier teacher"):
        teacher.read(tmp_path)


@WITHOUT_GPU
def test_without_a_gpu_every_part_says_so(tmp_path: Path) -> None:
    done = run("--out", tmp_path)
    assert done.returncode == 1
    assert "no NVIDIA driver or GPU is here" in done.stdout
    for part in PARTS:
        assert result(tmp_path, part)["status"] == "incomplete"
        assert "no NVIDIA driver or GPU is here" in result(tmp_path, part)["reason"]


def test_a_part_over_its_time_leaves_its_reason_and_the_next_one_starts(tmp_path: Path) -> None:
    done = run("--rehearse", "--minutes", "0.12", "--parts", "training,teacher", "--out", tmp_path)
    assert done.returncode == 1
    tasks = result(tmp_path, "training")["tasks"]
    assert tasks.keys() == tasks_of("training", REHEARSAL).keys()
    late = [task for task in tasks.values() if task["status"] == "over time"]
    assert late
    assert all("took longer than its" in task["reason"] for task in late)
    assert result(tmp_path, "teacher")["tasks"]["teach"]["status"] in ("failed", "over time")


def test_a_task_by_itself_leaves_what_the_others_found(rehearsed: Path, tmp_path: Path) -> None:
    path = tmp_path / "correctness.json"
    path.write_bytes((rehearsed / path.name).read_bytes())
    before = result(tmp_path, "correctness")
    (tmp_path / "made").mkdir()
    task = ("--rehearse", "--minutes", "2", "--parts", "correctness.chosen", "--bundles", tmp_path / "made", "--out", tmp_path)
    assert run(*task).returncode == 0
    after = result(tmp_path, "correctness")
    assert after["status"] == "done"
    same = set(before["tasks"]) - {"chosen"}
    assert {name: after["tasks"][name] for name in same} == {name: before["tasks"][name] for name in same}
    assert after["tasks"]["chosen"] != before["tasks"]["chosen"]  # it took other seconds
    path.write_text(json.dumps(before | {"machine": before["machine"] | {"gpu": "another"}}))
    done = run("--rehearse", "--minutes", "2", "--parts", "correctness.chosen", "--out", tmp_path)
    assert "is of another machine or of other versions; it is replaced" in done.stdout
    assert result(tmp_path, "correctness")["tasks"].keys() == {"chosen"}
    assert result(tmp_path, "correctness")["status"] == "incomplete"


def test_tasks_need_their_own_bundles_alone() -> None:
    assert needed(chosen("latency.digits,correctness.chosen", REAL), REAL) == ["digits"]
    assert needed(chosen("latency.large.sd15,training.resume", REAL), REAL) == ["sd15"]
    assert needed(chosen("latency", REAL), REAL) == ["sdxl_size", "sd15", "digits"]
    assert needed(chosen("training,correctness.classes", REAL), REAL) == [*REAL.classes, "equal_cpu"]


def test_bundles_that_are_there_or_being_made_are_not_made_again(tmp_path: Path) -> None:
    for name in ("unet.bundle", "new-digits.bundle"):
        (tmp_path / name).mkdir()
    kit = Kit(tmp_path, {"bundles": str(tmp_path)}, REHEARSAL, 1.0)
    kit.ahead = ["unet", "digits"]
    kit.make_ahead()
    assert (kit.running, kit.ahead) == ([], [])


def test_there_are_no_other_parts_nor_files(tmp_path: Path) -> None:
    for bad, words in (
        (("--parts", "latency,fun"), "got 'fun'"),
        (("--parts", "training.fun"), "tasks of training are rates, on_cpu, equal, resume, got 'fun'"),
        (("--minutes", "0"), "more than 0"),
        (("--data", "no.zip"), "not there"),
    ):
        done = run("--out", tmp_path, *bad)
        assert done.returncode == 2
        assert words in done.stderr


def test_a_graph_that_does_not_run_is_wrong_and_one_without_kernels_is_left_out() -> None:
    assert correctness._failed(ValueError("backend 'cuda' cannot run 'a' here: ONNX Runtime has no bf16 kernels for 'a' here"))[
        "skipped"
    ]
    assert "skipped" not in correctness._failed(RuntimeError("ONNX Runtime could not run the graph: CUDA error 700"))


def test_too_little_memory_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work(tmp_path / "o.json", tmp_path, tmp_path, tmp_path, None, None, REAL, time.time())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (80e9, 80e9))
    work.need(40, "sdxl_size")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (8e9, 8e9))
    with pytest.raises(ValueError, match="sdxl_size needs 40 GB of GPU memory, 8 GB are free"):
        work.need(40, "sdxl_size")


def test_a_bundle_that_could_not_be_made_is_a_sentence(tmp_path: Path) -> None:
    work = Work(tmp_path / "o.json", tmp_path, tmp_path, tmp_path, None, None, REHEARSAL, time.time() + 60)
    (tmp_path / "sd15.failed").write_text("no memory")
    with pytest.raises(ValueError, match="the bundle sd15 could not be made: no memory"):
        work.bundle("sd15")
    work.end = time.time()
    with pytest.raises(ValueError, match="the bundle unet was not made in time"):
        work.bundle("unet")


def test_real_sizes_have_what_rehearsals_have() -> None:
    assert set(REAL.large) == REAL.memory_gb.keys()
    assert set(REAL.sizes) <= SIZES.keys()
    assert sum(parcel.numel() for parcel in _weights(REAL.teaching)) * 2 < 2 * teacher.FILE_BYTES


def _weights(name: str) -> list[torch.Tensor]:
    from diffusers import UNet2DModel

    with torch.device("meta"):
        return list(UNet2DModel.from_config(dict(teacher.TEACHINGS[name].network or {})).parameters())


def test_latencies_are_of_every_call() -> None:
    images = np.zeros((4, 2, 2, 1), np.uint8)
    rows = in_turns({"one": lambda: images, "other": lambda: images}, batch=4, seconds=0.0, calls=8)
    assert {name: row["calls"] for name, row in rows.items()} == {"one": 8, "other": 8}
    assert psnr_db(images, images) == 100
    assert psnr_db(images, images + 1) == pytest.approx(48.13, abs=0.01)


# The runtime's own code for a GPU, driven by the CPU in its place.


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_cuda.install(monkeypatch.setattr)


@pytest.mark.usefixtures("cuda")
def test_the_ladder_takes_cuda_in_fp16_and_gives_the_images_of_the_cpu(digits: Bundle) -> None:
    generator = Generator(digits)
    assert (generator.backend, generator.graph) == ("cuda", "sid1.fp16")
    generator.warm_up()
    cpu = Generator(digits, backend="cpu", precision="fp16")
    for batch in (1, 3, 40):
        labels, seeds = [i % 10 for i in range(batch)], list(range(batch))
        difference = np.abs(generator(labels=labels, seeds=seeds).astype(int) - cpu(labels=labels, seeds=seeds))
        assert difference.max() <= 1


def test_onnx_runtime_knows_the_option_that_tells_captured_graphs_apart() -> None:
    (library,) = (Path(ort.__file__).parent / "capi").glob("onnxruntime_pybind11_state*")
    assert GRAPH_ID.encode() + b"\0" in library.read_bytes()


@pytest.mark.usefixtures("cuda")
def test_every_batch_size_replays_its_own_graph_in_every_thread(digits: Bundle) -> None:
    generator = Generator(digits, backend="cuda", buckets=(1, 4))
    labels, seeds = [3, 1, 4, 1], [0, 1, 2, 3]
    alone = generator(labels=labels[:1], seeds=seeds[:1])
    images = generator(labels=labels, seeds=seeds)
    assert (
        np.abs(images.astype(int) - Generator(digits, backend="cpu", precision="fp16")(labels=labels, seeds=seeds)).max() <= 1
    )
    assert np.abs(images[:1].astype(int) - alone).max() <= 1
    with ThreadPoolExecutor(1) as other:
        assert (other.submit(generator, labels=labels, seeds=seeds).result() == images).all()
    assert (generator(labels=labels[:1], seeds=seeds[:1]) == alone).all()


@pytest.mark.usefixtures("cuda")
def test_a_graph_that_cannot_be_captured_runs_without_and_says_why(digits: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Generator(digits, backend="cuda").reason.count("no CUDA graphs")
    monkeypatch.setattr(stand_in_cuda, "controls", lambda _: True)
    generator = Generator(digits, backend="cuda")
    assert "no CUDA graphs: ONNX Runtime" in generator.reason
    assert "control flow nodes" in generator.reason
    assert generator(labels=[3], seeds=[0]).shape == (1, 28, 28, 1)


@pytest.mark.usefixtures("cuda")
def test_a_provider_that_fails_is_not_silently_the_cpu(digits: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stand_in_cuda, "OPTIONS", set())
    with pytest.raises(ValueError, match=r"cannot open 'sid1.fp16' with its CUDAExecutionProvider: Unknown provider option"):
        Generator(digits, backend="cuda")
    assert Generator(digits).backend == "cpu"
    monkeypatch.setattr(stand_in_cuda.Session, "get_providers", lambda _: ["CPUExecutionProvider"])
    monkeypatch.setattr(stand_in_cuda, "OPTIONS", {"use_tf32"})
    with pytest.raises(ValueError, match="CUDAExecutionProvider could not start; run `fewstep doctor`"):
        Generator(digits, backend="cuda", cuda_graphs=False)


@pytest.mark.usefixtures("cuda")
def test_graphs_are_checked_where_they_are_to_run(digits: Bundle) -> None:
    found = check_graphs(digits, CUDA)
    assert {parity.graph for parity in found} == digits.manifest.graphs.keys()
    assert all(parity.ok and not parity.skipped for parity in found)


# What travels.


def test_files_travel_in_parts_and_come_out_the_same(tmp_path: Path) -> None:
    files = {"large.whl": np.random.default_rng(0).bytes(2500), "small.whl": b"x" * 100, "empty": b""}
    (tmp_path / "files").mkdir()
    for name, content in files.items():
        (tmp_path / "files" / name).write_bytes(content)
    assert parcels.split(tmp_path / "files", tmp_path / "parts", 1000) == 3
    sizes = [
        sum(p.stat().st_size for p in part.iterdir() if p.name != parcels.MANIFEST) for part in (tmp_path / "parts").iterdir()
    ]
    assert max(sizes) <= 1000
    for number in (3, 1):
        parcels.take(tmp_path / "parts" / f"{number:02}", tmp_path / "store")
    assert parcels.join(tmp_path / "store", tmp_path / "out") == ["large.whl is not whole: part 02 is not there"]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"small.whl", "empty"}
    parcels.take(tmp_path / "parts" / "02", tmp_path / "store")
    parcels.take(tmp_path / "parts" / "02", tmp_path / "store")
    assert parcels.join(tmp_path / "store", tmp_path / "out") == []
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == files


def test_parts_that_are_not_what_was_packed_are_refused(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_bytes(name.encode() * 9)
        parcels.split(tmp_path / name, tmp_path / f"{name}-parts", 100)
    part = tmp_path / "one-parts" / "01"
    (part / "a.000").write_bytes(b"oneoneone" * 2 + b"onE" * 3)
    with pytest.raises(ValueError, match="is not the piece that was packed"):
        parcels.take(part, tmp_path / "store")
    parcels.take(tmp_path / "other-parts" / "01", tmp_path / "store")
    with pytest.raises(ValueError, match="holds parts of another packing"):
        parcels.take(part, tmp_path / "store")
    (tmp_path / "store" / "a.000").write_bytes(b"x" * 45)
    with pytest.raises(ValueError, match="came out other than it was packed"):
        parcels.join(tmp_path / "store", tmp_path / "out")
    manifest = json.loads((part / parcels.MANIFEST).read_text("utf-8"))
    (part / parcels.MANIFEST).write_text(json.dumps({"../a": manifest["a"]}), "utf-8")
    with pytest.raises(ValueError, match="no manifest of parts"):
        parcels.take(part, tmp_path / "store")
    with pytest.raises(ValueError, match="exists already"):
        parcels.split(tmp_path / "one", tmp_path / "one-parts")


def test_wheels_are_those_that_fewstep_is_tested_with() -> None:
    tested = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if "==" in line)
    tested = {name.lower().replace("_", "-"): version for name, version in tested.items()}
    lines = (ROOT / "benchmarks" / "gpu" / "wheels.txt").read_text("utf-8").splitlines()
    for name, version in (line.split("==") for line in lines if not line.startswith("#")):
        assert tested[name.lower().replace("_", "-").removesuffix("-gpu")] == version, name


def test_color_sets_keep_their_pixels_and_others_are_refused(images: Path, tmp_path: Path) -> None:
    train, held_out = color.open_color(images), color.open_color(images, "held-out")
    assert (len(train), len(held_out)) == (800, 200)
    pixels, labels = train[np.arange(10)]
    assert (pixels == (labels * 25)[:, None, None, None]).all()
    (tmp_path / "bad.zip").write_bytes(images.read_bytes()[:-100])
    with pytest.raises(ValueError, match="no color set"):
        color.open_color(tmp_path / "bad.zip")


def test_nvidias_libraries_are_found_wherever_python_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    from fewstep.backends import cuda_libraries

    for folder in ("nvidia/cu13/lib", "nvidia/cudnn/lib", "nvidia/empty"):
        (tmp_path / folder).mkdir(parents=True)
    asked: list[str | None] = []

    def preload_dlls(directory: str | None = None) -> None:
        print("Failed to load something")
        asked.append(directory)

    monkeypatch.setattr(cuda_libraries, "ort", SimpleNamespace(preload_dlls=preload_dlls))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    cuda_libraries.load_cuda_libraries.__wrapped__()
    assert asked == [str(tmp_path / "nvidia" / "cu13" / "lib"), str(tmp_path / "nvidia" / "cudnn" / "lib"), None]
    assert capfd.readouterr().out == ""
    assert "no such file" in cuda_libraries.why_not("/no/such/library.so").lower()


# What the pages take from it.


def test_pages_say_not_run_yet_until_there_are_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    for table in (tables.checked, tables.latencies, tables.learnt, tables.taught):
        ((first, *others),) = table().rows
        assert first == tables.NOT_RUN
        assert len(others) == len(table().head) - 1
    assert tables.machine() == tables.NOT_RUN
    assert tables.short(8)[0][:2] == ["on a GPU", tables.NOT_RUN]


def test_pages_take_their_rows_from_the_result_files(rehearsed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "RESULTS", rehearsed)
    assert "ONNX Runtime" in tables.machine()
    checked = {row[0]: row for row in tables.checked().rows}
    assert checked["fp32"][2] == checked["fp16"][2] == "0"
    found = {row[0]: dict(zip(tables.latencies().head, row, strict=True)) for row in tables.latencies().rows}
    assert found.keys() == {"plain, fp32, batch 2", "guided, fp32, batch 2", "tiny, fp16, batch 2"}
    assert all(row[f"torch.compile, {mode}"].endswith(" x") for row in found.values() for mode in REAL.compiling)
    assert {row[0] for row in tables.learnt().rows} == {"teacher, tiny, cpu", "SiD, tiny, cpu"}
    ((title, *numbers),) = tables.taught().rows
    assert title.endswith(("no GPU, bf16", "no GPU, no"))
    assert all(numbers)
    monkeypatch.setattr(tables, "README_ROWS", (("tiny", 2),))
    (row,) = tables.short(8)
    assert len(row) == 8
    assert row[0] == "tiny, batch 2, fp16 on no GPU"


def test_what_is_ended_takes_with_it_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpu.run.PRELOADED", ())
    kit, written = Kit(tmp_path, {}, REHEARSAL, 1.0), tmp_path / "pid"
    process = kit.start(os.system, f"sleep 60 & echo $! > {tmp_path}/new && mv {tmp_path}/new {written}; wait")
    while not written.exists():
        time.sleep(0.02)
    state = Path("/proc", written.read_text("utf-8").strip(), "stat")
    assert state.read_text("utf-8").split()[2] in "SRD"
    end(process)
    for _ in range(100):
        if not state.exists() or state.read_text("utf-8").split()[2] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("it still runs")
