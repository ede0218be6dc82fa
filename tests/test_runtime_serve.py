"""`fewstep serve` as a process: the protocol's own client, signals, silent and slow clients, the playground in a browser."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import re
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
from ports import free_port

from fewstep.runtime import Generator

BUNDLE = Path(__file__).parent.parent / "examples" / "digits.bundle"


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process that is ready, and its address."""
    port = free_port()
    command = [sys.executable, "-m", "fewstep.cli", "serve", str(BUNDLE), "--backend", "cpu", "--port", str(port), *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{address}/v2/health/ready").status_code == 200:
                    break
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process, address
    finally:
        process.kill()
        process.communicate()


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
    np.testing.assert_array_equal(made, Generator.open(BUNDLE, plan="sid1", backend="cpu")([3, 1, 4], seeds=[5, 6, 7]))
    other = client.infer("digits", inputs, parameters={"plan": "sid2"}).as_numpy("images")
    assert (other != made).any()
    with pytest.raises(pytest.importorskip("tritonclient.utils").InferenceServerException, match="no model 'x'"):
        client.infer("x", inputs)


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
        np.testing.assert_array_equal(image, generator([i % 10], seeds=[i]))


def test_sigterm_answers_what_was_accepted_and_ends_with_code_0() -> None:
    with (
        serving("--plan", "sid1", "--max-batch", "4", "--max-waiting", "256") as (process, address),
        concurrent.futures.ThreadPoolExecutor(32) as pool,
    ):
        with httpx.Client(base_url=address, timeout=60) as client:
            sent = [pool.submit(client.post, "/generate", json={"labels": [1] * 4}) for _ in range(32)]
            while not re.search(r"waiting_images{[^}]*} [1-9]", httpx.get(f"{address}/metrics").text):
                pass
            process.send_signal(signal.SIGTERM)
            outcomes = [future.exception() or future.result().status_code for future in sent]
        assert process.wait(30) == 0
    assert 200 in outcomes
    # Connections that the kernel had not handed over yet are refused; an answer, once begun, is an image.
    assert all(outcome in (200, 503) or isinstance(outcome, httpx.TransportError) for outcome in outcomes)
    lost = [o for o in outcomes if isinstance(o, httpx.ReadError | httpx.RemoteProtocolError)]
    assert not lost


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
        page.wait("document.getElementById('status').innerText === '16 images from seed 17'")
        assert page.complaints == []
