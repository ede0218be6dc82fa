"""Latencies compared fairly: everything in a process of its own, taking turns in bursts, over rounds of fresh processes.

The waiting threads of one runtime slow down another's in the same process; turns let other load on the machine meet all alike;
and where memory happens to lie moves a whole process by more than its runs differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from statistics import median, quantiles
from typing import Any

import numpy as np

__all__ = ["ROUNDS", "Run", "in_turns"]

ROUNDS, BURSTS, BURST, SETTLE, REST_SECONDS = 3, 4, 8, 3, 0.3
Run = Callable[[], np.ndarray]


def in_turns(
    build: Callable[..., Run | None],
    arguments: Mapping[str, tuple[Any, ...]],
    check: Callable[[dict[str, np.ndarray]], None] = lambda _: None,
) -> dict[str, dict[str, float]]:
    """Median and quartiles in ms of what build(*arguments) returns, for each name; without those where it returns None.

    check sees what every run gave at first.
    """
    rounds = [_round(build, arguments, check) for _ in range(ROUNDS)]
    times = {name: [t for found in rounds for t in found[name]] for name in rounds[0]}
    return {
        name: {"median_ms": median(t), "p25_ms": quantiles(t)[0], "p75_ms": quantiles(t)[2], "runs": len(t)}
        for name, t in times.items()
    }


def _round(
    build: Callable[..., Run | None],
    arguments: Mapping[str, tuple[Any, ...]],
    check: Callable[[dict[str, np.ndarray]], None],
) -> dict[str, list[float]]:
    context = get_context("spawn")
    pipes, made = {}, {}
    for name, given in arguments.items():  # one after the other: compiling takes all cores
        pipes[name], theirs = context.Pipe()
        context.Process(target=_work, args=(theirs, build, given), daemon=True).start()
        made[name] = pipes[name].recv()
    check({name: first for name, first in made.items() if first is not None})
    times: dict[str, list[float]] = {name: [] for name, first in made.items() if first is not None}
    for _ in range(BURSTS):
        for name, found in times.items():
            time.sleep(REST_SECONDS)  # threads of the last one that wait for more work spin until they give up
            pipes[name].send(BURST)
            found += pipes[name].recv()
    for pipe in pipes.values():
        with suppress(BrokenPipeError):
            pipe.send(0)
    return times


def _work(pipe: Connection, build: Callable[..., Run | None], arguments: tuple[Any, ...]) -> None:
    run = build(*arguments)
    pipe.send(None if run is None else run())
    while run is not None and (count := pipe.recv()):
        times = []
        for _ in range(count + SETTLE):
            begin = time.perf_counter()
            run()
            times.append((time.perf_counter() - begin) * 1e3)
        pipe.send(times[SETTLE:])  # the first fill the caches that the others emptied
