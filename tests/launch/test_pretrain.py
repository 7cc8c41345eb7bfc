"""The command itself, through real launchers on real ranks: a whole run, kills, resumes and refusals."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from trainer.checkpoint.manifest import list_checkpoints, verify
from trainer.checkpoint.reader import Checkpoint
from trainer.tracking.metrics import read_metrics

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
CPU_CONFIG = "ds_configs/zero2_cpu.json"
QUIET = ("tracking.pictures=never", "tracking.tensorboard=false")  # what most runs here need not wait for
RECIPE = """
model: {image_size: 64, patch_size: 16, embed_dim: 32, depth: 4, num_heads: 2, stages: [0, 1, 2, 3], decoder_dim: 32,
        decoder_heads: 2}
freezing: {how: cubic, t0: 0.8}
optimizer: {lr: 1e-3, warmup_epochs: 0.3, clip_grad: 1.0}
data: {workers: 1, window: 4, lanes: 4}
train: {epochs: 3, global_batch: 8}
checkpoint: {every_steps: 5, keep_last: 3}
tracking: {log_every: 1}
"""


def environment() -> dict[str, str]:
    launcher_made = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in launcher_made}
    return kept | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PATH": f"{BIN}:{os.environ['PATH']}"}


def command(
    launcher: str,
    recipe: Path,
    shards: Path,
    run: Path,
    *more: str,
    ds_config: str | Path = CPU_CONFIG,
) -> list[str]:
    port = str(random.randrange(20000, 40000))
    start = {
        "deepspeed": [str(BIN / "deepspeed"), "--num_gpus", "2", "--master_port", port],
        "torchrun": [str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port", port],
        "python": [sys.executable],
    }[launcher]
    arguments = ["--ds_config", ds_config, "--recipe", recipe, "--data", shards, "--output", run]
    return [*start, "launch/pretrain.py", *map(str, arguments), *more]


def launch(*args, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(*args, **kwargs), env=environment(), cwd=REPOSITORY, capture_output=True, text=True, timeout=240
    )


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Every fp32 weight and moment of a run's newest checkpoint."""
    checkpoint = Checkpoint(list_checkpoints(run / "checkpoints")[0])
    found = {}
    for name, shape in checkpoint.manifest.shapes.items():
        for kind in ("master", "exp_avg", "exp_avg_sq"):
            if (kind, name) in checkpoint._parts:
                found[f"{kind} {name}"] = checkpoint.read(kind, name, 0, torch.Size(shape).numel())
    return found


def losses(run: Path) -> dict[int, list]:
    return {e["step"]: e["loss_stages"] for e in read_metrics(run) if e["event"] == "step"}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def reference(tmp_path_factory, recipe, shards) -> tuple[Path, str]:
    """One uninterrupted run on two ranks through the deepspeed launcher, and what it printed."""
    run = tmp_path_factory.mktemp("reference") / "run"
    done = launch("deepspeed", recipe, shards, run)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return run, done.stdout


def test_a_run_goes_through_every_freeze_and_leaves_what_was_promised(reference):
    run, printed = reference
    events = read_metrics(run)
    steps = [e for e in events if e["event"] == "step"]
    freezes = [e for e in events if e["event"] == "freeze"]
    assert set(steps[0]) == {
        "event", "step", "epoch", "samples", "loss", "loss_stages", "lr", "frozen_units", "trainable_parameters",
        "images_per_second", "step_seconds", "data_wait_seconds", "mfu", "optimizer_bytes", "memory_bytes",
        "loss_scale", "skipped_steps", "bad_steps", "substituted_samples"}  # fmt: skip
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
    names = {path.name for path in run.iterdir()}
    assert {"recipe.yaml", "ds_config.json", "environment.json", "metrics.jsonl", "tensorboard", "pictures",
            "checkpoints"} <= names  # fmt: skip
    assert "auto" not in (run / "ds_config.json").read_text()
    assert {path.name for path in (run / "pictures").iterdir()} == {"reconstructions.png", "freeze_timeline.png"}
    assert len(list_checkpoints(run / "checkpoints")) == 3
    assert (run / "checkpoints" / "latest").read_text() == list_checkpoints(run / "checkpoints")[0].name
    for promised in ("by stage:", "freezes", "step time before the first freeze", "reconstructions.png"):
        assert promised in printed


