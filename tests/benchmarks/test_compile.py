"""The tables of `benchmarks.compile`: no graph is captured at a freeze, and kept bytes are as predicted."""

import pytest

from benchmarks.checkpointed_blocks import checkpointing_section
from benchmarks.compile import SMALL, main
from benchmarks.compiled_blocks import freezing_section


@pytest.mark.exhaustive
def test_graphs_are_captured_at_the_start_and_never_at_a_freeze() -> None:
    assert [row[1] for row in freezing_section(SMALL).rows] == ["3", "3", "0", "0"]


@pytest.mark.exhaustive
def test_kept_bytes_are_beside_the_predicted_ones() -> None:
    for row in checkpointing_section(SMALL, micro_batch=2, frozen_counts=(0, 8), rounds=1).rows:
        plain, plain_predicted, checkpointed, checkpointed_predicted = map(float, row[3:])
        assert checkpointed < plain
        assert plain == pytest.approx(plain_predicted, rel=0.1)
        assert checkpointed == pytest.approx(checkpointed_predicted, rel=0.1)


@pytest.mark.exhaustive
def test_the_command_prints_every_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick"]) == 0
    printed = capsys.readouterr().out
    for title in ("A block, eager and compiled", "Compilations of a model", "Checkpointed activations"):
        assert f"## {title}" in printed
