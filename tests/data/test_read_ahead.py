"""Reading ahead keeps the order, the bound and the errors of plain reading."""

import threading
import weakref

import pytest

import trainer.data.reader
from tests.data.test_loader import STEPS_PER_EPOCH, make_loader
from trainer.data.read_ahead import read_ahead
from trainer.data.reader import RawSample, read_samples


@pytest.mark.parametrize("depth", [0, 1, 3, 50])
def test_results_come_in_the_order_of_the_requests(depth):
    release = threading.Event()

    def read(number: int) -> int:
        if depth > 1 and number == 0:
            release.wait(10)  # later ones are done before the first
        if number == 1:
            release.set()
        return number * 10

    assert list(read_ahead(read, range(20), depth)) == list(range(0, 200, 10))


def test_no_more_than_the_depth_is_asked_for_ahead():
    asked = []

    def requests():
        for number in range(20):
            asked.append(number)
            yield number

    results = read_ahead(lambda number: number, requests(), 3)
    for number in range(10):
        assert next(results) == number
        assert len(asked) == number + 4
    results.close()
    assert len(asked) == 13


def test_an_error_comes_at_its_turn_and_what_has_not_begun_is_dropped():
    begun = []

    def read(number: int) -> int:
        begun.append(number)
        if number == 2:
            raise OSError("broken")
        return number

    results = read_ahead(read, range(100), 2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(OSError, match="broken"):
        next(results)
    assert len(begun) <= 5


@pytest.mark.parametrize(("lanes", "depth"), [(2, 0), (2, 4), (4, 2), (8, 1)])
def test_a_loader_holds_no_more_undecoded_bytes_than_it_says(shards, monkeypatch, lanes, depth):
    held, most, lock = 0, 0, threading.Lock()

    def dropped(size: int) -> None:
        nonlocal held
        with lock:
            held -= size

    def counting(index, samples, storage) -> list[RawSample]:
        nonlocal held, most
        found = read_samples(index, samples, storage)
        for raw in found:
            weakref.finalize(raw, dropped, len(raw.content))
        with lock:
            held += sum(len(raw.content) for raw in found)
            most = max(most, held)
        return found

    monkeypatch.setattr(trainer.data.reader, "read_samples", counting)
    loader = make_loader(shards, end=STEPS_PER_EPOCH, lanes=lanes, read_ahead=depth)
    for _ in loader:
        pass
    assert held == 0
    # Samples are not all of the mean size.
    assert 0.3 * loader.memory_bound() < most < 1.25 * loader.memory_bound()
