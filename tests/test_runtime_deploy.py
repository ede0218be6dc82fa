"""Triton model repositories and Ray Serve applications: what is written, and the real servers on it.

Triton runs where FEWSTEP_TRITON names a virtual environment with nvidia-pytriton and onnxruntime.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from ports import free_port

from fewstep.artifact.bundle import Bundle, Draft
from fewstep.artifact.components import DenoiserEntry
from fewstep.artifact.manifest import EngineEntry, EngineKey, GraphEntry, PlanEntry
from fewstep.artifact.signature import ArrayInput, ArrayOutput, Axis, Column, ImageOutput, LabelInput, Signature
from fewstep.runtime import Generator
from fewstep.sampling.guidance import Guidance
from fewstep.sampling.parametrisation import Edm
from fewstep.sampling.solvers import ddim

pb = pytest.importorskip("tritonclient.grpc.model_config_pb2")

from google.protobuf import text_format  # noqa: E402

from fewstep.runtime.deploy.triton import TritonSettings, write_repository  # noqa: E402

TESTS = Path(__file__).parent
EXAMPLE = Bundle.load(TESTS.parent / "examples" / "digits.bundle")
TRITON = os.environ.get("FEWSTEP_TRITON")


def config(repository: Path, name: str):
    return text_format.Parse((repository / name / "config.pbtxt").read_text("utf-8"), pb.ModelConfig())


def until(ready: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert process.poll() is None, "the server ended"
        assert time.monotonic() < deadline, "the server did not get ready"
        time.sleep(0.2)


def is_ready(address: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{address}/v2/health/ready").status_code == 200
    return False


def infer(address: str, name: str, seeds: list[int], labels: list[int], shape: tuple[int, ...]) -> np.ndarray:
    http = pytest.importorskip("tritonclient.http")
    inputs = []
    for key, values in (("seeds", np.array(seeds, np.uint64)), ("labels", np.array(labels, np.int64))):
        datatype = "UINT64" if key == "seeds" else "INT64"
        inputs.append(http.InferInput(key, list(shape), datatype))
        inputs[-1].set_data_from_numpy(values.reshape(shape))
    with http.InferenceServerClient(address.removeprefix("http://")) as client:
        return client.infer(name, inputs).as_numpy("images")


def test_a_repository_parses_and_says_what_the_graph_is(tmp_path: Path) -> None:
    assert write_repository(EXAMPLE, tmp_path, ["sid1", "sid2"], TritonSettings("cpu", max_batch=8)) == [
        "digits.sid1",
        "digits.sid2",
    ]
    assert len(list(tmp_path.iterdir())) == 6
    for model in tmp_path.iterdir():
        assert config(tmp_path, model.name).name == model.name
    ensemble, noise, sampler = (config(tmp_path, f"digits.sid2{part}") for part in ("", ".noise", ".sampler"))
    assert [(i.name, i.data_type, list(i.dims)) for i in ensemble.input] == [
        ("seeds", pb.TYPE_UINT64, [1]),
        ("labels", pb.TYPE_INT64, [1]),
    ]
    assert list(ensemble.output[0].dims) == [28, 28, 1]
    assert [step.model_name for step in ensemble.ensemble_scheduling.step] == ["digits.sid2.noise", "digits.sid2.sampler"]
    assert noise.output[0].dims == sampler.input[0].dims == [EXAMPLE.plan("sid2").draws, 1, 28, 28]
    assert json.loads(ensemble.parameters["labels"].string_value) == {"meaning": "0 to 9 for a class, 10 for none"}
    assert sampler.input[1].HasField("reshape")
    assert not ensemble.input[1].HasField("reshape")
    assert [warm.batch_size for warm in sampler.model_warmup] == [1, 2, 4, 8]
    assert sampler.dynamic_batching.default_queue_policy.max_queue_size == 256
    assert sampler.instance_group[0].kind == pb.ModelInstanceGroup.KIND_CPU
    assert (tmp_path / "digits.sid2.sampler/1/model.onnx").read_bytes() == EXAMPLE.file("graphs/sid2.fp32.onnx").read_bytes()
    on_gpu = tmp_path / "gpu"
    write_repository(EXAMPLE, on_gpu, ["sid1"], TritonSettings())
    assert (on_gpu / "digits.sid1.sampler/1/model.onnx").read_bytes() == EXAMPLE.file("graphs/sid1.fp16.onnx").read_bytes()


def test_a_model_is_replaced_as_a_whole_and_a_foreign_directory_is_not(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_repository(EXAMPLE, tmp_path, ["sid1"], TritonSettings("cpu"))
    (tmp_path / "digits.sid1.sampler/1/left.over").touch()
    write_repository(EXAMPLE, tmp_path, ["sid1"], TritonSettings("cpu"))
    assert not (tmp_path / "digits.sid1.sampler/1/left.over").exists()
    assert other.is_dir()
    (tmp_path / "digits.sid2").mkdir()
    with pytest.raises(ValueError, match=r"digits\.sid2 is there and no Triton model; remove it"):
        write_repository(EXAMPLE, tmp_path, ["sid2"], TritonSettings("cpu"))
    assert not (tmp_path / "digits.sid2.noise").exists()


@pytest.mark.parametrize(
    ("plan", "settings", "sentence"),
    [
        ("no", TritonSettings(), "has no plan 'no'; it has: "),
        (
            "sid1",
            TritonSettings(precision="fp8"),
            r"no whole graph of the plan 'sid1' in fp8 .*fewstep export .*--precision fp8",
        ),
        ("ddim10", TritonSettings(), "write it with: fewstep export digits.bundle --plan ddim10"),
        ("sid1", TritonSettings(max_batch=64, max_waiting=8), "a queue holds a batch of 64 at least, got max_waiting 8"),
    ],
)
def test_what_cannot_be_served_is_refused_and_nothing_is_written(
    plan: str, settings: TritonSettings, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=sentence):
        write_repository(EXAMPLE, tmp_path / "out", [plan], settings)
    assert not (tmp_path / "out").exists()


def test_there_is_one_engine_for_every_architecture(digits: Bundle, tmp_path: Path) -> None:
    with digits.edit() as draft:
        for sm, flavour in (("89", "tensorrt"), ("90", "tensorrt"), ("100", "tensorrt"), ("120", "tensorrt_rtx")):
            key = EngineKey(
                graph_sha256=digits.manifest.files["graphs/sid1.fp16.onnx"].sha256,
                postprocess_sha256=None,
                flavour=flavour,
                version="10.9",
                targets=[sm],
                gpu=f"GPU of {sm}",
                precision="fp16",
                profiles=[(1, 1, 1), (2, 16, 16)],
                flags=["strip-plan"] if sm == "100" else [],
            )
            file = f"engines/sid1.fp16.{sm}.engine"
            draft.new(file).write_bytes(sm.encode())
            draft.manifest.engines[f"sid1.fp16.{sm}"] = EngineEntry(
                file=file, graph="sid1.fp16", key=key, layers={}, inspected=False, seconds=0
            )
    bundle = Bundle.load(digits.root)
    write_repository(bundle, tmp_path / "out", ["sid1"], TritonSettings(max_batch=16))
    sampler = config(tmp_path / "out", "digits.sid1.sampler")
    assert sampler.platform == "tensorrt_plan"
    assert dict(sampler.cc_model_filenames) == {"8.9": "model.sm89.plan", "9.0": "model.sm90.plan"}
    assert (tmp_path / "out/digits.sid1.sampler/1/model.sm90.plan").read_bytes() == b"90"
    assert [spec.batch_size for spec in sampler.optimization.cuda.graph_spec] == [1, 2, 4, 8, 16]
    with pytest.raises(ValueError, match=r"the engine sid1\.fp16\.89 does not take batch 32; build it for that"):
        write_repository(bundle, tmp_path / "out", ["sid1"], TritonSettings(max_batch=32))


def with_a_graph(path: Path, signature: Signature) -> Bundle:
    """A bundle of three guided rows, whose graph nobody will run."""
    with Draft.create(path, signature) as draft:
        edm = Edm(sigma_data=0.5)
        draft.manifest.components["net"] = DenoiserEntry(kind="UNet2DModel", directory=None, parametrisation=edm)
        draft.manifest.plans["p"] = PlanEntry.of(ddim(edm.grid(3), Guidance(2.0)), denoiser="net", solver="ddim")
        external(draft.new("graphs/p.onnx"), "p.onnx.data")
        draft.manifest.graphs["p"] = GraphEntry(
            file="graphs/p.onnx",
            data=["graphs/p.onnx.data"],
            denoiser="net",
            plan="p",
            precision="fp32",
            layout="unrolled",
            opset=20,
            limit=1,
        )
    return Bundle.load(path)


def test_arrays_and_weights_beside_the_graph_go_along(tmp_path: Path) -> None:
    prompts = (
        ArrayInput(name="prompt_embeds", shape=(5, 12), null="given"),
        ArrayInput(name="pooled_prompt_embeds", shape=(3,), null="given"),
    )
    bundle = with_a_graph(tmp_path / "b", Signature(inputs=prompts, output=ImageOutput(channels=4, height=8, width=8)))
    write_repository(bundle, tmp_path / "out", ["p"], TritonSettings("cpu"))
    shapes = {i.name: list(i.dims) for i in config(tmp_path / "out", "b.p").input}
    given = {"prompt_embeds": [5, 12], "pooled_prompt_embeds": [3]}
    assert shapes == {"seeds": [1], **given, **{f"negative_{name}": shape for name, shape in given.items()}}
    assert (tmp_path / "out/b.p.sampler/1/p.onnx.data").stat().st_size > 0


def test_an_output_that_is_no_image_has_its_own_type_shape_and_meaning(tmp_path: Path) -> None:
    path = ArrayOutput(axes=(Axis(name="time", size=6),), columns=(Column(name="x", unit="m"), Column(name="y", unit="m")))
    robot = Signature(inputs=(LabelInput(name="task", classes=2), ArrayInput(name="seen", shape=(), null="zeros")), output=path)
    write_repository(with_a_graph(tmp_path / "b", robot), tmp_path / "out", ["p"], TritonSettings("cpu"))
    ensemble, noise, sampler = (config(tmp_path / "out", f"b.p{part}") for part in ("", ".noise", ".sampler"))
    for model in (ensemble, sampler):
        assert [(o.name, o.data_type, list(o.dims)) for o in model.output] == [("values", pb.TYPE_FP32, [6, 2])]
    assert dict(ensemble.ensemble_scheduling.step[1].output_map) == {"values": "values"}
    assert list(noise.output[0].dims) == list(sampler.input[0].dims) == [1, 2, 6]
    assert [(i.name, i.HasField("reshape")) for i in sampler.input] == [("noise", False), ("task", True), ("seen", True)]
    said = {name: json.loads(value.string_value)["meaning"] for name, value in ensemble.parameters.items()}
    assert said["values"] == "in units: x (m), y (m)"
    assert (said["task"], said["seen"]) == ("0 to 1 for a class, 2 for none", "seen, finite, zeros for none")


def external(path: Path, location: str) -> None:
    """A graph whose weights lie beside it."""
    import onnx
    from small_graphs import convolution

    onnx.save(convolution(), path, save_as_external_data=True, location=location, size_threshold=0)


@pytest.fixture
def triton(tmp_path: Path) -> Iterator[Callable[[Path], str]]:
    """Starts the real server on a repository; its address."""
    if not TRITON:
        pytest.skip("FEWSTEP_TRITON names no virtual environment with nvidia-pytriton and onnxruntime")
    (site,) = Path(TRITON).glob("lib/python3*/site-packages")
    home, backends = site / "pytriton" / "tritonserver", tmp_path / "backends"
    shutil.copytree(home / "backends", backends)
    stub = backends / "python" / "triton_python_backend_stub"
    shutil.copy(home / "python_backend_stubs" / site.parent.name.removeprefix("python") / stub.name, stub)
    stub.chmod(0o755)
    (backends / "onnxruntime").mkdir()
    shutil.copy(TESTS / "triton_onnxruntime.py", backends / "onnxruntime" / "model.py")
    server = shutil.copy(home / "bin" / "tritonserver", tmp_path)
    Path(server).chmod(0o755)
    processes: list[subprocess.Popen[bytes]] = []

    def start(repository: Path) -> str:
        port = free_port()
        command = [server, "--model-repository", repository, "--backend-directory", backends, "--http-port", str(port)]
        command += ["--allow-grpc", "false", "--allow-metrics", "false"]
        environment = {"PATH": f"{TRITON}/bin:{os.environ['PATH']}", "LD_LIBRARY_PATH": str(site / "nvidia_pytriton.libs")}
        processes.append(subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.DEVNULL))
        until(lambda: is_ready(f"http://127.0.0.1:{port}"), processes[-1])
        return f"http://127.0.0.1:{port}"

    yield start
    for process in processes:
        process.terminate()
        process.wait(30)


def test_the_real_triton_serves_the_repository_with_the_runtimes_images(triton: Callable[[Path], str], tmp_path: Path) -> None:
    """The server, ensembles, warm-up, batching and the noise are Triton's own; its onnxruntime backend is played."""
    write_repository(EXAMPLE, tmp_path / "repository", ["sid1", "sid2"], TritonSettings("cpu", max_batch=8))
    address = triton(tmp_path / "repository")
    for plan in ("sid1", "sid2"):
        generator = Generator(EXAMPLE, plan=plan, precision="fp32", backend="cpu")
        for seeds in ([0], [5, 2**64 - 1, 7]):
            labels = [3, 1, 4][: len(seeds)]
            made = infer(address, f"digits.{plan}", seeds, labels, (len(seeds), 1))
            assert np.abs(made.astype(int) - generator(labels=labels, seeds=seeds)).max() <= 1
    with pytest.raises(Exception, match="batch"):
        infer(address, "digits.sid1", list(range(9)), [0] * 9, (9, 1))


