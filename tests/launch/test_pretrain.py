"""The command itself, through real launchers on real ranks: a whole run, kills, resumes and refusals."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.launch.running import REPOSITORY, Run, assert_same_run
from trainer.checkpoint.manifest import list_checkpoints, step_of, verify
from trainer.checkpoint.reader import Checkpoint


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Run:
    """One uninterrupted run on two ranks through the deepspeed launcher. Not to be started again: copy it."""
    with Run(tmp_path_factory.mktemp("reference") / "run", shards) as run:
        run.start("deepspeed", "tracking.pictures=end", "tracking.pictures_at=[23]", "tracking.tensorboard=true")
        assert run.end() == 0, run.printed[-3000:]
        return run


@pytest.fixture
def run(tmp_path: Path, shards: Path) -> Iterator[Run]:
    with Run(tmp_path / "run", shards) as run:
        yield run


@pytest.fixture
def finished(run: Run, reference: Run) -> Run:
    """A copy of the reference."""
    shutil.copytree(reference.directory, run.directory)
    return run


def test_a_run_goes_through_every_freeze_and_leaves_what_was_promised(reference: Run) -> None:
    events = reference.events()
    steps = [e for e in events if e["event"] == "step"]
    freezes = [e for e in events if e["event"] == "freeze"]
    assert set(steps[0]) == {
        "event", "step", "epoch", "samples", "loss", "loss_stages", "lr", "frozen_units", "trainable_parameters",
        "images_per_second", "step_seconds", "data_wait_seconds", "mfu", "optimizer_bytes", "memory_bytes",
        "loss_scale", "skipped_steps", "bad_steps", "substituted_samples", "nodes", "stragglers"}  # fmt: skip
    assert set(freezes[0]) == {
        "event", "step", "units", "stages_removed", "seconds", "optimizer_bytes_before", "optimizer_bytes_after",
        "trainable_parameters", "micro_batch"}  # fmt: skip
    assert [unit for e in freezes for unit in e["units"]] == [0, 1, 2, 3]  # all but the last, first layers first
    assert [stage for e in freezes for stage in e["stages_removed"]] == [0, 1, 2]
    assert steps[-1]["loss_stages"][:3] == [None] * 3
    assert steps[-1]["lr"][:4] == [None] * 4
    for event in freezes:
        assert len(event["optimizer_bytes_after"]) == 2
        assert max(event["optimizer_bytes_after"]) < min(event["optimizer_bytes_before"])
    assert events[0]["event"] == "start"
    assert events[-1]["event"] == "end"
    assert {e["event"] for e in events} == {"start", "step", "freeze", "checkpoint", "end"}
    left = reference.directory
    names = {path.name for path in left.iterdir()}
    assert {"recipe.yaml", "ds_config.json", "environment.json", "metrics.jsonl", "tensorboard", "pictures", "logs",
            "checkpoints"} <= names  # fmt: skip
    assert "auto" not in (left / "ds_config.json").read_text()
    views = {"reconstructions.png", "features.png", "attention_block_04.png"}
    assert {path.name for path in (left / "pictures").glob("*.png")} == views | {"freeze_timeline.png"}
    assert {path.name for path in (left / "pictures" / "step_00000023").iterdir()} == views
    assert len(list_checkpoints(left / "checkpoints")) == 3
    assert (left / "checkpoints" / "latest").read_text() == list_checkpoints(left / "checkpoints")[0].name
    for promised in ("by stage:", "freezes", "step time before the first freeze", "reconstructions.png"):
        assert promised in reference.printed


def test_the_pictures_are_in_tensorboard(reference: Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(reference.directory / "tensorboard")).Reload()
    assert set(board.Tags()["images"]) == {"reconstructions", "features", "attention_block_04", "freeze_timeline"}
    assert [image.step for image in board.Images("reconstructions")] == [23, 54]
    assert "learning_rate/unit_04" in board.Tags()["scalars"]


@pytest.mark.exhaustive  # test_interruptions.py kills in worse moments
def test_a_run_killed_after_a_freeze_resumes_to_the_same_bits(run: Run, reference: Run) -> None:
    first_freeze = next(e["step"] for e in reference.events() if e["event"] == "freeze")
    run.start("deepspeed")
    run.wait_for_step(first_freeze + 1, event="checkpoint")  # between the freeze and the kill
    run.kill()
    assert run.events()[-1]["event"] != "end"
    run.start("deepspeed")
    assert run.end() == 0, run.printed[-3000:]
    (resumed,) = (e for e in run.events() if e["event"] == "resume")
    assert resumed["step"] > first_freeze
    assert_same_run(run, reference)


@pytest.mark.slow
def test_a_run_stopped_by_a_signal_saves_and_continues_on_another_world_size_and_zero_stage(
    run: Run, reference: Run, tmp_path: Path
) -> None:
    run.start("python", ds_config="ds_configs/zero0_fp32.json")
    run.wait_for_step(12)
    run.launcher.send_signal(signal.SIGTERM)
    assert run.end() == 75, run.printed[-3000:]
    stopped_at = step_of(list_checkpoints(run.directory / "checkpoints")[0])
    assert f"stopped at step {stopped_at} (SIGTERM)" in run.printed
    zero3 = tmp_path / "zero3.json"
    zero3.write_text('{"zero_optimization": {"stage": 3}}')
    run.start("torchrun", ds_config=zero3)
    assert run.end() == 0, run.printed[-3000:]
    event = next(e for e in run.events() if e["event"] == "resume")
    assert (event["world_size_then"], event["world_size_now"]) == (1, 2)
    # The same images and masks at every step; one rank sums its gradients in another order than two. Adam turns that
    # last-bit noise into up to a few 1e-4 where the true gradient is near zero, so losses are the fair comparison.
    ours, theirs = run.losses(), reference.losses()
    assert ours.keys() == theirs.keys()
    for step, values in theirs.items():
        assert [value is None for value in ours[step]] == [value is None for value in values]
        live = [(a, b) for a, b in zip(ours[step], values, strict=True) if b is not None]
        assert all(a == pytest.approx(b, rel=2e-4) for a, b in live)


@pytest.mark.slow
def test_a_run_whose_deepspeed_command_is_terminated_saves_and_leaves_nothing_behind(run: Run) -> None:
    run.start("deepspeed")
    run.wait_for_step(12)
    run.launcher.terminate()  # deepspeed's front end dies of it at once and tells nobody
    assert run.end() == -signal.SIGTERM
    newest = list_checkpoints(run.directory / "checkpoints")[0]
    assert step_of(newest) >= 12
    assert verify(newest).world_size == 2


@pytest.mark.slow
def test_going_back_to_an_earlier_checkpoint_sets_the_later_ones_aside(finished: Run, reference: Run) -> None:
    checkpoints = finished.directory / "checkpoints"
    finished.start("python", "--resume", str(list_checkpoints(checkpoints)[-1]))
    assert finished.end() == 0, finished.printed[-3000:]
    assert finished.printed.count("set aside step_") == 2
    assert len(list(checkpoints.glob("set_aside_step_*"))) == 2
    assert (checkpoints / "latest").read_text() == list_checkpoints(checkpoints)[0].name
    assert finished.losses().keys() == reference.losses().keys()


@pytest.mark.slow
def test_weights_that_blew_up_do_not_push_out_good_checkpoints(run: Run) -> None:
    run.start("python", "optimizer.lr=1e30", "optimizer.clip_grad=0", "tracking.log_every=20",
              "checkpoint.every_steps=1", "checkpoint.keep_last=1")  # fmt: skip
    assert run.end() == 1, run.printed[-3000:]
    assert "10 steps in a row" in run.printed
    assert json.loads((run.directory / "metrics.jsonl").read_text().splitlines()[-1], parse_constant=pytest.fail)
    (kept,) = list_checkpoints(run.directory / "checkpoints")
    state = Checkpoint(kept)
    assert all(state.read("master", name, 0, torch.Size(shape).numel()).isfinite().all()
               for name, shape in state.manifest.shapes.items())  # fmt: skip


def test_resuming_a_finished_run_changes_nothing_and_tells_the_summary_again(finished: Run, reference: Run) -> None:
    finished.start("python")
    assert finished.end() == 0, finished.printed[-3000:]
    assert "step time before the first freeze" in finished.printed
    assert_same_run(finished, reference)


@pytest.mark.parametrize(("launcher", "code"), [("deepspeed", 2), ("torchrun", 1)])  # torchrun has one code for all
def test_bad_input_is_told_once_for_all_ranks(run: Run, launcher: str, code: int) -> None:
    run.start(launcher, "train.epoch=3")
    assert run.end() == code
    assert run.printed.count("unknown key train.epoch; did you mean 'epochs'?") == 1
    assert not run.directory.exists()


def test_the_recipe_is_explained_without_a_run() -> None:
    done = subprocess.run(
        [sys.executable, "launch/pretrain.py", "--help-recipe"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "mask_ratio" in done.stdout
