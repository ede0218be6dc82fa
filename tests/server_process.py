"""`fewstep serve` as a process."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from ports import free_port

BUNDLE = Path(__file__).parent.parent / "examples" / "digits.bundle"

__all__ = ["BUNDLE", "serving"]


@contextlib.contextmanager
def serving(*arguments: str, bundle: Path = BUNDLE, host: str = "127.0.0.1") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process that is ready, and its address."""
    port = free_port()
    command = [sys.executable, "-m", "fewstep.cli", "serve", str(bundle), "--backend", "cpu", "--host", host]
    process = subprocess.Popen([*command, "--port", str(port), *arguments], stderr=subprocess.PIPE, text=True)
    try:
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
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
