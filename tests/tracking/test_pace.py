"""Which rank keeps the others waiting, from times that are known."""

import pytest
import torch

from trainer.tracking import pace
from trainer.tracking.pace import DeviceTimer, by_node, describe_stragglers, stragglers

HOSTS = ["a", "a", "b", "b"]


def test_a_machine_shows_its_share_of_the_images_and_the_times_of_its_slowest_rank() -> None:
    assert by_node(HOSTS, [1.0, 2.0, 3.0, 4.0], [0.1, 0.0, 0.0, 0.2], images_per_second=80.0) == [
        {"node": "a", "ranks": 2, "images_per_second": 40.0, "forward_seconds": 2.0, "data_wait_seconds": 0.1},
        {"node": "b", "ranks": 2, "images_per_second": 40.0, "forward_seconds": 4.0, "data_wait_seconds": 0.2},
    ]


def test_who_is_far_behind_the_median_is_named_worst_first() -> None:
    found = stragglers(HOSTS, [0.2, 0.2, 0.3, 0.21], [0.0, 0.9, 0.0, 0.0], step_seconds=1.5)
    assert [(entry["rank"], entry["in"]) for entry in found] == [(1, "data"), (2, "forward")]
    assert describe_stragglers(found) == (
        "held up by rank 1 on a takes 0.9 s a step waiting for data, 0 s at the median; "
        "rank 2 on b takes 0.3 s a step in the forward pass, 0.2 s at the median"
    )


def test_of_two_ranks_the_slower_can_be_named_and_of_many_only_the_worst() -> None:
    assert [entry["rank"] for entry in stragglers(["a", "b"], [1.0, 2.0], [0.0, 0.0], 3.0)] == [1]
    many = stragglers(["a"] * 9, [1.0] * 5 + [2.0, 3.0, 4.0, 5.0], [0.0] * 9, 5.0)
    assert describe_stragglers(many).startswith("held up by rank 8 on a")
    assert describe_stragglers(many).endswith("; and 1 more")


def test_what_is_no_part_of_a_step_worth_telling_is_not_told() -> None:
    assert stragglers(HOSTS, [0.01, 0.02, 0.01, 0.01], [0.0, 0.0, 0.0, 0.004], step_seconds=1.0) == []


def test_a_timer_adds_up_and_starts_anew_when_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = 0.0

        def perf_counter(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    timer = DeviceTimer(torch.device("cpu"))
    for _ in range(2):
        with timer.measuring():
            clock.now += 0.5
        clock.now += 3.0
    assert timer.read() == 1.0
    assert timer.read() == 0.0
