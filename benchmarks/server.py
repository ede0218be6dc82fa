"""`fewstep serve` under load from another process: python benchmarks/server.py examples/digits.bundle [throughput soak kill]

Writes benchmarks/results/server.json. Three parts, each against a server of its own:
- throughput: images per second with as many clients as keep it busy, against the bare Generator in a loop at the same batch;
  servers and loops take turns.
- soak: ten minutes of requests at twice the capacity, arriving at random, among slow, broken and oversized ones. Every answer
  is compared with the Generator's, byte by byte.
- kill -9 under a supervisor that starts the server again: how long until it is ready, and what clients saw.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np

from fewstep.runtime import Generator
from fewstep.runtime.bench import measure

RESULT = Path(__file__).parent / "results" / "server.json"
PLAN, MAX_BATCH = "sid1", 32
ROUNDS, SECONDS = 5, 8.0
CASES = {"8 images a request, 16 clients": (8, 16), "1 image a request, 64 clients": (1, 64)}
SOAK_SECONDS, TIMEOUT_S, CONNECTIONS, OVERLOAD = 600.0, 2.0, 256, 2.0
DISTINCT = 64  # requests whose answers are known


@dataclass
class Seen:
    """What clients saw."""

    answers: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    wrong: int = 0
    traces: int = 0

    def percentile_ms(self, q: float) -> float:
        return float(np.percentile(self.seconds, q)) * 1e3 if self.seconds else float("nan")


def request(seeds: list[int], labels: list[int], timeout_s: float | None = None) -> bytes:
    """A whole HTTP request of the Open Inference Protocol with binary tensors."""
    tensors = {"seeds": ("UINT64", np.array(seeds, np.uint64)), "labels": ("INT64", np.array(labels))}
    inputs = [
        {"name": n, "datatype": t, "shape": [len(v)], "parameters": {"binary_data_size": v.nbytes}}
        for n, (t, v) in tensors.items()
    ]
    asked: dict[str, Any] = {"inputs": inputs, "outputs": [{"name": "images", "parameters": {"binary_data": True}}]}
    if timeout_s is not None:
        asked["parameters"] = {"timeout": round(timeout_s * 1e6)}
    head = json.dumps(asked).encode()
    body = head + b"".join(v.tobytes() for _, v in tensors.values())
    lines = ("POST /v2/models/digits/infer HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}")
    return "\r\n".join((*lines, f"Inference-Header-Content-Length: {len(head)}", "", "")).encode() + body


def known(root: Path, count: int, timeout_s: float | None = None) -> list[tuple[bytes, bytes]]:
    """Requests and the bytes of the images they must get."""
    generator = Generator.open(root, plan=PLAN, precision="fp32", backend="cpu")
    found = []
    for i in range(DISTINCT):
        seeds = list(range(i * count, (i + 1) * count))
        labels = [seed % 10 for seed in seeds]
        found.append((request(seeds, labels, timeout_s), generator(labels=labels, seeds=seeds).tobytes()))
    return found


class Connection:
    """A connection that stays open."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, sent: bytes) -> tuple[str, bytes]:
        """Status and body; "no connection" or "broken off" for none."""
        if self.streams and self.streams[0].at_eof():  # the server closes what was idle for long
            self.close()
        try:
            if self.streams is None:
                self.streams = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return "no connection", b""
        reader, writer = self.streams
        try:
            writer.write(sent)
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.lower().split(b"\r\n")
            length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:"))
            body = await reader.readexactly(length)
            if b"connection: close" in lines:
                self.close()
            return head.split(b" ", 2)[1].decode(), body
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            return "broken off", b""

    def close(self) -> None:
        if self.streams:
            self.streams[1].close()
        self.streams = None


async def one(connection: Connection, pair: tuple[bytes, bytes], seen: Seen) -> None:
    """A request, its answer evaluated."""
    sent, right = pair
    begin = time.perf_counter()
    status, body = await connection.ask(sent)
    seen.answers[status] += 1
    if status == "200":
        seen.seconds.append(time.perf_counter() - begin)
        seen.wrong += not body.endswith(right)
    seen.traces += b"Traceback" in body or b'File "' in body


