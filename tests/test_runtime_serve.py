"""`fewstep serve` as a process: the protocol's own client, signals, silent and slow clients, the playground in a browser."""

from __future__ import annotations

import concurrent.futures
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from browser import CHROMIUM, browser
from PIL import Image
from ports import free_port
from server_process import BUNDLE, serving

from fewstep.runtime import Generator

INFER = {
    "inputs": [
        {"name": "seeds", "datatype": "UINT64", "shape": [1], "data": [5]},
        {"name": "labels", "datatype": "INT64", "shape": [1], "data": [3]},
    ]
}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving("--plan", "sid1", "--plan", "sid2", "--max-batch", "8") as (_, found):
        yield found


@pytest.mark.parametrize("binary", [True, False])
def test_tritons_client_queries_and_infers(binary: bool, address: str) -> None:
    http = pytest.importorskip("tritonclient.http")
    client = http.InferenceServerClient(address.removeprefix("http://"))
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "1")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    given = {"seeds": np.array([5, 6, 7], np.uint64), "labels": np.array([3, 1, 4])}
    inputs = []
    for spec in client.get_model_metadata("digits")["inputs"]:
        values = given[spec["name"]]
        inputs.append(http.InferInput(spec["name"], list(values.shape), spec["datatype"]))
        inputs[-1].set_data_from_numpy(values, binary_data=binary)
    outputs = [http.InferRequestedOutput("images", binary_data=binary)]
    made = client.infer("digits", inputs, outputs=outputs, request_id="x", timeout=5_000_000).as_numpy("images")
    np.testing.assert_array_equal(made, Generator.open(BUNDLE, plan="sid1", backend="cpu")(labels=[3, 1, 4], seeds=[5, 6, 7]))
    other = client.infer("digits", inputs, parameters={"plan": "sid2"}).as_numpy("images")
    assert (other != made).any()
    with pytest.raises(pytest.importorskip("tritonclient.utils").InferenceServerException, match="no model 'x'"):
        client.infer("x", inputs)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_tritons_client_compresses_both_ways(coding: str, address: str) -> None:
    http = pytest.importorskip("tritonclient.http")
    client = http.InferenceServerClient(address.removeprefix("http://"))
    inputs = [http.InferInput("seeds", [2], "UINT64"), http.InferInput("labels", [2], "INT64")]
    for given, values in zip(inputs, (np.array([5, 6], np.uint64), np.array([3, 1])), strict=True):
        given.set_data_from_numpy(values)
    algorithms = {"request_compression_algorithm": coding, "response_compression_algorithm": coding}
    made = client.infer("digits", inputs, **algorithms)
    expected = Generator.open(BUNDLE, plan="sid1", backend="cpu")(labels=[3, 1], seeds=[5, 6])
    np.testing.assert_array_equal(made.as_numpy("images"), expected)
    answer = httpx.post(f"{address}/v2/models/digits/infer", json=INFER, headers={"Accept-Encoding": coding})
    assert answer.headers["content-encoding"] == coding
    assert np.array(answer.json()["outputs"][0]["data"], np.uint8).reshape(expected[:1].shape).tolist() == expected[:1].tolist()
    plain = httpx.post(
        f"{address}/v2/models/digits/infer", json=INFER, headers={"Accept-Encoding": f"identity, {coding};q=0.5"}
    )
    assert "content-encoding" not in plain.headers


def test_tritons_client_lists_loads_and_is_told_what_changed() -> None:
    http = pytest.importorskip("tritonclient.http")
    with serving("--plan", "sid1", "--max-batch", "2", "--admin") as (process, address):
        client = http.InferenceServerClient(address.removeprefix("http://"))
        assert client.get_model_repository_index() == [
            {"name": "digits", "version": "1", "state": "READY", "reason": "current"}
        ]
        client.load_model("digits")
        assert [model["version"] for model in client.get_model_repository_index()] == ["1", "2"]
        assert httpx.post(f"{address}/v2/repository/models/digits/rollback").json() == {"version": "1"}
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=30)[1]
        assert process.returncode == 0
    assert re.search(r"^\d{4}-\d\d-\d\d .* digits: version 2 loaded from .*, after version 1$", said, re.MULTILINE)
    assert re.search(r"^\d{4}-\d\d-\d\d .* digits: rolled back from version 2 to 1$", said, re.MULTILINE)


def test_an_ipv6_host_answers_and_the_name_in_the_bundle_is_the_model(tmp_path: Path) -> None:
    shutil.copytree(BUNDLE, tmp_path / "another.bundle")
    with serving("--plan", "sid1", "--max-batch", "1", bundle=tmp_path / "another.bundle", host="::1") as (process, address):
        assert address.startswith("http://[::1]:")
        assert httpx.get(f"{address}/v2/models/digits").json()["name"] == "digits"
        process.send_signal(signal.SIGTERM)
        assert f"ready on {address}\n" in process.communicate(timeout=30)[1]


