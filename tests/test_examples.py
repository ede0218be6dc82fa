"""The programs of examples/embed, run as a user runs them: they make the Generator's images and say what is wrong.

C++ needs g++ and ONNX Runtime's headers (FEWSTEP_ORT_INCLUDE names their directory), Node the npm package onnxruntime-node
(FEWSTEP_ORT_NODE names its directory).
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import ROOT
from onnx import TensorProto as Type
from onnx import helper

from fewstep.artifact.bundle import Bundle, Draft
from fewstep.artifact.components import DenoiserEntry
from fewstep.artifact.manifest import GraphEntry, PlanEntry
from fewstep.artifact.signature import ImageOutput, LabelInput, Signature
from fewstep.runtime import Generator
from fewstep.runtime.noise import noise
from fewstep.sampling.parametrisation import Edm
from fewstep.sampling.plan import Plan

EMBED = ROOT / "examples" / "embed"
PAGE = (ROOT / "docs" / "embedding.md").read_text("utf-8")
EXAMPLE = ROOT / "examples" / "digits.bundle"
INCLUDE = os.environ.get("FEWSTEP_ORT_INCLUDE")
ORT_NODE = os.environ.get("FEWSTEP_ORT_NODE")
NAMES = ("dark", "dusk red", "bright")
LIBRARY = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"), None)
BARE = """
import runpy, sys
sys.modules.update(dict.fromkeys(["torch", "PIL", "rich", "typer", "onnx"]))  # None: not to be imported
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