def test_a_bundle_has_the_name_that_is_in_it_everywhere(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="deploy ray needs the extra ray")
    shutil.copytree(EXAMPLE.root, tmp_path / "another.bundle")
    command = [sys.executable, "-m", "fewstep.cli", "deploy"]
    for target in ("triton", "ray"):
        made = [*command, target, "another.bundle", "--plan", "sid1", *(["--device", "cpu"] if target == "triton" else [])]
        subprocess.run(made, cwd=tmp_path, check=True, timeout=120, capture_output=True)
    assert {path.name for path in (tmp_path / "model_repository").iterdir()} == {
        f"digits.sid1{part}" for part in ("", ".noise", ".sampler")
    }
    assert yaml.safe_load((tmp_path / "serve.yaml").read_text("utf-8"))["applications"][0]["name"] == "digits"


def test_ray_refuses_what_is_not_there(tmp_path: Path) -> None:
    ray = pytest.importorskip("fewstep.runtime.deploy.ray", reason="ray is not installed")
    out = tmp_path / "serve.yaml"
    with pytest.raises(ValueError, match="has no plan 'no'"):
        ray.write_config(out, ray.RaySettings(bundle=EXAMPLE.root, plans=("no",)), ray.Replicas())
    with pytest.raises(FileNotFoundError, match="is not a bundle"):
        ray.write_config(out, ray.RaySettings(bundle=tmp_path), ray.Replicas())
    with pytest.raises(ValueError, match="3 replicas at least and 2 at most"):
        ray.write_config(out, ray.RaySettings(bundle=EXAMPLE.root), ray.Replicas(least=3, most=2))
    for plan, choice, sentence in (
        ("ddim10", {}, "no graph of the plan 'ddim10'"),
        ("sid1", {"precision": "fp8"}, "no fp8 graph of the plan 'sid1'"),
        ("sid1", {"backend": "zz"}, "backend is one of tensorrt, .*, got 'zz'"),
        ("sid1", {"max_batch": 64, "max_waiting": 1}, "a queue holds a batch and a request at least"),
    ):
        with pytest.raises(ValueError, match=sentence):
            ray.write_config(out, ray.RaySettings(bundle=EXAMPLE.root, plans=(plan,), **choice), ray.Replicas())
    assert not out.exists()


