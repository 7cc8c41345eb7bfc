"""Pictures drawn during a training show it and leave it as it is."""

from pathlib import Path

import pytest
import torch

from tests.distributed import RankPool
from tests.loop.small_training import small_plan, small_training
from trainer.checkpoint.manifest import list_checkpoints
from trainer.checkpoint.reader import Checkpoint
from trainer.tracking.metrics import read_metrics

AT = [3, 16]  # no frozen unit yet; and a stage gone


def train(shards: Path, output: Path, stage: int, pictures_at: list[int]) -> bytes:
    """A whole short run, and torch's random state after it. Runs on a rank."""
    plan = small_plan(
        shards, output, {"zero_optimization": {"stage": stage}},
        train={"epochs": 1, "micro_batch": 8}, optimizer={"warmup_epochs": 0.1},
        tracking={"pictures": "never", "pictures_at": pictures_at, "tensorboard": True, "picture_images": 2},
    )  # fmt: skip
    with small_training(plan) as training:
        training.run()
    return torch.get_rng_state().numpy().tobytes()


@pytest.mark.parametrize("stage", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_pictures_during_a_run_change_no_bit_of_it(
    one_rank: RankPool, shards: Path, tmp_path: Path, stage: int
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    drawn, plain = tmp_path / "drawn", tmp_path / "plain"
    (state_drawn,), (state_plain,) = (
        one_rank.run(train, shards, output, stage, at) for output, at in ((drawn, AT), (plain, []))
    )
    assert state_drawn == state_plain
    ours, theirs = ([e["loss_stages"] for e in read_metrics(run) if e["event"] == "step"] for run in (drawn, plain))
    assert ours == theirs
    assert ours[AT[0]].count(None) == 0
    assert ours[AT[1]].count(None) > 0, "a stage froze before the second picture"
    ours, theirs = (Checkpoint(list_checkpoints(run / "checkpoints")[0]).weights() for run in (drawn, plain))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    names = {"reconstructions", "features", "attention_block_04"}
    assert {path.name for path in (drawn / "pictures").iterdir()} == {f"step_{step:08d}" for step in AT}
    for step in AT:
        assert {path.stem for path in (drawn / "pictures" / f"step_{step:08d}").iterdir()} == names
    board = EventAccumulator(str(drawn / "tensorboard")).Reload()
    assert set(board.Tags()["images"]) == names
    for name in names:
        assert [image.step for image in board.Images(name)] == AT
    assert not list((plain / "pictures").iterdir())
