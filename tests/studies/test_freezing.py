"""The study's command from the package to the page, interrupted and taken up again."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from studies.image_sets import IMAGE_SETS
from studies.pretraining import checkpoint, pretrainings, seconds_until, untrained
from studies.runner import REPOSITORY, RunFailed, run_missing
from studies.trials import POLICIES, QUICK_BUDGETS, Trial
from trainer.errors import BadInput
from trainer.pretrained import load_pretrained
from trainer.recipe import load_recipe
from trainer.tracking.metrics import read_metrics

TRIALS = IMAGE_SETS[0].trials(1, quick=True)


def command(work: Path, output: Path) -> list[str]:
    return [sys.executable, "-m", "studies.freezing", "--quick", "--seeds", "1", "--at-once", "1", "--work", str(work),
            "--output", str(output)]  # fmt: skip


@pytest.mark.exhaustive
def test_the_quick_study_goes_on_after_a_kill_and_ends_with_tables_and_a_picture(
    package, photograph_packages, tmp_path
):
    work, output = tmp_path / "work", tmp_path / "docs"
    output.mkdir()
    folder = work / "freezing_fashion_mnist_quick"
    first = folder / TRIALS[0].name
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
    for name in ("unfrozen, to the end", "unfrozen, stopped at 0.833", "unfrozen, schedule of 0.833"):
        assert len(re.findall(rf"\n\| {name} +\|", page)) == len(IMAGE_SETS)
    assert len(re.findall(r"\n\| late +\|", page)) == len(IMAGE_SETS) + 1  # and among all policies
    assert (output / "study.png").read_bytes().startswith(b"\x89PNG")
    for of_set in (folder, work / "freezing_tiles_quick"):
        for trial in TRIALS:
            judged = json.loads((of_set / f"{trial.name}.json").read_text())["judged"]
            assert all(0 <= accuracy[measure] <= 1 for accuracy in judged.values() for measure in ("knn", "linear"))
            finetuned = {int(step) for step, of_step in judged.items() if of_step["finetune"] is not None}
            assert finetuned == (trial.finetuned_at if of_set == folder else set())
            seconds = [of_step["seconds"] for _, of_step in sorted(judged.items(), key=lambda item: int(item[0]))]
            assert seconds == sorted(seconds)
            assert seconds[-1] > 0

    before = {path: path.stat().st_mtime_ns for path in work.rglob("*.json*")}
    again = subprocess.run(command(work, output), cwd=REPOSITORY, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "started" not in again.stdout
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*.json*")} == before


@pytest.mark.slow
def test_a_run_that_fails_is_named_with_its_log_and_stops_the_queue(shards, tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    (folder / TRIALS[0].name).write_text("a file where the run directory should be")
    jobs = pretrainings(TRIALS[:2], shards, folder)
    with pytest.raises(RunFailed, match=rf"{TRIALS[0].name} ended with exit code 2: see .*\.log"):
        run_missing(jobs, at_once=1)
    assert not jobs[1].is_done


def test_a_run_is_done_once_it_has_told_of_its_end(shards, tmp_path):
    (job,) = pretrainings([Trial("none", 24, 0)], shards, tmp_path)
    assert not job.is_done
    job.run.mkdir()
    (job.run / "metrics.jsonl").write_text('{"event": "step", "step": 24}\n{"event": "en')
    assert not job.is_done
    (job.run / "metrics.jsonl").write_text('{"event": "step", "step": 24}\n{"event": "end", "step": 24}\n')
    assert job.is_done


def test_the_seconds_of_a_run_are_those_of_the_steps_asked_for(tmp_path):
    events = [{"event": "step", "step": step, "step_seconds": seconds} for step, seconds in ((1, 5), (4, 2), (8, 3))]
    events.insert(2, {"event": "freeze", "step": 4, "seconds": 100})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    assert [seconds_until(tmp_path, step) for step in (0, 1, 4, 8)] == [0, 5, 5 + 3 * 2, 5 + 3 * 2 + 4 * 3]


def test_a_run_of_another_recipe_is_refused(shards, tmp_path):
    jobs = pretrainings([Trial("cubic .8", 24, 0, quick=True)], shards, tmp_path)
    run = jobs[0].run
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"event": "end", "step": 24}\n')
    recipe = run.with_name(f"{run.name}.yaml")
    run_missing(jobs, at_once=1)  # nothing to do: it has ended
    recipe.write_text(recipe.read_text().replace("t0: 0.8", "t0: 0.5"))
    with pytest.raises(BadInput, match="made with another recipe"):
        run_missing(jobs, at_once=1)


@pytest.mark.slow
def test_the_untrained_network_is_the_one_that_its_run_begins_with(shards, tmp_path):
    """The rate of the first warm-up step is zero, so that the first checkpoint has the weights of the start."""
    trial = Trial("none", 24, 3, quick=True)
    (job,) = pretrainings([trial], shards, tmp_path)
    job.recipe["checkpoint"] |= {"every_steps": 1, "keep_every": 1}
    run_missing([job], at_once=1)
    first, begun = load_pretrained(checkpoint(tmp_path, trial, 1)), untrained(trial)
    assert first.encoder.keys() == begun.encoder.keys()
    assert all(torch.equal(first.encoder[name], begun.encoder[name]) for name in begun.encoder)
    second = load_pretrained(checkpoint(tmp_path, trial, 2))
    assert not torch.equal(second.encoder["patch_embed.proj.weight"], begun.encoder["patch_embed.proj.weight"])
