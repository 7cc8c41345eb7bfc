"""Growing the micro-batch at a freeze changes what a step costs, and nothing else."""

from pathlib import Path

import numpy as np
import pytest

from tests.distributed import RankPool
from tests.engine.rebatching import (
    CONSTANT,
    FIRST,
    GLOBAL_BATCH,
    GROWING,
    SECOND,
    STEPS,
    Outcome,
    refusals,
    resume,
    train,
)
from tests.engine.resume_matrix import TOLERANCES

FAST = [(0, "bf16"), (1, "fp32"), (2, "bf16")]
"""ZeRO stage and precision."""
SLOW = [(0, "fp32"), (1, "bf16"), (1, "fp16"), (2, "fp32"), (2, "fp16"), (3, "fp32"), (3, "bf16"), (3, "fp16")]
SETTINGS = [*FAST, *(pytest.param(*setting, marks=pytest.mark.slow) for setting in SLOW)]


def losses(by_rank: list[Outcome]) -> np.ndarray:
    """Loss of each step, the mean over the global batch."""
    return np.mean([outcome.losses for outcome in by_rank], axis=0)


def weight_difference(a: Outcome, b: Outcome) -> float:
    return max(float(np.abs(a.weights[name] - b.weights[name]).max()) for name in b.weights)


def assert_equal_to_rounding(found: list[Outcome], expected: list[Outcome], precision: str) -> None:
    """The gradient of a step is the same sum in another order; see `resume_matrix.TOLERANCES`."""
    tolerance = TOLERANCES[precision]
    assert weight_difference(found[0], expected[0]) <= tolerance
    steps = len(found[0].losses)
    assert np.abs(losses(found) - losses(expected)[-steps:]).max() <= 4 * tolerance


@pytest.mark.parametrize(("stage", "precision"), SETTINGS)
def test_a_growing_micro_batch_changes_a_run_by_rounding_and_is_resumed_exactly(
    two_ranks: RankPool, tmp_path: Path, stage: int, precision: str
) -> None:
    root = str(tmp_path / "checkpoints")
    growing = two_ranks.run(train, stage, precision, GROWING, root, FIRST)
    for outcome in growing:
        assert outcome.micro_batches == [4] * 6 * FIRST + [8] * 3 * (SECOND - FIRST) + [12] * 2 * (STEPS - SECOND)
        assert outcome.global_samples == STEPS * GLOBAL_BATCH
    assert_equal_to_rounding(growing, two_ranks.run(train, stage, precision, CONSTANT), precision)
    # The engine that changed in place is, in every bit, one that was made anew at the change: nothing of the old
    # accumulation is left in it.
    for resumed, live in zip(two_ranks.run(resume, stage, precision, GROWING, root), growing, strict=True):
        assert resumed.losses == live.losses[FIRST:]
        assert weight_difference(resumed, live) == 0


@pytest.mark.parametrize("stage", [2, *(pytest.param(stage, marks=pytest.mark.slow) for stage in (0, 1, 3))])
def test_a_run_resumed_between_two_changes_on_fewer_ranks_is_equal_to_rounding(
    two_ranks: RankPool, one_rank: RankPool, tmp_path: Path, stage: int
) -> None:
    root = str(tmp_path / "checkpoints")
    uninterrupted = two_ranks.run(train, stage, "fp32", GROWING, root, FIRST + 1)
    again = one_rank.run(resume, stage, "fp32", GROWING, root)
    assert_equal_to_rounding(again, uninterrupted, "fp32")
    assert again[0].micro_batches == [8] * 6 * (SECOND - FIRST - 1) + [12] * 4 * (STEPS - SECOND)


def test_a_change_off_a_boundary_or_to_no_divisor_is_refused(one_rank: RankPool) -> None:
    (messages,) = one_rank.run(refusals, 2)
    off_boundary = (
        "RuntimeError: set_micro_batch() in the middle of a gradient accumulation: call it after the last step()"
    )
    assert messages == {
        "before step()": off_boundary,
        "between micro-batches": off_boundary,
        "no divisor": "ValueError: a rank's 8 images a step are not a whole number of micro-batches of 3",
        "nothing": "ValueError: a rank's 8 images a step are not a whole number of micro-batches of 0",
    }
