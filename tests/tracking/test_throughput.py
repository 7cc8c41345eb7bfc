"""The figures of a log line, from clocks and losses that are known."""

import math

import pytest
import torch

from tests.distributed import run_on_ranks
from trainer.tracking import throughput
from trainer.tracking.losses import StageLosses
from trainer.tracking.pace import gather_rows
from trainer.tracking.throughput import Throughput, measure_gemm_rate


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_step_time_leaves_out_what_is_aside_and_mfu_is_flops_over_time_and_rate(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    meter = Throughput(gemm_rate=100.0, _start=0.0)
    for _ in range(4):
        with meter.waiting():
            clock.now += 0.5
        clock.now += 1.5
        meter.step_done(flops=50.0)
    with meter.aside():
        clock.now += 7.0
    assert meter.read() == {"step_seconds": 2.0, "data_wait_seconds": 0.5, "mfu": 4 * 50.0 / 8.0 / 100.0}
    meter.restart()
    clock.now += 1.0
    meter.step_done(flops=100.0)
    assert meter.read() == {"step_seconds": 1.0, "data_wait_seconds": 0.0, "mfu": 1.0}


def test_the_gemm_rate_is_that_of_a_working_processor():
    assert 1e8 < measure_gemm_rate(torch.device("cpu"), torch.float32) < 1e15


def stage_means() -> tuple[list, list, list]:
    import torch.distributed as dist

    rank = dist.get_rank()
    losses = StageLosses(3, torch.device("cpu"))
    losses.add([0, 1, 2], torch.tensor([1.0, 2.0, 3.0]) + rank, images=4)
    losses.add([1, 2], torch.tensor([6.0, 7.0]) + rank, images=12)  # stage 0 froze, and the micro-batch grew
    first = losses.reduce(live=[1, 2])
    losses.add([1, 2], torch.tensor([1.0, torch.nan]), images=4)
    losses.add([1, 2], torch.tensor([torch.inf if rank else 3.0, torch.nan]), images=4)
    return first, losses.reduce(live=[1, 2]), gather_rows([float(rank), 7.0], torch.device("cpu"))


def test_stage_losses_are_means_of_what_is_finite_over_the_images_of_all_ranks_and_start_anew():
    for first, second, rows in run_on_ranks(stage_means, 2):
        assert first == [None, pytest.approx(5.5), pytest.approx(6.5)]
        assert second[:2] == [None, pytest.approx((1 + 1 + 3) / 3)]
        assert math.isnan(second[2])
        assert rows == [[0.0, 7.0], [1.0, 7.0]]