def busy(port: int, root: str, count: int, clients: int, seconds: float) -> tuple[float, Seen]:
    """Clients that ask again at once: images per second."""
    pairs, seen = known(Path(root), count), Seen()

    async def client(end: float) -> None:
        connection = Connection(port)
        while time.perf_counter() < end:
            await one(connection, random.choice(pairs), seen)
        connection.close()

    async def run(seconds: float) -> float:
        begin = time.perf_counter()
        await asyncio.gather(*(client(begin + seconds) for _ in range(clients)))
        return time.perf_counter() - begin

    asyncio.run(run(1.0))
    seen.answers.clear()
    took = asyncio.run(run(seconds))
    return seen.answers["200"] * count / took, seen


@contextlib.contextmanager
def serving(root: Path, port: int, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "fewstep.cli", "serve", str(root), "--plan", PLAN, "--precision", "fp32"]
    command += ["--backend", "cpu", "--port", str(port), "--max-batch", str(MAX_BATCH), *arguments]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        ready(port)
        yield process
    finally:
        process.terminate()
        process.wait(90)


def ready(port: int, seconds: float = 60.0) -> float:
    """Wait until the server is ready; how long it took."""
    begin = time.perf_counter()
    while time.perf_counter() < begin + seconds:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"http://127.0.0.1:{port}/v2/health/ready").status_code == 200:
                return time.perf_counter() - begin
        time.sleep(0.02)
    raise TimeoutError("the server did not get ready")


def elsewhere(function: Any, *arguments: Any) -> Any:
    """A function's result from a process of its own."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def loop(root: str) -> float:
    """Images per second of the bare Generator at the server's batch."""
    generator = Generator.open(root, plan=PLAN, precision="fp32", backend="cpu", buckets=[MAX_BATCH])
    return float(measure(generator, seconds=SECONDS)[0]["samples_per_second"])


def throughput(root: Path) -> dict[str, Any]:
    rounds: dict[str, list[float]] = {"Generator": [], **{case: [] for case in CASES}}
    failures = 0
    for _ in range(ROUNDS):
        rounds["Generator"].append(elsewhere(loop, str(root)))
        for case, (count, clients) in CASES.items():
            port = free_port()
            with serving(root, port, "--max-waiting", "1024"):
                rate, seen = elsewhere(busy, port, str(root), count, clients, SECONDS)
            rounds[case].append(rate)
            failures += seen.wrong + sum(n for status, n in seen.answers.items() if status != "200")
        print({name: f"{values[-1]:.0f} images/s" for name, values in rounds.items()}, flush=True)
    shares = {case: [rate / bare for rate, bare in zip(rounds[case], rounds["Generator"], strict=True)] for case in CASES}
    return {
        "images_per_second": rounds,
        "share_of_generator": {case: {"median": median(v), "rounds": v} for case, v in shares.items()},
        "failures": failures,
    }


def soak(port: int, root: str, rate: float, seconds: float) -> Seen:
    """Requests of 8 images that arrive at random, `rate` a second, whatever the server does; bad company beside them."""
    pairs, seen = known(Path(root), 8, TIMEOUT_S), Seen()

    async def run() -> None:
        free = [Connection(port) for _ in range(CONNECTIONS)]
        end, following = time.perf_counter() + seconds, time.perf_counter()
        tasks: set[asyncio.Task[None]] = set()
        company = [asyncio.create_task(bad(port, kind, end, seen)) for kind in BAD for _ in range(2)]

        async def send(connection: Connection) -> None:
            await one(connection, random.choice(pairs), seen)
            free.append(connection)

        while time.perf_counter() < end:
            following += random.expovariate(rate)
            await asyncio.sleep(max(0.0, following - time.perf_counter()))
            if free:
                task = asyncio.create_task(send(free.pop()))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            else:
                seen.answers["not sent: all connections wait"] += 1
        await asyncio.gather(*tasks, *company)

    asyncio.run(run())
    return seen