def test_the_pictures_are_in_tensorboard(reference):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(reference[0] / "tensorboard")).Reload()
    assert set(board.Tags()["images"]) == {"reconstructions", "freeze_timeline"}
    assert "learning_rate/unit_04" in board.Tags()["scalars"]


def test_a_run_killed_after_a_freeze_resumes_to_the_same_bits(reference, recipe, shards, tmp_path):
    run = tmp_path / "run"
    process = subprocess.Popen(
        command("deepspeed", recipe, shards, run, *QUIET), env=environment(), cwd=REPOSITORY,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    first_freeze = next(e["step"] for e in read_metrics(reference[0]) if e["event"] == "freeze")
    wait_for_step(process, run, first_freeze + 1, event="checkpoint")  # between the freeze and the kill
    kill_everything(process)
    assert read_metrics(run)[-1]["event"] != "end"
    done = launch("deepspeed", recipe, shards, run, *QUIET)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    resumed = [e for e in read_metrics(run) if e["event"] == "resume"]
    assert len(resumed) == 1
    assert resumed[0]["step"] > first_freeze
    assert losses(run) == losses(reference[0])
    ours, theirs = weights(run), weights(reference[0])
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_stopped_by_a_signal_saves_and_continues_on_another_world_size_and_zero_stage(
    reference, recipe, shards, tmp_path
):
    run = tmp_path / "run"
    process = subprocess.Popen(
        command("python", recipe, shards, run, *QUIET, ds_config="ds_configs/zero0_fp32.json"),
        env=environment(), cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)  # fmt: skip
    wait_for_step(process, run, 12)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 75, printed[-3000:]
    stopped_at = list_checkpoints(run / "checkpoints")[0].name
    assert f"stopped at step {int(stopped_at.removeprefix('step_'))} (SIGTERM)" in printed
    zero3 = tmp_path / "zero3.json"
    zero3.write_text('{"zero_optimization": {"stage": 3}}')
    done = launch("torchrun", recipe, shards, run, *QUIET, ds_config=zero3)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    event = next(e for e in read_metrics(run) if e["event"] == "resume")
    assert (event["world_size_then"], event["world_size_now"]) == (1, 2)
    # The same images and masks at every step; one rank sums its gradients in another order than two. Adam turns that
    # last-bit noise into up to a few 1e-4 where the true gradient is near zero, so losses are the fair comparison.
    ours, theirs = losses(run), losses(reference[0])
    assert ours.keys() == theirs.keys()
    for step, values in theirs.items():
        assert [value is None for value in ours[step]] == [value is None for value in values]
        live = [(a, b) for a, b in zip(ours[step], values, strict=True) if b is not None]
        assert all(a == pytest.approx(b, rel=2e-4) for a, b in live)


def test_a_run_whose_deepspeed_command_is_terminated_saves_and_leaves_nothing_behind(recipe, shards, tmp_path):
    run = tmp_path / "run"
    process = subprocess.Popen(
        command("deepspeed", recipe, shards, run, *QUIET), env=environment(), cwd=REPOSITORY,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    wait_for_step(process, run, 12)
    family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()  # deepspeed's front end dies of it at once and tells nobody
    _, alive = psutil.wait_procs([psutil.Process(process.pid), *family], timeout=90)
    process.wait()
    assert not alive
    newest = list_checkpoints(run / "checkpoints")[0]
    assert int(newest.name.removeprefix("step_")) >= 12
    assert verify(newest).world_size == 2


def test_going_back_to_an_earlier_checkpoint_sets_the_later_ones_aside(reference, recipe, shards, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(reference[0], run)
    early = list_checkpoints(run / "checkpoints")[-1]
    done = launch("python", recipe, shards, run, *QUIET, "--resume", str(early))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("set aside step_") == 2
    assert len(list((run / "checkpoints").glob("set_aside_step_*"))) == 2
    assert (run / "checkpoints" / "latest").read_text() == list_checkpoints(run / "checkpoints")[0].name
    assert losses(run).keys() == losses(reference[0]).keys()


def test_weights_that_blew_up_do_not_push_out_good_checkpoints(recipe, shards, tmp_path):
    run = tmp_path / "run"
    done = launch("python", recipe, shards, run, *QUIET, "optimizer.lr=1e30", "tracking.log_every=20",
                  "checkpoint.every_steps=3", "optimizer.clip_grad=0")  # fmt: skip
    assert done.returncode == 1
    assert "10 steps in a row" in done.stdout
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1], parse_constant=pytest.fail)
    for directory in list_checkpoints(run / "checkpoints"):
        state = Checkpoint(directory)
        assert all(state.read("master", name, 0, torch.Size(shape).numel()).isfinite().all()
                   for name, shape in state.manifest.shapes.items())  # fmt: skip


def test_resuming_a_finished_run_changes_nothing_and_tells_the_summary_again(reference, recipe, shards):
    run, _ = reference
    before = weights(run)
    done = launch("python", recipe, shards, run, *QUIET)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step time before the first freeze" in done.stdout
    assert all(torch.equal(value, before[name]) for name, value in weights(run).items())


def test_another_recipe_cannot_continue_a_run(reference, recipe, shards):
    done = launch("python", recipe, shards, reference[0], "optimizer.weight_decay=0.3")
    assert done.returncode == 2
    assert "optimizer.weight_decay was 0.05 and is 0.3 now" in done.stderr


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["train.global_batch=100000"], "fewer than one global batch of 100000"),
        (["train.micro_batch=3"], "micro-batch"),
        (["train.precision=fp16"], "precision"),
        (["train.epoch=3"], "did you mean 'epochs'"),
        (["data.lanes=3"], "lanes"),
        (["--bogus"], "--bogus"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(more, words, recipe, shards, tmp_path):
    done = launch("python", recipe, shards, tmp_path / "run", *more)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert words in lines[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("launcher", "code"), [("deepspeed", 2), ("torchrun", 1)])  # torchrun has one code for all
def test_bad_input_is_told_once_for_all_ranks(launcher, code, recipe, shards, tmp_path):
    done = launch(launcher, recipe, shards, tmp_path / "run", "train.epoch=3")
    assert done.returncode == code
    assert done.stderr.count("unknown key train.epoch; did you mean 'epochs'?") == 1


def test_missing_files_are_named(recipe, shards, tmp_path):
    done = launch("python", recipe, tmp_path / "nowhere", tmp_path / "run")
    assert done.returncode == 2
    assert "nowhere" in done.stderr
    done = launch("python", recipe, shards, tmp_path / "run", ds_config="ds_configs/zero9.json")
    assert done.returncode == 2
    assert "ds_configs/zero9.json" in done.stderr


def test_the_recipe_is_explained_without_a_run():
    done = subprocess.run(
        [sys.executable, "launch/pretrain.py", "--help-recipe"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "mask_ratio" in done.stdout


def wait_for_step(process: subprocess.Popen, run: Path, step: int, event: str = "step") -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be interrupted"
        metrics = run / "metrics.jsonl"
        if metrics.exists() and any(
            line["event"] == event and line["step"] >= step
            for line in map(json.loads, metrics.read_text().splitlines()[:-1])
        ):
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not reached in time")


def kill_everything(process: subprocess.Popen) -> None:
    """kill -9 of the ranks first, then of their workers and launchers."""
    family = psutil.Process(process.pid).children(recursive=True)
    for member in [*family, psutil.Process(process.pid)]:
        member.kill()
    process.wait()
    psutil.wait_procs(family, timeout=30)
