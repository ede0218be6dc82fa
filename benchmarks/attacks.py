"""What hostile clients do to `fewstep serve`: python benchmarks/attacks.py examples/digits.bundle [attack ...]

For each the memory of the server before, at most and at the end, and the slowest answer to a probe, every one on a connection
of its own. Writes benchmarks/results/attacks.json. The clients are on the same machine and take as much of it as they can.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Awaitable, Callable
from datetime import date
from pathlib import Path
from typing import Any

__all__ = ["ATTACKS", "watched"]

RESULT = Path(__file__).parent / "results" / "attacks.json"
MIB = 1 << 20
INFER, GENERATE = "/v2/models/digits/infer", "/generate"
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
Attack = Callable[[int, float], Awaitable[object]]


def post(path: str, *headers: str, body: bytes = b"") -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers)
    return "\r\n".join((*lines, "", "")).encode() + body


def whole(path: str, body: bytes, *headers: str) -> bytes:
    return post(path, *headers, f"Content-Length: {len(body)}", body=body)


def tensors(count: int, data: bytes = b"") -> bytes:
    seeds = data or json.dumps(list(range(count)))[1:-1].encode()
    labels = json.dumps([3] * count).encode()
    inputs = b'{"name":"seeds","datatype":"UINT64","shape":[%d],"data":[%s]}' % (count, seeds)
    return b'{"inputs":[%s,{"name":"labels","datatype":"INT64","shape":[%d],"data":%s}]}' % (inputs, count, labels)


async def each(count: int, client: Callable[[int], Awaitable[None]], end: float) -> None:
    """So many clients, each again and again until the end, whatever becomes of it."""

    async def again(number: int) -> None:
        while time.monotonic() < end:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError, ValueError):
                async with asyncio.timeout(max(0.1, end - time.monotonic())):
                    await client(number)
            await asyncio.sleep(0.01)

    await asyncio.gather(*(again(number) for number in range(count)))


def sends(
    count: int, first: bytes, then: bytes = b"", times: int = 1 << 30, *, pause: float = 0.0, reads: bool = True
) -> Attack:
    """Clients that send something, and then something else many times. reads: whether they look at an answer."""

    async def attack(port: int, end: float) -> None:
        async def client(_: int) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
            try:
                writer.write(first)
                for _ in range(times if then else 0):
                    await writer.drain()
                    writer.write(then)
                    await asyncio.sleep(pause)
                await writer.drain()
                if reads:
                    await reader.read(1 << 20)
                else:
                    await asyncio.sleep(30)
            finally:
                writer.transport.abort()

        await each(count, client, end)

    return attack


async def idle(port: int, end: float) -> None:
    """Connections that say nothing, more than the server has places for."""
    held: list[socket.socket] = []
    try:
        while time.monotonic() < end:
            if len(held) < 3000:
                at = socket.socket()
                at.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    at.connect(("127.0.0.1", port))
                held.append(at)
            if len(held) % 50 == 0:
                await asyncio.sleep(0.01)
    finally:
        for at in held:
            at.close()


async def sizes(port: int, end: float) -> None:
    """Every batch size, from many clients at once."""

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for count in range(1 + number, 33):
            writer.write(whole(INFER, tensors(count)))
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        writer.close()

    await each(16, client, end)


async def leaves(port: int, end: float) -> None:
    """Clients that ask for much and are gone before it is made."""

    async def client(_: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(whole(INFER, tensors(64)))
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.transport.abort()

    await each(32, client, end)


def chunked(chunk: bytes, count: int) -> Attack:
    return sends(count, post(INFER, "Transfer-Encoding: chunked"), chunk)


def inflating(mib: int) -> Attack:
    return sends(16, whole(INFER, zlib.compress(bytes(mib * MIB), 1), "Content-Encoding: deflate"))


def slow(count: int, path: str, length: int, part: int) -> Attack:
    return sends(count, post(path, f"Content-Length: {length}"), bytes(part), length // part - 1, pause=0.2, reads=False)


def values(data: bytes) -> Attack:
    return sends(8, whole(INFER, tensors(1, data)))


PICTURE = json.dumps({"samples": 64, "scale": 16, "format": "png"}).encode()
ATTACKS: dict[str, Callable[[], Attack]] = {
    "pipelining": lambda: sends(1, b"", LIVE * 4000, reads=False),
    "pipelining, read": lambda: sends(4, LIVE * 4000),
    "slow bodies": lambda: slow(200, INFER, 16 * MIB, MIB // 4),
    "slow bodies of many": lambda: slow(900, GENERATE, 32768, 512),
    "idle connections": lambda: idle,
    "slow heads": lambda: sends(900, b"GET / HTTP/1.1\r\n", b"a: b\r\n", 90, pause=0.2),
    "heads without end": lambda: sends(50, b"GET / HTTP/1.1\r\n", b"a: b\r\n" * 10_000),
    "lists": lambda: values(b"[]," * (5 * MIB) + b"1"),
    "lists that are allowed": lambda: values(b"[]," * 16_000 + b"1"),
    "nested lists": lambda: values(b",".join([b"[" * 100 + b"]" * 100] * 80_000)),
    "numbers": lambda: values(b"1," * 250_000 + b"1"),
    "bodies that inflate": lambda: inflating(512),
    "bodies that inflate a little": lambda: inflating(15),
    "bodies of small chunks": lambda: chunked(b"1\r\na\r\n" * 10_000, 50),
    "bodies without end": lambda: chunked(b"10000\r\n" + bytes(1 << 16) + b"\r\n", 16),
    "answers that nobody reads": lambda: sends(200, whole(INFER, tensors(64)), reads=False),
    "pictures": lambda: sends(32, whole(GENERATE, PICTURE)),
    "many batch sizes": lambda: sizes,
    "clients that leave": lambda: leaves,
}


def probe(port: int) -> float:
    """Seconds until a probe has its answer. Raises OSError for none."""
    begin = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=30) as at:
        at.sendall(LIVE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        answer = b""
        while got := at.recv(1 << 16):
            answer += got
    if not answer.startswith(b"HTTP/1.1 200"):
        raise OSError(f"a probe was answered {answer[:80]!r}")
    return time.monotonic() - begin


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * 4096


def watched(name: str, pid: int, port: int, seconds: float) -> dict[str, Any]:
    """An attack, run by a process of its own, and what became of the server meanwhile."""
    probe(port)
    found: dict[str, Any] = {"before": resident(pid), "most": 0, "slowest_probe_s": 0.0, "probes": 0}
    with subprocess.Popen([sys.executable, __file__, "--attack", name, str(port), str(seconds)]) as attacker:
        while attacker.poll() is None:
            found["slowest_probe_s"] = max(found["slowest_probe_s"], probe(port))
            found["most"] = max(found["most"], resident(pid))
            found["probes"] += 1
            time.sleep(0.02)
    return found | {"after": resident(pid), "attacker": attacker.returncode}


def main(root: Path, names: list[str]) -> None:
    from server import free_port, serving

    from fewstep.system.machine import described

    result: dict[str, Any] = {"date": str(date.today()), "machine": described(), "seconds": 8.0, "attacks": {}}
    port = free_port()
    with serving(root, port, "--max-samples", "64") as process:
        for name in names or ATTACKS:
            found = watched(name, process.pid, port, result["seconds"])
            result["attacks"][name] = found
            memory = [f"{found[key] / MIB:.0f}" for key in ("before", "most", "after")]
            print(f"{name}: {' '.join(memory)} MiB, probe {found['slowest_probe_s']:.3f} s of {found['probes']}", flush=True)
    if not names:
        RESULT.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    if sys.argv[1] == "--attack":
        asyncio.run(ATTACKS[sys.argv[2]]()(int(sys.argv[3]), time.monotonic() + float(sys.argv[4])))  # type: ignore[arg-type]
    else:
        main(Path(sys.argv[1]), sys.argv[2:])