BAD = {
    "slow head": b"POST /generate HTTP/1.1\r\nHost: h",
    "slow body": b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{",
    "malformed": b'POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"labels"',
    "wrong shape": request([1, 2, 3], [1]),
    "huge": b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
}


async def bad(port: int, kind: str, end: float, seen: Seen) -> None:
    """A client that sends one bad thing after the other and waits for what comes back, at most 15 seconds."""
    while time.perf_counter() < end:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            seen.answers["no connection"] += 1
            await asyncio.sleep(0.5)
            continue
        answer = b""
        with contextlib.suppress(OSError):
            writer.write(BAD[kind])
            try:
                answer = await asyncio.wait_for(reader.read(65536), 15)
            except TimeoutError:
                answer = b"HTTP/1.1 no-answer "
        seen.answers[f"{kind}: {answer.split(b' ')[1].decode() if answer else 'closed'}"] += 1
        seen.traces += b"Traceback" in answer or b'File "' in answer
        writer.close()
        await asyncio.sleep(0.5)


def overloaded(root: Path, capacity: float, seconds: float) -> dict[str, Any]:
    port, resident = free_port(), []
    with serving(root, port) as process:
        context = get_context("spawn")
        with context.Pool(1) as pool:
            pending = pool.apply_async(soak, (port, str(root), OVERLOAD * capacity, seconds))
            while not pending.ready():
                resident.append(int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * 4096)
                pending.wait(5.0)
            seen: Seen = pending.get()
        assert process.poll() is None, "the server ended"
    return {
        "seconds": seconds,
        "requests_per_second": OVERLOAD * capacity,
        "deadline_s": TIMEOUT_S,
        "answers": dict(sorted(seen.answers.items())),
        "wrong": seen.wrong,
        "stack_traces": seen.traces,
        "accepted_ms": {f"p{q}": seen.percentile_ms(q) for q in (50, 90, 99, 100)},
        "resident_bytes": resident,
    }


def killed(root: Path) -> dict[str, Any]:
    """kill -9 four times under load; the supervisor is a shell loop."""
    port, back = free_port(), []
    command = f"while true; do {sys.executable} -m fewstep.cli serve {root} --plan {PLAN} --backend cpu --port {port}; done"
    with subprocess.Popen(["bash", "-c", command], stderr=subprocess.DEVNULL, start_new_session=True) as supervisor:
        try:
            ready(port)
            with get_context("spawn").Pool(1) as pool:
                pending = pool.apply_async(soak, (port, str(root), 20.0, 40.0))
                for _ in range(4):
                    time.sleep(5)
                    child = Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children").read_text().split()[0]
                    os.kill(int(child), signal.SIGKILL)
                    back.append(ready(port))
                seen: Seen = pending.get()
        finally:
            os.killpg(supervisor.pid, signal.SIGKILL)
    return {"ready_again_s": back, "answers": dict(sorted(seen.answers.items())), "wrong": seen.wrong}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def main(root: Path, parts: list[str]) -> None:
    from fewstep.system.machine import described

    result: dict[str, Any] = json.loads(RESULT.read_text("utf-8")) if parts and RESULT.exists() else {}
    result |= {"machine": described(), "plan": PLAN, "max_batch": MAX_BATCH}
    for part in parts or PARTS:
        if part == "soak":
            rates = result["throughput"]["images_per_second"]["8 images a request, 16 clients"]
            found = overloaded(root, median(rates) / 8, SOAK_SECONDS)
        else:
            found = throughput(root) if part == "throughput" else killed(root)
        result[part] = {"date": str(date.today()), **found}
        print({key: value for key, value in found.items() if key != "resident_bytes"}, flush=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


PARTS = ("throughput", "soak", "kill")

if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