def test_many_clients_at_once_get_their_own_images(address: str) -> None:
    generator = Generator.open(BUNDLE, plan="sid1", backend="cpu")
    with httpx.Client(base_url=address, timeout=60) as client, concurrent.futures.ThreadPoolExecutor(16) as pool:

        def ask(i: int) -> np.ndarray:
            body = {
                "inputs": [
                    {"name": "seeds", "datatype": "UINT64", "shape": [1], "data": [i]},
                    {"name": "labels", "datatype": "INT64", "shape": [1], "data": [i % 10]},
                ]
            }
            answer = client.post("/v2/models/digits/infer", json=body).json()
            return np.array(answer["outputs"][0]["data"], np.uint8).reshape(1, 28, 28, 1)

        images = list(pool.map(ask, range(64)))
    for i, image in enumerate(images):
        np.testing.assert_array_equal(image, generator(labels=[i % 10], seeds=[i]))


def test_sigterm_answers_what_was_accepted_and_ends_with_code_0() -> None:
    with (
        serving("--plan", "sid1", "--max-batch", "4", "--max-waiting", "256") as (process, address),
        concurrent.futures.ThreadPoolExecutor(32) as pool,
    ):
        with httpx.Client(base_url=address, timeout=60) as client:
            sent = [pool.submit(client.post, "/generate", json={"labels": [1] * 4}) for _ in range(32)]
            while not re.search(r"waiting_samples{[^}]*} [1-9]", httpx.get(f"{address}/metrics").text):
                pass
            process.send_signal(signal.SIGTERM)
            outcomes = [future.exception() or future.result().status_code for future in sent]
        assert process.wait(30) == 0
    assert 200 in outcomes
    # Connections that the kernel had not handed over yet are refused; an answer, once begun, is an image.
    assert all(outcome in (200, 503) or isinstance(outcome, httpx.TransportError) for outcome in outcomes)
    lost = [o for o in outcomes if isinstance(o, httpx.ReadError | httpx.RemoteProtocolError)]
    assert not lost


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_curl_line_of_the_docs_brings_a_picture(address: str, tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "serving.md").read_text("utf-8")
    (line,) = re.findall(r"^    (curl .*)$", page, re.MULTILINE)
    command = shlex.split(line.replace("localhost:8000", address.removeprefix("http://")))
    subprocess.run([*command, "--no-progress-meter", "--fail"], cwd=tmp_path, check=True, timeout=60)
    assert Image.open(tmp_path / "digits.png").size == (2 * 28 * 4, 28 * 4)


def test_sigterm_while_models_load_ends_with_code_0() -> None:
    """Threads are in ONNX Runtime then, which aborts where Python ends under them: nine of ten starts did."""
    for delay in (0.0, 0.1, 0.2, 0.3, 0.4):
        port = free_port()
        command = [sys.executable, "-m", "fewstep.cli", "serve", str(BUNDLE), "--backend", "cpu", "--port", str(port)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 0, said


def test_a_bundle_that_cannot_be_served_ends_the_command_with_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fewstep.cli", "serve", str(tmp_path / "none.bundle"), "--port", str(free_port())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "is not a bundle" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_said(address: str) -> None:
    command = [sys.executable, "-m", "fewstep.cli", "serve", str(BUNDLE), "--port", address.rsplit(":", 1)[1]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"port {address.rsplit(':', 1)[1]} of 127.0.0.1 cannot be used" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_client_that_says_nothing_is_let_go(address: str) -> None:
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as silent:
        silent.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\n")  # and no more
        assert silent.recv(1) == b""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (PATH or FEWSTEP_CHROMIUM)")
def test_the_playground_shows_two_samplers_from_the_same_seeds(address: str, tmp_path: Path) -> None:
    with browser() as page:
        page.open(f"{address}/")
        page.wait("document.querySelectorAll('#results img').length === 1")
        page.run(
            "document.getElementById('second').value = 'sid2'; document.getElementById('seed').value = '18446744073709551'"
        )
        page.run("document.getElementById('form').requestSubmit()")
        page.wait("document.querySelectorAll('#results img').length === 2")
        text = page.run("document.body.innerText")
        assert "18446744073709551" in text
        assert len(re.findall(r"[\d.]+ ms on the server", text)) == 2
        sizes = page.run("[...document.querySelectorAll('#results img')].map(i => [i.naturalWidth, i.naturalHeight])")
        assert sizes == [[8 * 56, 2 * 56]] * 2
        page.screenshot(Path(os.environ.get("FEWSTEP_SCREENSHOTS", tmp_path)) / "playground.png")
        page.run("document.getElementById('seed').value = '1'; document.getElementById('next').click()")
        page.wait("document.getElementById('status').innerText === '16 samples from seed 17'")
        assert page.complaints == []
