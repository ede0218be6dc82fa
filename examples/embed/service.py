"""A service on a TCP port, without a web framework: a line "LABEL SEED MILLISECONDS" comes in, a PGM or PPM goes out.

    python service.py digits.bundle --port 8008
    echo 3 0 500 | nc -N 127.0.0.1 8008 > three.pgm

Every connection is a coroutine. What all of them ask for while a batch runs, the Batcher joins into the next.
"""

from __future__ import annotations

import argparse
import asyncio
from contextlib import closing, suppress

from fewstep.runtime import Generator
from fewstep.runtime.batcher import Batcher, DeadlineError, FullError


async def answer(batcher: Batcher, line: bytes) -> bytes:
    """The image that a line asks for, or a line that says why there is none."""
    try:
        label, *numbers = line.decode().strip().rsplit(maxsplit=2)  # a class by number or by name, which may hold blanks
        seed, deadline_ms = map(int, numbers)
    except ValueError:
        return b"refused: a request is a label, a seed and the milliseconds until it must begin, such as 3 0 500\n"
    try:
        images = await batcher.generate(labels=[label], seeds=[seed], timeout_s=deadline_ms / 1e3)
    except FullError as error:  # raised at once, so that the client can wait or go elsewhere
        return f"busy: try again in {error.retry_s:.1f} s\n".encode()
    except (DeadlineError, OverflowError, ValueError) as error:
        return f"refused: {error}\n".encode()
    _, height, width, channels = images.shape
    return f"P{5 if channels == 1 else 6} {width} {height} 255\n".encode() + images.tobytes()


async def main(bundle: str, port: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(ConnectionError, ValueError):  # the client vanished, or its line does not end
            async for line in reader:
                writer.write(await answer(batcher, line))
                await writer.drain()

    generator = Generator.open(bundle)
    generator.warm_up()
    with Batcher(generator, max_waiting=64) as batcher:
        server = await asyncio.start_server(serve, "127.0.0.1", port)
        print("listening on port", server.sockets[0].getsockname()[1], flush=True)
        await asyncio.Event().wait()  # until Ctrl+C


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve images of a bundle on a TCP port.")
    parser.add_argument("bundle")
    parser.add_argument("--port", type=int, default=8008, help="0 takes a free one")
    try:
        with suppress(KeyboardInterrupt):
            asyncio.run(main(**vars(parser.parse_args())))
    except (OSError, OverflowError, ValueError) as error:
        parser.exit(2, f"service.py: {error}\n")
