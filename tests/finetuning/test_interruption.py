"""A signal to the real command, and the same command again."""

import signal
from pathlib import Path

import pytest
import torch
import yaml

from tests.distributed import RankPool
from tests.finetuning.small import EPOCH, small_tree, start
from tests.launch.running import Run
from tests.loop.going_on import KINDS, state
from trainer.loop import DONE

EPOCHS = 8
"""48 steps, which take longer than the signal does."""


@pytest.mark.slow
def test_the_same_command_after_sigterm_ends_as_if_nothing_had_happened(
    two_ranks: RankPool, split: Path, pretrained: Path, tmp_path: Path
) -> None:
    train = {"epochs": EPOCHS}
    whole = tmp_path / "whole"
    assert two_ranks.run(start, split, pretrained, whole, None, {"train": train}) == [DONE] * 2

    recipe = yaml.safe_dump(small_tree(split, pretrained, train=train))
    with Run(tmp_path / "halved", split, program="launch/finetune.py", recipe=recipe) as run:
        run.start("deepspeed", ds_config=whole / "given_0.json")
        run.wait_for_step(3)
        run.rank(1).send_signal(signal.SIGTERM)
        assert run.end() == 75, run.printed[-3000:]
        stopped_at = max(event["step"] for event in run.events())
        assert 3 <= stopped_at < EPOCHS * EPOCH
        assert f"stopped at step {stopped_at} (" in run.printed
        run.start("deepspeed", ds_config=whole / "given_0.json")
        assert run.end() == 0, run.printed[-3000:]
        assert any(event["event"] == "resume" and event["step"] == stopped_at for event in run.events())

    ours, theirs = state(run.directory), state(whole)
    assert ours.keys() == theirs.keys()
    assert {key.split()[0] for key in ours} == set(KINDS)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
