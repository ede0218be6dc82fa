"""Threads of the CPU: fewer where fewer are as fast, more for larger batches, asleep while there is nothing to do."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fewstep.artifact.bundle import Bundle
from fewstep.backends import threads
from fewstep.backends.sessions import open_session
from fewstep.backends.threads import Sessions, fewest
from fewstep.runtime import Generator
from fewstep.system.cores import usable_cores

BUNDLE = Path(__file__).parent.parent / "examples" / "digits.bundle"
NEVER = float("inf")


def taking(costs: dict[int, float]) -> Callable[[int], Callable[[], None]]:
    """What sleeps for as many ms as each number of threads costs."""
    return lambda n: lambda: time.sleep(costs[n] / 1e3)


@pytest.mark.parametrize(
    ("cores", "costs", "best"),
    [
        (8, {8: 12, 4: 8, 2: 3, 1: 9}, 2),
        (8, {8: 3, 4: 9}, 8),  # and no more is tried
        (6, {6: 12, 3: 6, 1: 2}, 1),
        (2, {2: 3, 1: 3}, 1),  # equal: the other core is for others
        (1, {}, 1),
    ],
)
def test_the_search_ends_at_the_fewest_threads_that_are_as_fast_as_any(cores: int, costs: dict[int, float], best: int) -> None:
    assert fewest(cores, taking(costs), NEVER) == best


def test_after_its_time_the_search_tries_nothing_more() -> None:
    assert fewest(8, taking({}), until=0.0) == 8


def sessions(opened: list[int], asked: int | None = None) -> Sessions[int]:
    """Sessions that are the number of their threads."""

    def open_with(n: int) -> int:
        opened.append(n)
        return n

    return Sessions(open_with, asked)


def run_in(n: int, batch: int) -> Callable[[], None]:
    """Small batches lose by threads, large ones gain."""
    return lambda: time.sleep(0.003 * (n if batch < 8 else 4 / n))


def test_each_batch_size_has_threads_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 4)
    opened: list[int] = []
    found = sessions(opened)
    assert found.about == "threads: 4 (as many as cores may be used, unmeasured)"
    assert found.at(1) == 4
    assert found.choose({1: 0.01, 4: 0.01, 8: 0.01, 32: 0.01}, run_in)
    assert [found.at(batch) for batch in (1, 4, 7, 8, 32, 1000)] == [1, 1, 1, 4, 4, 4]
    assert found.about == "threads: 1, 4 from a batch of 8 on (measured; 4 may be used)"
    assert opened == [4, 2, 1]  # one session for each that was tried


def test_a_large_network_is_not_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 4)
    opened: list[int] = []
    found = sessions(opened)
    assert not found.choose({1: 3.0, 2: 6.0}, run_in)
    assert opened == [4]
    assert found.about == "threads: 4 (measured; 4 may be used)"


def test_threads_that_were_asked_for_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 4)
    opened: list[int] = []
    found = sessions(opened, asked=3)
    assert not found.choose({1: 0.01}, run_in)
    assert opened == [3]
    assert found.about == "threads: 3 (you asked for that)"


@pytest.mark.parametrize(("plan", "precision"), [("sid1", "fp32"), ("sid1", "int8"), ("sid2", "fp32")])
def test_images_do_not_depend_on_the_number_of_threads(plan: str, precision: str) -> None:
    labels, seeds = [i % 10 for i in range(9)], range(9)
    measured = Generator.open(BUNDLE, plan=plan, precision=precision, backend="cpu", buckets=(1, 4))
    first = measured(labels=labels, seeds=seeds)
    measured.warm_up()
    assert f"{usable_cores()} may be used" in measured.reason or usable_cores() == 1
    np.testing.assert_array_equal(measured(labels=labels, seeds=seeds), first)
    for count in (1, 2, 3):
        generator = Generator.open(BUNDLE, plan=plan, precision=precision, backend="cpu", threads=count)
        np.testing.assert_array_equal(generator(labels=labels, seeds=seeds), first)
        assert generator.reason == f"you asked for it; threads: {count} (you asked for that)"


def test_a_process_bound_to_one_core_runs_one_thread() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from fewstep.runtime import Generator\n"
        f"generator = Generator.open({str(BUNDLE)!r}, backend='cpu'); before = len(os.listdir('/proc/self/task'))\n"
        "generator.warm_up(); assert len(os.listdir('/proc/self/task')) <= before; print(generator.reason)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "you asked for it; threads: 1 (as many as cores may be used)\n"


def test_threads_sleep_while_nothing_runs(digits: Bundle) -> None:
    """Spinning ones take most of a core for a while after every call."""
    session = open_session(digits.file(digits.manifest.graphs["sid1.fp32"].file), "sid1", threads=3)
    feeds = {"noise": np.zeros((8, 1, 1, 28, 28), np.float32), "labels": np.arange(8)}
    idle = 0.0
    for _ in range(5):
        session.run(["images"], feeds)
        before = time.process_time()
        time.sleep(0.1)
        idle += time.process_time() - before
    assert idle < 0.05
