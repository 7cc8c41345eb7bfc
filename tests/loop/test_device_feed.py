"""Micro-batches on their way to an accelerator. There is none here: a stand-in writes down what it is asked to do."""

import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from trainer import device_feed
from trainer.data.batches import MicroBatch
from trainer.device_feed import DeviceFeed, on_device
from trainer.planning.activations import MICRO_BATCHES_AT_ONCE
from trainer.tracking import throughput
from trainer.tracking.throughput import Throughput

CPU = torch.device("cpu")
PATIENCE = 30.0


class Accelerator:
    """One whose streams and events do nothing. `asked`: what it was asked for, in order."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def Stream(self) -> str:
        return "side"

    def Event(self) -> "Event":
        return Event()

    @contextmanager
    def stream(self, stream: str) -> Iterator[None]:
        self.asked.append(f"copy on {stream}")
        yield

    def current_stream(self) -> "Computing":
        return Computing(self.asked)

    def set_device(self, index: int | None) -> None:
        self.asked.append(f"device {index}")


class Computing:
    """The stream of whoever asks for the current one."""

    def __init__(self, asked: list[str]):
        self._asked = asked

    def __str__(self) -> str:
        return "compute"

    def wait_event(self, event: "Event") -> None:
        self._asked.append(f"{self} after {event.recorded_on}")


class Event:
    recorded_on = ""

    def record(self, stream: str) -> None:
        self.recorded_on = stream


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Accelerator:
    stand_in = Accelerator()
    monkeypatch.setattr(device_feed, "get_accelerator", lambda: stand_in)
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda tensor, stream: stand_in.asked.append(f"kept for {stream}")
    )
    return stand_in


def micro_batch(number: int) -> MicroBatch:
    images = torch.full((2, 3, 4, 4), number, dtype=torch.uint8)
    return MicroBatch(images, torch.tensor([number, number]), torch.zeros(2, dtype=torch.int64), [f"{number}"])


class Source:
    """A loader of `count` micro-batches: which of them it was asked for, and by which thread it was ended."""

    def __init__(self, count: int, error: Exception | None = None):
        self.drawn: list[int] = []
        self.ended_by: str | None = None
        self.asked = threading.Condition()
        self._count, self._error = count, error

    def __iter__(self) -> Generator[MicroBatch, None, None]:
        try:
            for number in range(self._count):
                with self.asked:
                    self.drawn.append(number)
                    self.asked.notify_all()
                yield micro_batch(number)
            if self._error:
                raise self._error
        finally:
            self.ended_by = threading.current_thread().name

    def wait_until_drawn(self, count: int) -> bool:
        with self.asked:
            return self.asked.wait_for(lambda: len(self.drawn) >= count, timeout=PATIENCE)


def test_micro_batches_arrive_whole_and_in_order(accelerator: Accelerator) -> None:
    with DeviceFeed(iter(Source(5)), CPU) as feed:
        found = list(feed)
        with pytest.raises(StopIteration):
            next(feed)
    assert [batch.keys for batch in found] == [[str(number)] for number in range(5)]
    for number, batch in enumerate(found):
        assert torch.equal(batch.images, micro_batch(number).images)
        assert torch.equal(batch.mask_keys, micro_batch(number).mask_keys)


def test_the_next_micro_batch_is_drawn_and_copied_while_one_computes(accelerator: Accelerator) -> None:
    source = Source(9)
    with DeviceFeed(iter(source), CPU) as feed:
        next(feed)
        assert source.wait_until_drawn(3), "nobody asked for the second, which computes, let alone the third"
        assert len(source.drawn) <= MICRO_BATCHES_AT_ONCE - 1  # the one before, which there is not yet
    assert source.ended_by == "device feed"


def test_the_copy_is_on_a_stream_of_its_own_and_the_computation_waits_for_it_on_the_device(
    accelerator: Accelerator,
) -> None:
    with DeviceFeed(iter(Source(1)), CPU) as feed:
        next(feed)
    assert accelerator.asked == [
        "device None", "copy on side", "compute after side", "kept for compute", "kept for compute"]  # fmt: skip


def test_what_the_loader_raises_reaches_the_training_after_all_that_came_before(accelerator: Accelerator) -> None:
    with DeviceFeed(iter(Source(2, error=ValueError("damaged"))), CPU) as feed:
        assert [next(feed).keys, next(feed).keys] == [["0"], ["1"]]
        for _ in range(2):
            with pytest.raises(ValueError, match="damaged"):
                next(feed)


def test_a_device_that_cannot_be_set_ends_the_training_and_does_not_hang_it(
    accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def set_device(index: int | None) -> None:
        raise RuntimeError("no such device")

    def ask(feed: DeviceFeed) -> None:
        with pytest.raises(RuntimeError, match="no such device"):
            next(feed)
        raised.set()

    monkeypatch.setattr(accelerator, "set_device", set_device)
    raised = threading.Event()
    with DeviceFeed(iter(Source(1)), CPU) as feed:
        threading.Thread(target=ask, args=[feed], daemon=True).start()  # which may wait for ever
        assert raised.wait(PATIENCE)


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_leaving_early_ends_the_loader(accelerator: Accelerator, taken: int) -> None:
    source = Source(1000)
    with DeviceFeed(iter(source), CPU) as feed:
        for _ in range(taken):
            next(feed)
    assert source.ended_by == "device feed"
    assert len(source.drawn) <= taken + 4


def test_a_cpu_draws_from_the_loader_itself() -> None:
    source: Any = Source(2)
    with on_device(source, CPU) as feed:
        next(feed)
        assert source.drawn == [0]
    assert source.ended_by == threading.current_thread().name


def test_the_wait_for_data_is_the_time_that_the_loader_takes_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = 0.0

        def perf_counter(self) -> float:
            return self.now

    class SlowSource(Source):
        def __iter__(self) -> Generator[MicroBatch, None, None]:
            for batch in super().__iter__():
                clock.now += 0.25
                yield batch

    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    meter = Throughput(gemm_rate=1.0, _start=0.0)
    source: Any = SlowSource(8)
    with on_device(source, CPU) as feed:
        for _ in range(4):
            for _ in range(2):  # micro-batches
                with meter.waiting():
                    next(feed)
                clock.now += 1.0  # forward and backward
            meter.step_done(flops=1.0)
    assert meter.read() == {"step_seconds": 2.5, "data_wait_seconds": 0.5, "mfu": 4 / 10}
