"""Whole runs of the command from a URL and from a pipe."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.http_store import serve
from tests.data.test_faults import blank_an_image
from tests.launch.small_recipe import small_recipe
from trainer.data.shard_index import ShardIndex
from trainer.tracking.metrics import read_metrics

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(small_recipe(train={"epochs": 0.5}))
    return path


def train(recipe: Path, data: Path | str, run: Path, *more: str) -> subprocess.CompletedProcess:
    arguments = ["--ds_config", "ds_configs/zero2_cpu.json", "--recipe", recipe, "--data", data, "--output", run]
    return subprocess.run(
        [sys.executable, "launch/pretrain.py", *map(str, arguments), *more],
        cwd=REPOSITORY, env=os.environ | {"DS_ACCELERATOR": "cpu"}, capture_output=True, text=True, timeout=200,
    )  # fmt: skip


def losses(run: Path) -> list[float]:
    return [event["loss"] for event in read_metrics(run) if event["event"] == "step"]


@pytest.mark.exhaustive
def test_a_run_from_a_url_is_the_run_from_disk_counts_substitutes_and_keeps_no_secrets(shards, recipe, tmp_path):
    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    index = ShardIndex.open(copy)
    blank_an_image(copy / "train-00005.tar", index.offsets[105:])
    skip = "data.on_bad_sample=skip-and-substitute"
    with serve(copy) as store:
        store.token = "sig=s3cret"
        url = f"http://me:pa55word@127.0.0.1:{store.port}/?sig=s3cret"
        remote = train(recipe, url, tmp_path / "remote", skip, "train.epochs=1")
        again = train(recipe, url, tmp_path / "remote", skip, "train.epochs=1")  # nothing left to do
    local = train(recipe, copy, tmp_path / "local", skip, "train.epochs=1")
    assert (remote.returncode, again.returncode, local.returncode) == (0, 0, 0), remote.stderr + local.stderr
    assert losses(tmp_path / "remote") == losses(tmp_path / "local")
    counts = [event["substituted_samples"] for event in read_metrics(tmp_path / "remote") if event["event"] == "step"]
    assert counts == sorted(counts)
    assert counts[-1] == 1
    assert "damaged sample no. 1 of this rank: shard http://127.0.0.1" in remote.stderr
    assert "MB of undecoded images per rank" in remote.stdout
    saved = [path for path in (tmp_path / "remote").rglob("*") if path.is_file()]
    assert len(saved) > 5
    for content in [remote.stdout, remote.stderr, *(path.read_bytes().decode("latin-1") for path in saved)]:
        assert "s3cret" not in content
        assert "pa55word" not in content


@pytest.mark.exhaustive
def test_a_run_from_a_pipe_says_what_it_is_not_and_goes_on_after_a_stop(shards, recipe, tmp_path):
    pipe = f"pipe:cat {shards}/train-{{00000..00005}}.tar"
    more = ("data.samples=64", "train.epochs=1", "checkpoint.every_steps=4")
    first = train(recipe, pipe, tmp_path / "run", *more)
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("NOT each sample exactly once per epoch, NOT exactly resumable") == 1
    assert len(losses(tmp_path / "run")) == 8
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_00000008")
    second = train(recipe, pipe, tmp_path / "run", *more)
    assert second.returncode == 0, second.stderr
    assert "resuming from" in second.stdout
    assert len(losses(tmp_path / "run")) == 8
    other = train(recipe, pipe.replace("00005", "00004"), tmp_path / "run", *more)
    assert other.returncode == 2
    assert "holds other shards than it was trained on" in other.stderr


@pytest.mark.slow
def test_a_failing_pipe_ends_the_run_with_one_line(recipe, tmp_path):
    done = train(recipe, "pipe:exit 3", tmp_path / "run", "data.samples=64")
    assert done.returncode == 2
    assert "error: pipe:exit 3: the command ended with exit code 3" in done.stderr
    assert "Traceback" not in done.stderr
