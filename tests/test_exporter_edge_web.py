"""The page in a real browser: the same seed gives Python's image, and nothing from elsewhere gets in.

Needs Chromium (on the PATH, or FEWSTEP_CHROMIUM) and the npm package onnxruntime-web (FEWSTEP_ORT_WEB names its directory).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Page, browser, served
from small import PATH, ROBOT, field

from fewstep.artifact.bundle import Bundle, Draft
from fewstep.artifact.manifest import PlanEntry
from fewstep.artifact.signature import Signature
from fewstep.exporter.edge.package import package
from fewstep.exporter.edge.web import BESIDE, PINNED, ort_web, write_page
from fewstep.exporter.export import export_graphs
from fewstep.models.denoiser import save_network
from fewstep.runtime import Generator
from fewstep.runtime.noise import noise
from fewstep.sampling.guidance import Guidance
from fewstep.sampling.schedule import karras
from fewstep.sampling.solvers import ddim

ROOT = Path(__file__).parent.parent
EXAMPLE = Bundle.load(ROOT / "examples" / "digits.bundle")
ORT_WEB = Path(os.environ["FEWSTEP_ORT_WEB"]) if "FEWSTEP_ORT_WEB" in os.environ else None
needs_ort_web = pytest.mark.skipif(ORT_WEB is None, reason="FEWSTEP_ORT_WEB names no npm package onnxruntime-web")
needs_node = pytest.mark.skipif(not shutil.which("node"), reason="node is not installed")

DONE = "document.querySelector('#generate').textContent === 'Generate' && !document.querySelector('#generate').disabled"
STATUS = "document.querySelector('#status').textContent"
FAILED = "document.querySelector('#status').classList.contains('bad')"
PIXELS = """[...document.querySelectorAll('canvas')].map((canvas) =>
  [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data])"""
ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}


@needs_node
def test_noise_in_javascript_is_numpys(tmp_path: Path) -> None:
    """Bit for bit, but for the last bit of few draws beyond 3.65: there NumPy's float32 logarithm is the C library's."""
    shutil.copy(ROOT / "exporter/edge/page/noise.js", tmp_path / "noise.mjs")
    seeds, count = [0, 1, 2**32, 123456789012345678, 2**64 - 1], 200_000
    script = """
    import { noise } from "./noise.mjs";
    import { writeFileSync } from "node:fs";
    const [count, ...seeds] = process.argv.slice(2);
    for (const [i, seed] of seeds.entries()) writeFileSync(`${i}`, noise(BigInt(seed), Number(count)));
    for (const wrong of [-1n, 2n ** 64n, 7]) try { noise(wrong, 1); process.exit(9); } catch (error) {}
    """
    (tmp_path / "run.mjs").write_text(script)
    subprocess.run(["node", "run.mjs", str(count), *map(str, seeds)], cwd=tmp_path, check=True)
    ours = np.stack([np.fromfile(tmp_path / str(i), np.float32) for i in range(len(seeds))])
    numpys = noise(seeds, (count,))
    assert (np.abs(numpys) > 3.7).sum() > 50  # the tail was drawn from
    differ = ours != numpys
    assert differ.mean() < 1e-5
    assert (np.abs(numpys[differ]) > 3.65).all()
    np.testing.assert_array_max_ulp(ours, numpys, 1)


@needs_ort_web
def test_the_pinned_hashes_are_those_of_the_npm_package() -> None:
    assert ORT_WEB
    runtime = ort_web(ORT_WEB)
    assert runtime.version == PINNED.version
    for ours, pinned in ((runtime.module, PINNED.module), (runtime.wasm, PINNED.wasm)):
        assert (ours.name, ours.bytes, ours.integrity) == (pinned.name, pinned.bytes, pinned.integrity)
        assert ours.gzip_bytes == pytest.approx(pinned.gzip_bytes, rel=0.02)  # zlib's builds differ a little


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    if not CHROMIUM or not ORT_WEB:
        pytest.skip("needs Chromium (PATH or FEWSTEP_CHROMIUM) and the npm package onnxruntime-web (FEWSTEP_ORT_WEB)")
    with browser() as page:
        yield page


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "out"
    package(EXAMPLE, out, ["web"], plans=["sid1", "sid2"], ort_web_package=ORT_WEB)
    return out / "web"


@pytest.fixture
def copy(site: Path, tmp_path: Path) -> Path:
    return shutil.copytree(site, tmp_path / "copy")


def images(page: Page) -> np.ndarray:
    """What the page shows, (B, 28, 28, 1) int; opaque and grey, or it fails."""
    pixels = np.array(page.run(PIXELS)).reshape(-1, 28, 28, 4)
    assert (pixels[..., 3] == 255).all()
    assert (pixels[..., :3] == pixels[..., :1]).all()
    return pixels[..., :1]


def assert_pythons(shown: np.ndarray, plan: str, labels: list[int] | None, seeds: list[int]) -> None:
    """WebAssembly sums in another order than this CPU: single pixels may round to the next of 256 levels."""
    expected = Generator.open(EXAMPLE.root, plan=plan, precision="fp32", backend="cpu")(labels=labels, seeds=seeds)
    difference = np.abs(shown - expected.astype(int))
    assert expected.std() > 30
    assert difference.max() <= 1
    assert (difference != 0).mean() < 1e-3


def test_the_page_makes_pythons_images(page: Page, site: Path) -> None:
    with served(site) as url:
        page.open(url)
        page.wait(DONE)
        assert_pythons(images(page), "sid1", [i % 10 for i in range(20)], list(range(20)))
        status = page.run(STATUS)
        assert status.startswith("20 images, ")
        assert status.endswith(" s in all, 1 thread")
        choose = "((id, value) => { document.getElementById(id).value = value; })"
        for name, value in (("graph", "sid2.fp32"), ("input-labels", "7"), ("seed", str(2**64 - 3)), ("samples", "3")):
            page.run(f"{choose}({name!r}, {value!r})")
        page.run("document.querySelector('#generate').click()")
        page.wait(DONE)
        assert_pythons(images(page), "sid2", [7, 7, 7], [2**64 - 3, 2**64 - 2, 2**64 - 1])
        assert page.run("location.search") == f"?graph=sid2.fp32&labels=7&seed={2**64 - 3}&samples=3"
    assert page.complaints == []


def test_a_link_carries_the_settings_and_bad_ones_are_ignored_or_refused(page: Page, site: Path) -> None:
    with served(site) as url:
        page.open(f"{url}?labels=none&seed=41&samples=2&graph=nothing")
        page.wait(DONE)
        assert_pythons(images(page), "sid1", None, [41, 42])
        page.open(f"{url}?seed=-1&samples=0&labels=%3Cimg%3E")
        page.wait(DONE)
        assert page.run("location.search") == "?graph=sid1.fp32&labels=each&seed=0&samples=20"
        page.open(f"{url}?seed={2**64 - 1}&samples=2")
        page.wait(DONE)
        assert page.run(FAILED)
        assert page.run(STATUS) == f"the last seed may be {2**64 - 1}; choose a smaller one"


def test_threads_are_used_where_the_server_isolates_the_page(page: Page, site: Path) -> None:
    with served(site, ISOLATED) as url:
        page.open(url)
        page.wait(DONE)
        assert page.run("crossOriginIsolated")
        cores = page.run("navigator.hardwareConcurrency")
        assert page.run(STATUS).endswith(f"{min(4, cores)} thread{'s' if cores > 1 else ''}")
        assert_pythons(images(page), "sid1", [i % 10 for i in range(20)], list(range(20)))


def test_names_from_a_bundle_are_text(page: Page, copy: Path) -> None:
    facts = json.loads((copy / "facts.json").read_text())
    markup = "<img src=x onerror='document.title=1'>"
    facts["name"] = markup
    facts["graphs"][0]["plan"] = facts["inputs"][0]["meaning"] = facts["output"]["about"] = markup
    facts["inputs"][0]["names"] = [markup] * 10
    (copy / "facts.json").write_text(json.dumps(facts))
    with served(copy) as url:
        page.open(f"{url}?samples=1")
        page.wait(DONE)
        assert page.run("document.querySelector('#name').textContent") == markup
        assert page.run("document.title") == markup
        assert page.run("document.images.length") == 0


@pytest.mark.parametrize("null", [True, False])
def test_no_class_is_offered_where_the_network_knows_it(page: Page, copy: Path, null: bool) -> None:
    facts = json.loads((copy / "facts.json").read_text())
    if not null:
        facts["inputs"][0]["none"] = None
    (copy / "facts.json").write_text(json.dumps(facts))
    with served(copy) as url:
        page.open(f"{url}?samples=1")
        page.wait(DONE)
        assert page.run("[...document.querySelectorAll('#input-labels option')].some(({ value }) => value === 'none')") == null


@pytest.fixture(scope="module")
def robot(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path]:
    """Arrays of numbers, made from a task and an observation; and their page."""
    root, signature = tmp_path_factory.mktemp("robot") / "robot.bundle", Signature(inputs=ROBOT, output=PATH)
    with Draft.create(root, signature) as draft:
        save_network(draft, "policy", field(signature))
        plan = ddim(karras(2, 0.5, 20.0), Guidance(2.0))
        draft.manifest.plans["two"] = PlanEntry.of(plan, denoiser="policy", solver="DDIM, 2 steps")
        draft.manifest.default = "two"
    bundle = export_graphs(Bundle.load(root), ["two"], ["fp32"])
    package(bundle, root.parent / "out", ["web"], ort_web_package=ORT_WEB)
    return bundle, root.parent / "out" / "web"


CELLS = """[...document.querySelectorAll('.numbers')].map((frame) => [...frame.querySelectorAll('tbody tr')].map((row) =>
  [...row.querySelectorAll('td')].map((cell) => Number(cell.textContent))))"""


def test_arrays_are_shown_as_tables_and_saved_whole(page: Page, robot: tuple[Bundle, Path], tmp_path: Path) -> None:
    """In the data's units, as Python makes them from the same seeds and inputs."""
    bundle, site = robot
    generator = Generator(bundle, backend="cpu")
    page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    with served(site) as url:
        page.open(f"{url}?samples=3&seed=5")
        page.wait(DONE)
        assert page.run(STATUS).startswith("3 samples, ")
        made = generator(seeds=[5, 6, 7], task=[0, 1, 2])  # nothing was observed
        np.testing.assert_allclose(page.run(CELLS), made, rtol=1e-4, atol=1e-6)
        heads = "[...document.querySelectorAll('.numbers')[0].querySelectorAll('thead th')].map((head) => head.textContent)"
        assert page.run(heads) == ["time (s)", "x (mm)", "y (m)"]
        observed = [0.5, -1.0, 2.0, 0.0, 1.0]
        for name, value in (("input-task", "2"), ("input-observation", json.dumps(observed)), ("samples", "1")):
            page.run(f"document.getElementById({name!r}).value = {value!r}")
        page.run("document.querySelector('#generate').click()")
        page.wait(f"{DONE} && document.querySelectorAll('.numbers').length === 1")
        made = generator(seeds=[5], task=[2], observation=[observed])
        np.testing.assert_allclose(page.run(CELLS), made, rtol=1e-4, atol=1e-6)
        page.run("document.querySelector('.numbers a').click()")
        saved = tmp_path / "2-seed-5.values.npy"
        deadline = time.monotonic() + 20
        while not saved.is_file() and time.monotonic() < deadline:
            time.sleep(0.05)
        np.testing.assert_allclose(np.load(saved), made[0], rtol=1e-4, atol=1e-6)
        assert "observation=%5B0.5%2C+-1.0" in page.run("location.search")
        page.run("document.getElementById('input-observation').value = '[1, 2'")
        page.run("document.querySelector('#generate').click()")
        page.wait(FAILED)
        assert page.run(STATUS) == "observation is 5 numbers as JSON"
    assert page.complaints == []


