"""The batcher on the shipped digits: what callers get is what they would get alone, in order, in time, or a reason."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep.runtime import Generator
from fewstep.runtime.batcher import Batcher, ClosedError, DeadlineError, FullError
from fewstep.runtime.finite import NotFiniteError
from fewstep.runtime.generator import Inputs

BUNDLE = Path(__file__).parent.parent / "examples" / "digits.bundle"


class Gated(Generator):
    """A real generator whose batches begin when the gate opens, and that keeps what they were made of."""

    gate: threading.Event
    batches: list[list[int]]

    def make(self, inputs: Inputs) -> Any:
        self.gate.wait(30)
        self.batches.append(list(inputs.seeds))
        if 666 in inputs.seeds:
            raise NotFiniteError("one of them is not finite")
        return super().make(inputs)


@pytest.fixture(scope="module")
def loaded() -> Gated:
    return Gated.open(BUNDLE, backend="cpu", buckets=(1, 2, 4))  # type: ignore[return-value]


@pytest.fixture
def gated(loaded: Gated) -> Gated:
    loaded.gate, loaded.batches = threading.Event(), []
    return loaded


@pytest.fixture
def batcher(gated: Gated) -> Iterator[Batcher]:
    with Batcher(gated, max_waiting=8) as made:
        yield made
        gated.gate.set()


def occupy(batcher: Batcher) -> Future[Any]:
    """A request that is being made, behind the closed gate."""
    future = batcher.submit(labels=[0], seeds=[100])
    while not future.running():
        time.sleep(0.001)
    return future


def test_requests_that_wait_are_joined_in_their_order_and_get_their_own_images(batcher: Batcher, gated: Gated) -> None:
    first = occupy(batcher)
    requests = [([3], [0]), ([1, 4], [1, 2]), ([1], [3]), ([5, 9], [4, 5])]
    futures = [batcher.submit(labels=labels, seeds=seeds) for labels, seeds in requests]
    gated.gate.set()
    images = [future.result(30) for future in futures]
    assert gated.batches == [[100], [0, 1, 2, 3], [4, 5]]
    for (labels, seeds), made in zip(requests, images, strict=True):
        np.testing.assert_array_equal(made, gated(labels=labels, seeds=seeds))
    assert first.result().shape == (1, 28, 28, 1)


def test_a_request_with_a_class_and_one_without_share_a_batch(batcher: Batcher, gated: Gated) -> None:
    occupy(batcher)
    futures = [batcher.submit(labels=[7], seeds=[1]), batcher.submit(seeds=[2])]
    gated.gate.set()
    np.testing.assert_array_equal(futures[0].result(30), gated(labels=[7], seeds=[1]))
    np.testing.assert_array_equal(futures[1].result(30), gated(seeds=[2]))
    assert gated.batches[1] == [1, 2]


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(batcher: Batcher, gated: Gated) -> None:
    occupy(batcher)
    futures = [batcher.submit(labels=[0, 0, 0, 0], seeds=range(4)) for _ in range(2)]
    with pytest.raises(FullError, match="8 samples are waiting, which is all the queue takes") as caught:
        batcher.submit(labels=[0], seeds=[0])  # with the gate closed, who waited would wait for ever
    assert caught.value.retry_s > 0
    gated.gate.set()
    assert all(future.result(30).shape == (4, 28, 28, 1) for future in futures)
    assert batcher.submit(labels=[0], seeds=[0]).result(30).shape == (1, 28, 28, 1)  # there is room again


def test_what_could_not_be_made_in_time_is_refused_before_it_waits(batcher: Batcher, gated: Gated) -> None:
    occupy(batcher)
    batcher.submit(labels=[0], seeds=[0])
    batcher.seconds_per_sample = 10.0
    with pytest.raises(FullError, match="try again in 10"):
        batcher.submit(labels=[0], seeds=[1], timeout_s=5)
    batcher.submit(labels=[0], seeds=[1], timeout_s=50)
    gated.gate.set()


def test_a_request_whose_deadline_passed_costs_no_work(batcher: Batcher, gated: Gated) -> None:
    occupy(batcher)
    late, other = batcher.submit(labels=[0], seeds=[1], timeout_s=0.01), batcher.submit(labels=[0], seeds=[2])
    time.sleep(0.05)
    gated.gate.set()
    with pytest.raises(DeadlineError, match="deadline passed"):
        late.result(30)
    other.result(30)
    assert gated.batches == [[100], [2]]


def test_a_cancelled_request_leaves_the_queue(batcher: Batcher, gated: Gated) -> None:
    occupy(batcher)
    gone, other = batcher.submit(labels=[0], seeds=[1]), batcher.submit(labels=[0], seeds=[2])
    assert gone.cancel()
    assert batcher.waiting == 1  # at once, not when its turn would have come
    gated.gate.set()
    other.result(30)
    assert gated.batches == [[100], [2]]
    assert batcher.waiting == 0
    with pytest.raises(CancelledError):
        gone.result()


def test_one_request_that_fails_does_not_spoil_its_neighbours(batcher: Batcher, gated: Gated) -> None:
    occupy(batcher)
    futures = [batcher.submit(labels=[i], seeds=[seed]) for i, seed in enumerate([1, 666, 2])]
    gated.gate.set()
    with pytest.raises(NotFiniteError):
        futures[1].result(30)
    for i in (0, 2):
        np.testing.assert_array_equal(futures[i].result(30), gated(labels=[i], seeds=[[1, 666, 2][i]]))


def test_asyncio_requests_are_joined_and_a_cancelled_task_takes_its_request_out(batcher: Batcher, gated: Gated) -> None:
    async def scene() -> list[Any]:
        tasks = [asyncio.create_task(batcher.generate(labels=[i], seeds=[i])) for i in range(6)]
        await asyncio.sleep(0.1)
        tasks[5].cancel()
        await asyncio.sleep(0.1)  # asyncio passes it on in a turn of its own
        gated.gate.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    images = asyncio.run(scene())
    assert isinstance(images[5], asyncio.CancelledError)
    for i in range(5):
        np.testing.assert_array_equal(images[i], gated(labels=[i], seeds=[i]))
    assert [seed for batch in gated.batches[:3] for seed in batch] == [0, 1, 2, 3, 4]


def test_closing_finishes_what_waits_and_takes_no_more(gated: Gated) -> None:
    batcher = Batcher(gated)
    occupy(batcher)
    waiting = batcher.submit(labels=[1], seeds=[1])
    closer = threading.Thread(target=batcher.close)
    closer.start()
    time.sleep(0.05)
    with pytest.raises(ClosedError):
        batcher.submit(labels=[1], seeds=[1])
    gated.gate.set()
    closer.join(30)
    assert waiting.result(0).shape == (1, 28, 28, 1)
    assert not closer.is_alive()


def test_an_idle_batcher_waits_for_others_only_as_long_as_it_may(gated: Gated) -> None:
    gated.gate.set()
    with Batcher(gated, wait_ms=200) as batcher:
        futures = [batcher.submit(labels=[i], seeds=[i]) for i in range(2)]
        assert [future.result(30).shape[0] for future in futures] == [1, 1]
        assert gated.batches == [[0, 1]]
        full = [batcher.submit(labels=[i], seeds=[i]) for i in range(4)]  # a full batch does not wait
        for future in full:
            future.result(30)
        assert gated.batches[1] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("choice", "message"),
    [({"max_batch": 0}, "max_batch >= 1"), ({"max_waiting": 2}, "max_waiting >= max_batch")]
    + [({"wait_ms": value}, r"wait_ms in 0\.\.60000") for value in (-1, float("inf"), float("nan"))],
)
def test_settings_out_of_range_are_refused(choice: dict[str, Any], message: str, gated: Gated) -> None:
    with pytest.raises(ValueError, match=message):
        Batcher(gated, **choice)


def test_a_wait_ends_before_the_deadline_of_whoever_waits(gated: Gated) -> None:
    gated.gate.set()
    with Batcher(gated, wait_ms=60_000) as batcher:
        patient = batcher.submit(labels=[0], seeds=[0])
        hasty = batcher.submit(labels=[1], seeds=[1], timeout_s=0.1)
        assert hasty.result(30).shape == patient.result(30).shape
    assert gated.batches == [[0, 1]]


def test_a_thread_that_fails_leaves_nobody_waiting(gated: Gated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    batcher = Batcher(gated)
    occupy(batcher)
    waiting = batcher.submit(labels=[1], seeds=[1])
    monkeypatch.setattr(batcher, "_next", lambda: 1 / 0)
    gated.gate.set()
    with pytest.raises(ClosedError, match="has failed"):
        waiting.result(30)
    with pytest.raises(ClosedError):
        batcher.submit(labels=[1], seeds=[1])


@pytest.mark.parametrize("timeout", [float("nan"), "x"])
def test_a_timeout_is_a_number(timeout: Any, batcher: Batcher) -> None:
    with pytest.raises(ValueError, match="timeout_s is a number of seconds"):
        batcher.submit(labels=[0], seeds=[0], timeout_s=timeout)


def test_a_deadline_in_the_past_is_a_deadline_that_passed(batcher: Batcher, gated: Gated) -> None:
    gated.gate.set()
    with pytest.raises(DeadlineError):
        batcher.submit(labels=[0], seeds=[0], timeout_s=-0.005).result(30)


def test_a_request_larger_than_a_batch_has_one_of_its_own(gated: Gated) -> None:
    with Batcher(gated, max_request=6) as batcher:
        occupy(batcher)
        futures = [
            batcher.submit(labels=[1], seeds=[1]),
            batcher.submit(labels=[2] * 6, seeds=range(6)),
            batcher.submit(labels=[3], seeds=[3]),
        ]
        gated.gate.set()
        assert [len(future.result(30)) for future in futures] == [1, 6, 1]
    assert gated.batches == [[100], [1], [0, 1, 2, 3, 4, 5], [3]]


def test_bad_requests_are_refused_before_they_wait(batcher: Batcher, gated: Gated) -> None:
    gated.gate.set()
    with pytest.raises(ValueError, match="0 to 9, got 10"):
        batcher.submit(labels=[10], seeds=[0])
    with pytest.raises(ValueError, match="at most 4 samples, got 5"):
        batcher.submit(labels=[0] * 5, seeds=range(5))
    with pytest.raises(ValueError, match="seeds"):
        batcher.submit(labels=[0], seeds=3)  # type: ignore[arg-type]
