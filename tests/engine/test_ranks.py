"""The harness itself: a failing, dying or hanging rank must fail the test, and quickly."""

import os
import time

import pytest
import torch
import torch.distributed as dist

from tests.distributed import RankFailure, RankPool


def summed_ranks(factor: int) -> float:
    total = torch.tensor(float(dist.get_rank() * factor))
    dist.all_reduce(total)
    return total.item()


def rank_one_raises() -> None:
    if dist.get_rank() == 1:
        raise ValueError("the unlucky rank")
    dist.barrier()


def rank_one_dies() -> None:
    if dist.get_rank() == 1:
        print("last words", flush=True)
        os._exit(3)
    dist.barrier()


def rank_one_sleeps() -> None:
    if dist.get_rank() == 1:
        time.sleep(600)
    dist.barrier()


def test_every_rank_returns_its_result(two_ranks: RankPool) -> None:
    assert two_ranks.run(summed_ranks, 3) == [3.0, 3.0]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        pytest.param(rank_one_raises, "the unlucky rank", marks=pytest.mark.slow),
        (rank_one_dies, "last words"),
        (rank_one_sleeps, "did not finish"),
    ],
    ids=["raises", "dies", "hangs"],
)
def test_a_failed_rank_is_reported_and_leaves_no_process(case, words: str) -> None:
    with RankPool(2) as ranks:
        ranks.run(summed_ranks, 1)
        processes = list(ranks._processes)
        with pytest.raises(RankFailure, match=words):
            ranks.run(case, timeout=3)
        assert all(process.returncode is not None for process in processes)