def test_a_cut_graph_is_refused_in_words(page: Page, copy: Path) -> None:
    graph = copy / "sid1.fp32.onnx"
    size = graph.stat().st_size
    graph.write_bytes(graph.read_bytes()[:-1])
    with served(copy) as url:
        page.open(url)
        page.wait(FAILED)
        assert page.run(STATUS) == f"sid1.fp32.onnx has {size - 1} of its {size} bytes; load the page again"


@pytest.mark.parametrize("altered", ["", "module", "wasm"])
def test_the_runtime_from_elsewhere_is_held_to_its_hash(altered: str, page: Page, copy: Path, tmp_path: Path) -> None:
    """Another server stands in for the CDN; with one byte of a file changed there, nothing of that file runs."""
    assert ORT_WEB
    shutil.move(copy / BESIDE, tmp_path / "cdn")
    runtime = ort_web(ORT_WEB)
    if altered:
        path = tmp_path / "cdn" / getattr(runtime, altered).name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with served(copy) as url, served(tmp_path / "cdn", {"Access-Control-Allow-Origin": "*"}) as cdn:
        write_page(EXAMPLE, ["sid1.fp32"], copy, runtime=replace(runtime, base=cdn))
        page.open(f"{url}?samples=3&labels=4")
        if altered:
            page.wait(FAILED)
            assert page.run(STATUS).startswith("This page could not start: ")
            assert page.run("document.querySelectorAll('canvas').length") == 0
        else:
            page.wait(DONE)
            assert_pythons(images(page), "sid1", [4, 4, 4], [0, 1, 2])


def test_the_policy_stops_what_the_page_did_not_bring(page: Page, site: Path) -> None:
    with served(site) as url, served(site, {"Access-Control-Allow-Origin": "*"}) as elsewhere:
        page.open(f"{url}?samples=1")
        page.wait(DONE)
        blocked = "(async () => { try { await %s; return false; } catch { return true; } })()"
        assert page.run(blocked % f"fetch('{elsewhere}facts.json')")
        assert page.run(blocked % f"import('{elsewhere}noise.js')")
        # Later, because what the debugger itself evaluates may use eval.
        later = "new Promise((done) => setTimeout(() => { try { eval('1'); done(false); } catch { done(true); } }))"
        assert page.run(later)
        page.run("document.head.append(Object.assign(document.createElement('script'), { text: 'window.injected = 1' }))")
        assert page.run("window.injected") is None
    assert sum("Content Security Policy" in complaint for complaint in page.complaints) >= 3
    page.complaints.clear()
