"""The study's command from the package to the page, interrupted and taken up again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from studies.runner import REPOSITORY, TrialFailed, is_done, run_missing
from studies.trials import POLICIES, QUICK_BUDGETS, Trial, all_trials
from trainer.errors import BadInput
from trainer.recipe import load_recipe
from trainer.tracking.metrics import read_metrics

TRIALS = all_trials(1, quick=True)


def command(work: Path, output: Path) -> list[str]:
    return [sys.executable, "-m", "studies.freezing", "--quick", "--seeds", "1", "--at-once", "1", "--work", str(work),
            "--output", str(output)]  # fmt: skip


@pytest.mark.exhaustive
def test_the_quick_study_goes_on_after_a_kill_and_ends_with_tables_and_a_picture(package, tmp_path):
    work, output = tmp_path / "work", tmp_path / "docs"
    output.mkdir()
    folder, first = work / "freezing_quick", work / "freezing_quick" / TRIALS[0].name
    started = subprocess.Popen(command(work, output), cwd=REPOSITORY, start_new_session=True)
    deadline = time.monotonic() + 300
    while not any(event["event"] == "checkpoint" for event in read_metrics(first)):
        assert started.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    assert not (output / "study.md").exists()

    done = subprocess.run(command(work, output), cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [event["step"] for event in read_metrics(first) if event["event"] == "end"] == [QUICK_BUDGETS[0]]
    assert any(event["event"] == "resume" for event in read_metrics(first))
    freezes = [event["step"] for event in read_metrics(folder / TRIALS[1].name) if event["event"] == "freeze"]
    assert len(freezes) > 3
    for trial in TRIALS:
        ran = load_recipe(str(folder / trial.name / "recipe.yaml"), [], folder)
        assert ran.freezing.model_dump().items() >= POLICIES[trial.policy].items()
        assert (ran.train.seed, read_metrics(folder / trial.name)[-1]["step"]) == (trial.seed, trial.steps)
    page = (output / "study.md").read_text()
    for name in ("unfrozen, to the end", "unfrozen, stopped early", "unfrozen, shorter schedule", "cubic .8 scaled"):
        assert f"| {name}" in page
    assert (output / "study.png").read_bytes().startswith(b"\x89PNG")
    for trial in TRIALS:
        judged = json.loads((folder / f"{trial.name}.json").read_text())["judged"]
        assert all(0 <= accuracy[measure] <= 1 for accuracy in judged.values() for measure in ("knn", "linear"))

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json*")}
    again = subprocess.run(command(work, output), cwd=REPOSITORY, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "started" not in again.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.json*")} == before


@pytest.mark.slow
def test_a_run_that_fails_is_named_with_its_log_and_stops_the_queue(shards, tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    (folder / TRIALS[0].name).write_text("a file where the run directory should be")
    with pytest.raises(TrialFailed, match=rf"{TRIALS[0].name} ended with exit code 2: see .*\.log"):
        run_missing(TRIALS[:2], shards, folder, at_once=1)
    assert not is_done(folder / TRIALS[1].name)


def test_a_run_is_done_once_it_has_told_of_its_end(tmp_path):
    run = tmp_path / Trial("none", 24, 0).name
    assert not is_done(run)
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"event": "step", "step": 24}\n{"event": "en')
    assert not is_done(run)
    (run / "metrics.jsonl").write_text('{"event": "step", "step": 24}\n{"event": "end", "step": 24}\n')
    assert is_done(run)


def test_a_run_of_another_recipe_is_refused(shards, tmp_path):
    trial = Trial("cubic .8", 24, 0, quick=True)
    (tmp_path / trial.name).mkdir()
    (tmp_path / trial.name / "metrics.jsonl").write_text('{"event": "end", "step": 24}\n')
    recipe = tmp_path / f"{trial.name}.yaml"
    run_missing([trial], shards, tmp_path, at_once=1)  # nothing to do: it has ended
    recipe.write_text(recipe.read_text().replace("t0: 0.8", "t0: 0.5"))
    with pytest.raises(BadInput, match="made with another recipe"):
        run_missing([trial], shards, tmp_path, at_once=1)
