"""The command of the study of going on, and what its runs do to the weights that they begin with."""

import subprocess
import sys

import pytest
import torch

from studies.continuations import QUICK_BUDGETS, WAYS, Continuation, continuations, trained
from studies.continued import jobs
from studies.continued_sets import CONTINUED_SETS
from studies.pretraining import checkpoint, pretrainings
from studies.runner import REPOSITORY, run_missing
from trainer.pretrained import load_pretrained
from trainer.tracking.metrics import read_metrics

BLOCKS = 12


@pytest.mark.slow
def test_going_on_keeps_the_frozen_prefix_bit_for_bit_and_trains_the_rest(shards, tmp_path):
    base = trained(2, quick=True)
    runs = [Continuation(way, QUICK_BUDGETS[0], 2, quick=True) for way in WAYS]
    run_missing(pretrainings([base], shards, tmp_path), at_once=1)
    run_missing(jobs(runs, shards, tmp_path), at_once=2)
    begun = load_pretrained(checkpoint(tmp_path, base, base.steps)).encoder
    for run in runs:
        way, ended = WAYS[run.way], load_pretrained(checkpoint(tmp_path, run, run.steps)).encoder
        (start,) = (event for event in read_metrics(tmp_path / run.name) if event["event"] == "start")
        assert start.get("init_weights") == (None if way.is_new else "full")
        same = {name for name, weight in begun.items() if torch.equal(weight, ended[name])}
        frozen = {f"blocks.{block}." for block in range(way.frozen_units - 1)}
        if way.frozen_units:
            frozen |= {"patch_embed.", "cls_token"}
        for name in begun:
            # from scratch, with the same seed on the same images, is the run whose weights the others begin with
            is_frozen = way.is_new or name.startswith(tuple(frozen)) or name == "pos_embed"
            assert (name in same) == is_frozen, (run.way, name)
        assert len(begun) == 12 * BLOCKS + len(("cls_token", "pos_embed")) + len(("patch_embed", "norm")) * 2


@pytest.mark.exhaustive
def test_the_quick_study_ends_with_tables_and_a_picture_and_has_nothing_left_to_do(
    package, photograph_packages, tmp_path
):
    work, output = tmp_path / "work", tmp_path / "docs"
    output.mkdir()
    command = [sys.executable, "-m", "studies.continued", "--quick", "--seeds", "1", "--at-once", "1", "--work",
               str(work), "--output", str(output)]  # fmt: skip
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (output / "study-continued.md").read_text()
    for images in CONTINUED_SETS:
        assert page.count(f"### {images.title}\n") == 1
    assert page.count("\n| 5 units frozen less unfrozen ") == len(CONTINUED_SETS)
    assert (output / "study-continued.png").read_bytes().startswith(b"\x89PNG")
    for images in CONTINUED_SETS:
        for run in continuations(1, quick=True):
            ended = read_metrics(work / f"continued_{images.name}_quick" / run.name)[-1]
            assert (ended["event"], ended["step"]) == ("end", run.steps)

    before = {path: path.stat().st_mtime_ns for path in work.rglob("*.json*")}
    again = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "started" not in again.stdout
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*.json*")} == before