Program = Callable[..., subprocess.CompletedProcess[str]]  # of a bundle and further arguments


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120, check=False)


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2 and one sentence, with these words in it."""
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr


def read_pnm(content: bytes, count: int = 1) -> np.ndarray:
    """Images (B, H, W, C) int of a PGM or PPM that holds them one below the other."""
    header, pixels = content.split(b"\n", 1)
    kind, width, height, most = header.split()
    assert most == b"255"
    return (
        np.frombuffer(pixels, np.uint8).reshape(count, int(height) // count, int(width), {b"P5": 1, b"P6": 3}[kind]).astype(int)
    )


@pytest.fixture
def color(tmp_path: Path) -> Bundle:
    """A bundle whose one graph colors noise: images (4, 5, 3), each label, which has a name, 50 levels brighter."""
    nodes = [
        helper.make_node("Squeeze", ["noise", "draw"], ["start"]),
        helper.make_node("Cast", ["labels"], ["bright"], to=Type.FLOAT),
        helper.make_node("Reshape", ["bright", "column"], ["brighter"]),
        helper.make_node("Add", ["start", "brighter"], ["sample"]),
        helper.make_node("Mul", ["sample", "levels"], ["level"]),
        helper.make_node("Clip", ["level", "black", "white"], ["pixel"]),
        helper.make_node("Transpose", ["pixel"], ["image"], perm=[0, 2, 3, 1]),
        helper.make_node("Cast", ["image"], ["images"], to=Type.UINT8),
    ]
    constants = [helper.make_tensor("draw", Type.INT64, [1], [1]), helper.make_tensor("column", Type.INT64, [4], [-1, 1, 1, 1])]
    constants += [helper.make_tensor(n, Type.FLOAT, [], [v]) for n, v in (("levels", 50), ("black", 0), ("white", 255))]
    shapes = {"noise": (Type.FLOAT, [1, 3, 4, 5]), "labels": (Type.INT64, [])}
    shapes |= {"images": (Type.UINT8, [4, 5, 3]), "sample": (Type.FLOAT, [3, 4, 5])}
    values = [helper.make_tensor_value_info(name, kind, ["batch", *shape]) for name, (kind, shape) in shapes.items()]
    graph = helper.make_graph(nodes, "color", values[:2], values[2:], constants)
    image, labels = ImageOutput(channels=3, height=4, width=5), LabelInput(classes=3, names=NAMES)
    with Draft.create(tmp_path / "color.bundle", Signature(inputs=(labels,), output=image)) as draft:
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        helper.set_model_props(made, {"fewstep.input.labels.names": "\n".join(NAMES)})
        onnx.save(made, draft.new("graphs/color.fp32.onnx"))
        about = {"directory": None, "parametrisation": Edm(sigma_data=0.5)}
        draft.manifest.components["net"] = DenoiserEntry(kind="UNet2DModel", **about)
        plan = Plan(*map(np.array, ([1, 1], [1, 0], [[0]], [[1]], [0], [1])))
        draft.manifest.plans["color"] = PlanEntry.of(plan, denoiser="net", solver="none")
        draft.manifest.default = "color"
        draft.manifest.graphs["color.fp32"] = GraphEntry(
            file="graphs/color.fp32.onnx",
            denoiser="net",
            plan="color",
            precision="fp32",
            layout="unrolled",
            opset=20,
            limit=1.0,
        )
    return Bundle.load(tmp_path / "color.bundle")


@pytest.fixture(params=["sid1", "sid2", "color"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    """Bundles whose default plans draw noise once, twice, and make images in color."""
    if request.param == "color":
        return request.getfixturevalue("color")
    digits = request.getfixturevalue("digits")
    with digits.edit() as draft:
        draft.manifest.default = request.param
    return Bundle.load(digits.root)


@pytest.fixture(scope="module")
def cpp(tmp_path_factory: pytest.TempPathFactory) -> Program:
    if not INCLUDE or not shutil.which("g++") or not LIBRARY:
        pytest.skip("needs g++, ONNX Runtime's headers (FEWSTEP_ORT_INCLUDE) and libonnxruntime.so in the package onnxruntime")
    ort = tmp_path_factory.mktemp("ort")
    for path, target in {
        "include": Path(INCLUDE).resolve(),
        "lib/libonnxruntime.so.1": LIBRARY,
        "lib/libonnxruntime.so": LIBRARY,
    }.items():
        (ort / path).parent.mkdir(exist_ok=True)
        (ort / path).symlink_to(target)
    (command,) = re.findall(r"//   (g\+\+ .*)\n", (EMBED / "cpp" / "embed.cpp").read_text("utf-8"))
    shutil.copy(EMBED / "cpp" / "embed.cpp", ort)
    subprocess.run([*command.replace("ORT/", f"{ort}/").split(), "-Wall", "-Wextra"], cwd=ort, check=True)

    def program(bundle: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
        plan = Bundle.load(bundle).manifest.default if bundle.exists() else "none"
        return run(ort / "embed", bundle / "graphs" / f"{plan}.fp32.onnx", *arguments)

    return program


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Program:
    if not ORT_NODE or not shutil.which("node"):
        pytest.skip("needs node and the npm package onnxruntime-node (FEWSTEP_ORT_NODE)")
    project = tmp_path_factory.mktemp("project")
    shutil.copy(EMBED / "node" / "embed.mjs", project)
    (project / "node_modules").symlink_to(Path(ORT_NODE).resolve().parent)
    return lambda bundle, *arguments: run("node", project / "embed.mjs", bundle, *arguments)


@pytest.fixture(params=["cpp", "node"])
def program(request: pytest.FixtureRequest) -> Program:
    return request.getfixturevalue(request.param)


@pytest.fixture
def raw(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """noise.f32 of the seeds 0 to 2, written by the code in docs/embedding.md."""
    monkeypatch.chdir(tmp_path)
    (code,) = (code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if ".tofile" in code)
    exec(compile(code.replace("digits.bundle", bundle.root.name), "docs/embedding.md", "exec"), {})
    return tmp_path / "noise.f32"


@pytest.fixture
def served(request: pytest.FixtureRequest) -> Path:
    """The bundle that a service serves."""
    return request.getfixturevalue(request.param).root if hasattr(request, "param") else EXAMPLE


@pytest.fixture
def service(served: Path) -> Iterator[int]:
    """The port of a running service, which has to end well at Ctrl+C."""
    command = [sys.executable, str(EMBED / "service.py"), str(served), "--port", "0"]

    def heed() -> None:  # a shell has the jobs that it starts in the background ignore Ctrl+C
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, stdout=PIPE, stderr=PIPE, text=True, preexec_fn=heed) as process:
        try:
            assert process.stdout
            said = process.stdout.readline()
            assert said.startswith("listening on port "), process.communicate()[1]
            yield int(said.split()[-1])
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=30) == ("", "")
            assert process.returncode == 0
        finally:
            process.kill()


async def ask(port: int, request: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request.encode() + b"\n")
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


def test_they_are_short() -> None:
    programs = [
        path for path in EMBED.rglob("*.*") if path.suffix in (".py", ".cpp", ".mjs") and "node_modules" not in path.parts
    ]
    assert len(programs) == 4
    assert all(len(path.read_text("utf-8").splitlines()) < 75 for path in programs)


def test_plain_python_makes_the_generators_images(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out.pnm"
    done = run(sys.executable, "-c", BARE, EMBED / "plain.py", bundle.root, "0,2,1", out, "--seed", 7)
    assert done.returncode == 0, done.stderr
    assert "3 images" in done.stdout
    expected = Generator(bundle)(labels=[0, 2, 1], seeds=[7, 8, 9])
    np.testing.assert_array_equal(read_pnm(out.read_bytes(), 3), expected)


def test_other_languages_make_the_generators_images(program: Program, bundle: Bundle, raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.pnm"
    assert program(bundle.root, "0,2,1", out, raw).returncode == 0
    expected = Generator(bundle)(labels=[0, 2, 1], seeds=[0, 1, 2])
    assert np.abs(read_pnm(out.read_bytes(), 3) - expected).max() <= 1


def test_the_page_makes_bytes_of_the_numbers(
    digits: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(digits.root.parent)
    names: dict[str, np.ndarray] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    for code in (block for block in blocks if "digits.bundle" in block):  # the others run in test_docs.py
        exec(compile(code, "docs/embedding.md", "exec"), names)
    assert capsys.readouterr().out == "0.0\n"
    np.testing.assert_array_equal(names["images"], Generator(digits, precision="fp32")(labels=[3, 1, 4], seeds=[0, 1, 2]))
    assert np.abs(names["sample"]).max() > 1  # it is not clipped


def test_classes_are_given_by_name_in_all_languages(program: Program, color: Bundle, tmp_path: Path) -> None:
    noise(range(3), (1, 3, 4, 5)).tofile(tmp_path / "noise.f32")
    expected = Generator(color)(labels=[2, 0, 1], seeds=range(3))
    assert program(color.root, "bright,dark,dusk red", tmp_path / "out.ppm", tmp_path / "noise.f32").returncode == 0
    assert np.abs(read_pnm((tmp_path / "out.ppm").read_bytes(), 3) - expected).max() <= 1
    assert_refused(program(color.root, "red", tmp_path / "no.ppm"), "labels are names or whole numbers")
    done = run(sys.executable, "-c", BARE, EMBED / "plain.py", color.root, "bright,0,dusk red", tmp_path / "plain.ppm")
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(read_pnm((tmp_path / "plain.ppm").read_bytes(), 3), expected)


def test_other_languages_draw_unit_normal_noise_of_their_own(program: Program, color: Bundle, tmp_path: Path) -> None:
    runs = []
    for name in ("first.ppm", "second.ppm"):
        done = program(color.root, ",".join(["2"] * 400), tmp_path / name)
        assert done.returncode == 0, done.stderr
        runs.append(read_pnm((tmp_path / name).read_bytes(), 400))
    assert len(np.unique(np.concatenate(runs), axis=0)) == 800
    for images in runs:  # 50 (noise + 2), rounded down
        quantiles = np.quantile((images + 0.5) / 50 - 2, [0.05, 0.25, 0.5, 0.75, 0.95])
        np.testing.assert_allclose(quantiles, [-1.645, -0.674, 0, 0.674, 1.645], atol=0.09)


def test_other_languages_say_what_is_wrong(program: Program, tmp_path: Path) -> None:
    out, short = tmp_path / "out.pgm", tmp_path / "short.f32"
    short.write_bytes(bytes(100))
    assert_refused(program(tmp_path / "none.bundle", "3", out), "none.bundle", "bundle")
    assert_refused(program(EXAMPLE), "usage")
    for labels in ("3;1", "-1", "x", ""):
        assert_refused(program(EXAMPLE, labels, out), "labels are")
    assert_refused(program(EXAMPLE, "11", out))
    assert_refused(program(EXAMPLE, "3", out, short), "short.f32 does not hold 784 floats")
    assert_refused(program(EXAMPLE, "3", out, tmp_path / "none.f32"), "none.f32")
    assert_refused(program(EXAMPLE, "3", tmp_path / "none" / "out.pgm"), "out.pgm")
    assert not out.exists()


def test_node_refuses_an_altered_graph(node: Program, digits: Bundle, tmp_path: Path) -> None:
    graph = digits.root / "graphs" / "sid1.fp32.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    assert_refused(node(digits.root, "3", tmp_path / "out.pgm"), "sid1.fp32.onnx does not match its sha256")


@pytest.mark.parametrize("name", ["plain.py", "service.py"])
def test_python_says_what_is_wrong(name: str, tmp_path: Path) -> None:
    rest = ["3", tmp_path / "out.pgm"] if name == "plain.py" else []
    assert_refused(run(sys.executable, EMBED / name, tmp_path / "none.bundle", *rest), name, "it has no bundle.json")


def test_plain_python_refuses_wrong_labels(tmp_path: Path) -> None:
    done = run(sys.executable, EMBED / "plain.py", EXAMPLE, "3,10", tmp_path / "out.pgm")
    assert_refused(done, "a label of this bundle is 0 to 9, got 10")


def test_the_service_answers_many_at_once_and_refuses_what_it_cannot_queue(service: int) -> None:
    count, busy = 300, 0

    async def insist(i: int) -> bytes:
        nonlocal busy
        while (answer := await ask(service, f"{i % 10} {i} 30000")).startswith(b"busy: try again in "):
            busy += 1
            await asyncio.sleep(float(answer.split()[-2]))
        return answer

    async def all_of_them() -> list[bytes]:
        async with asyncio.timeout(100):
            return await asyncio.gather(*map(insist, range(count)))

    images = np.concatenate([read_pnm(answer) for answer in asyncio.run(all_of_them())])
    expected = Generator.open(EXAMPLE)(labels=[i % 10 for i in range(count)], seeds=range(count))
    np.testing.assert_array_equal(images, expected)
    assert busy > 0


def test_the_service_says_what_is_wrong_and_goes_on(service: int) -> None:
    for request, said in {
        "3": "refused: a request is a label",
        "3 0 0.5": "refused: a request is a label",
        "10 0 1000": "refused: a label of this bundle is 0 to 9, got 10",
        "3 -1 1000": "refused: a seed is a whole number",
        "3 0 0": "refused: the deadline passed",
    }.items():
        assert asyncio.run(ask(service, request)).decode().startswith(said)
    with suppress(ConnectionError):
        assert asyncio.run(ask(service, "3" * 100_000)) == b""  # longer than a line may be
    both = asyncio.run(ask(service, "3 0 9000\n4 1 9000"))
    images = [read_pnm(answer)[0] for answer in (both[: len(both) // 2], both[len(both) // 2 :])]
    np.testing.assert_array_equal(images, Generator.open(EXAMPLE)(labels=[3, 4], seeds=[0, 1]))


@pytest.mark.parametrize("served", ["color"], indirect=True)
def test_the_service_takes_names_with_blanks_in_them(service: int, color: Bundle) -> None:
    (image,) = read_pnm(asyncio.run(ask(service, "dusk red 7 9000")))
    np.testing.assert_array_equal(image, Generator(color)(labels=[1], seeds=[7])[0])
    known = "refused: a label of this bundle is dark, dusk red, bright or 0 to 2, got 'red'; did you mean 'dusk red'?"
    assert asyncio.run(ask(service, "red 7 9000")).decode().strip() == known
