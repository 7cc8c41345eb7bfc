"""The benchmark of larger micro-batches runs, and measures what it says. No figure is judged: a busy machine may print
any."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.rebatch import QUICK, main, sent_bytes, slowest, steps_by_frozen_units
from benchmarks.rounds import Costs


@pytest.mark.exhaustive
def test_one_command_measures_both_tables_and_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page = tmp_path / "page.md"
    assert main(["--quick", "--output", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert [row for row in ("| 2 x ZeRO-2 ", "| 0    ", "Over the whole run") if row not in text] == []
    assert "nan" not in text
    printed = capsys.readouterr().out
    assert [line for line in text.splitlines() if line not in printed] == []


def test_zero2_reduces_in_every_micro_batch_and_zero1_once():
    once, gathered = sent_bytes(QUICK, 1, 2, 4), sent_bytes(QUICK, 1, 2, 1)
    assert once == gathered
    assert sent_bytes(QUICK, 2, 2, 4) == once
    assert 2 * once < sent_bytes(QUICK, 2, 2, 1) < 4 * once  # the gathering of the weights comes once all the same


def test_the_rank_that_takes_longest_counts_in_every_round():
    found = slowest([{"1": Costs(np.array([1.0, 4.0]))}, {"1": Costs(np.array([2.0, 3.0]))}])
    assert found["1"].seconds.tolist() == [2.0, 4.0]


def test_the_steps_at_the_frozen_counts_are_those_of_the_whole_run():
    steps = steps_by_frozen_units(QUICK.model)
    assert len(steps) == QUICK.model.num_blocks + 1
    assert steps.sum() == 62500
    assert (steps > 0).all()
