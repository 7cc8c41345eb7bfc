"""`train.profile`: the steps asked for are on disk, and the training is the same with it as without."""

import gzip
import json
import logging
import resource
import subprocess
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import REPOSITORY, RankPool
from tests.loop.small_training import small_plan, small_training
from trainer.checkpoint.manifest import list_checkpoints
from trainer.checkpoint.reader import Checkpoint
from trainer.errors import BadInput
from trainer.profiling import StepProfiler, step_ranges
from trainer.recipe import parse_recipe
from trainer.tracking.metrics import read_metrics

STEPS = 9
PHASES = {"data", "forward", "backward", "update"}


def train(shards: Path, output: Path, profile: list[Any]) -> None:
    """A whole small run through freezes. Runs on a rank."""
    plan = small_plan(
        shards, output, {"zero_optimization": {"stage": 2}},
        train={"epochs": STEPS / 18, "micro_batch": 4, "profile": profile}, optimizer={"warmup_epochs": 0.1},
        checkpoint={"every_steps": 0, "every_epochs": 0},
    )  # fmt: skip
    with small_training(plan) as training:
        assert training.run() == 0


def state(output: Path) -> dict[str, torch.Tensor]:
    checkpoint = Checkpoint(list_checkpoints(output / "checkpoints")[0])
    return {
        f"{kind} {name}": checkpoint.read(kind, name, 0, torch.Size(shape).numel())
        for name, shape in checkpoint.manifest.shapes.items()
        for kind in ("master", "exp_avg", "exp_avg_sq")
        if (kind, name) in checkpoint._parts
    }


def events(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path) as file:
        return json.load(file)["traceEvents"]


def test_profiled_steps_are_on_disk_by_phase_and_the_training_is_the_same_to_the_bit(
    one_rank: RankPool, shards: Path, tmp_path: Path
) -> None:
    plain, profiled = tmp_path / "plain", tmp_path / "profiled"
    one_rank.run(train, shards, plain, [])
    one_rank.run(train, shards, profiled, ["3-4", STEPS])
    freeze = next(e["step"] + 1 for e in read_metrics(plain) if e["event"] == "freeze")

    ours, theirs = state(profiled), state(plain)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    losses = [[e["loss_stages"] for e in read_metrics(run) if e["event"] == "step"] for run in (plain, profiled)]
    assert losses[0] == losses[1]

    assert not (plain / "profile").exists()
    found = {path.name: events(path) for path in (profiled / "profile" / "rank_0").iterdir()}
    assert set(found) == {"steps_00000003-00000004.trace.json.gz", "steps_00000009-00000009.trace.json.gz"}
    first = found["steps_00000003-00000004.trace.json.gz"]
    ranges = [e for e in first if e.get("cat") == "user_annotation"]
    assert {e["name"] for e in ranges if e["name"].startswith("step ")} == {"step 3", "step 4"}
    for step in (3, 4):
        (whole,) = (e for e in ranges if e["name"] == f"step {step}")
        inside = [e["name"] for e in ranges if whole["ts"] <= e["ts"] < whole["ts"] + whole["dur"]]
        assert {name: inside.count(name) for name in PHASES} == dict.fromkeys(PHASES, 2)  # micro-batches
        assert ("freeze" in inside) == (step == freeze)
    # a process that had an engine of ZeRO-3 before keeps DeepSpeed's linear layers, which multiply by matmul
    assert any(e["name"] in ("aten::addmm", "aten::matmul") for e in first)
    memory = [e["args"]["bytes"] for e in first if e["ph"] == "C" and e["name"] == "allocated bytes, host"]
    assert max(memory) > 100_000, "the activations of a micro-batch"