def test_two_replicas_of_ray_serve_answer_and_outlive_one(tmp_path: Path) -> None:
    pytest.importorskip("ray.serve", reason="ray is not installed")
    import yaml

    port, path = free_port(), tmp_path / "serve.yaml"
    command = [sys.executable, "-m", "fewstep.cli", "deploy", "ray", str(EXAMPLE.root), "--out", str(path)]
    command += ["--plan", "sid1", "--min-replicas", "2", "--max-replicas", "2", "--cpus", "0.5", "--max-batch", "8"]
    subprocess.run(command, check=True, capture_output=True)
    written = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(written | {"http_options": {"port": port}}))
    address = f"http://127.0.0.1:{port}"
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": "/tmp"}
    command = [sys.executable, "-m", "ray.serve.scripts", "run", str(path)]
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        try:
            until(lambda: is_ready(address) and len(replicas()) == 2, process)
            expected = Generator(EXAMPLE, plan="sid1", backend="cpu")(labels=[3, 1], seeds=[5, 6])
            for _ in range(8):
                np.testing.assert_array_equal(infer(address, "digits", [5, 6], [3, 1], (2,)), expected)
            first = replicas()[0]
            os.kill(first, signal.SIGKILL)
            until(lambda: len(replicas()) == 2 and first not in replicas(), process)
            np.testing.assert_array_equal(infer(address, "digits", [5, 6], [3, 1], (2,)), expected)
        finally:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()


def replicas() -> list[int]:
    """Processes of the deployment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().startswith(b"ray::ServeReplica:digits:Sampler"):
                found.append(int(path.parent.name))
    return found