@pytest.mark.parametrize(
    ("asked", "steps"),
    [(7, [7]), ("5-7", [5, 6, 7]), ([9, "1-2", 2], [1, 2, 9]), ([], []), (None, [])],
)
def test_steps_may_be_written_as_numbers_and_ranges(asked: Any, steps: list[int]) -> None:
    assert parse_recipe({"train": {"profile": asked}}, "test").train.profile == steps


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("soon", "test: train.profile: write steps as 100, 100-103 or a list of both, not 'soon'"),
        (0, "test: train.profile: 0 holds no step: the first is 1, and 100-103 goes up"),
        ("9-7", "test: train.profile: 9-7 holds no step: the first is 1, and 100-103 goes up"),
        ("1-999999999999", "test: train.profile: name at most 100 steps: no viewer opens a recording of more"),
    ],
)
def test_what_is_no_step_is_refused(asked: Any, message: str) -> None:
    with pytest.raises(BadInput) as refused:
        parse_recipe({"train": {"profile": asked}}, "test")
    assert str(refused.value) == message


def test_steps_beyond_the_run_are_refused_before_it_starts(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"train\.profile: step 19 lies beyond the run: name steps from 1 to 18"):
        small_plan(shards, tmp_path, {}, train={"epochs": 1, "profile": [2, 19]})


def test_unbroken_steps_make_one_recording() -> None:
    assert step_ranges([5, 100, 3, 4, 102]) == [range(3, 6), range(100, 101), range(102, 103)]


def recorded(directory: Path, steps: list[int], run: range, operators: int = 1) -> list[str]:
    """What a run that takes the steps `run` records of `steps`."""
    said: list[str] = []
    profiler = StepProfiler(steps, directory, torch.device("cpu"), nullcontext, said.append, first_step=run.start)
    for step in run:
        profiler.before(step)
        with torch.profiler.record_function(f"step {step}"):
            for _ in range(operators):
                torch.ones(10).sum()
        profiler.after(step)
    profiler.close()
    return said


@pytest.mark.parametrize(
    ("run", "found"),
    [(range(1, 6), range(4, 6)), (range(4, 9), range(4, 7)), (range(5, 9), range(5, 7)), (range(6, 9), range(6, 7))],
)
def test_a_run_that_ends_or_goes_on_in_the_middle_records_the_steps_that_it_takes(
    tmp_path: Path, run: range, found: range
) -> None:
    name = f"steps_{found.start:08d}-{found.stop - 1:08d}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said = recorded(tmp_path / "profile", [4, 5, 6], run)
    assert said == [f"profile: {tmp_path}/profile/{name}.*; docs/profiling.md shows how to read it"]
    names = [e["name"] for e in events(tmp_path / "profile" / f"{name}.trace.json.gz")]
    assert [name for name in names if name.startswith("step ")] == [f"step {step}" for step in found]


def test_a_run_without_a_chosen_step_records_nothing_and_says_so_if_none_is_left(tmp_path: Path) -> None:
    # up to the step that warms the profiler up, which may be continued; from a later step on
    assert recorded(tmp_path / "profile", [3, 4, 5], range(1, 3)) == []
    assert recorded(tmp_path / "profile", [3, 4, 5], range(10, 12)) == [
        "profile: nothing to record, train.profile names no step from 10 on, where this run begins"
    ]
    assert not (tmp_path / "profile").exists()


def test_a_recording_that_cannot_be_written_does_not_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "profile").write_text("in the way")
    assert recorded(tmp_path / "profile", [1], range(1, 3)) == []
    assert "was not written (File exists): free space, or unset train.profile" in caplog.text


def record_on_a_full_disk(directory: Path) -> None:
    """In a process of its own: no file of it grows beyond 1000 bytes from now on."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    logging.basicConfig(stream=sys.stdout)
    for operators in (1, 1000):  # torch leaves half of a trace; a temporary file
        print(recorded(directory, [1], range(1, 3), operators))


@pytest.mark.slow
def test_a_full_disk_is_told_and_no_part_of_the_recording_is_left_on_it(tmp_path: Path) -> None:
    program = f"""if True:
        from pathlib import Path
        from tests.loop.test_profiling import record_on_a_full_disk
        record_on_a_full_disk(Path({str(tmp_path)!r}))"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("steps_00000001-00000001.* was not written (torch could not write") == 2
    assert ended.stdout.count("free space, or unset train.profile") == 2
    assert ended.stdout.count("[]\n") == 2
    assert list(tmp_path.iterdir()) == []
