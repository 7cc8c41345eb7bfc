"""launch/evaluate.py: the same figures under every launcher, a run left as it was, and one line for bad input."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launch import evaluate
from tests.launch.running import REPOSITORY, launcher_environment, launcher_words
from trainer.errors import BadInput
from trainer.evaluation.config import EvaluationConfig
from trainer.recipe import parse_recipe
from trainer.tracking.metrics import append_event, read_metrics

SMALL = ("--batch", "8", "--workers", "1")


def launched(launcher: str, *arguments: object) -> str:
    """What the command prints, as one process or on two ranks."""
    done = subprocess.run(
        [*launcher_words(launcher), "launch/evaluate.py", *map(str, arguments)], cwd=REPOSITORY,
        env=launcher_environment(), capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def files_of(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


def test_a_run_is_evaluated_by_one_process_and_otherwise_left_alone(run: Path, painted: Path, tmp_path: Path) -> None:
    before = files_of(run)
    output = tmp_path / "knn.json"
    printed = launched("python", "knn", "--init", run, "--data", painted, "--k", 5, 20, "--output", output, *SMALL)
    result = json.loads(output.read_text())
    assert (result["step"], result["train_samples"], result["samples"], result["classes"]) == (30, 100, 35, 5)
    assert [(row["pool"], row["k"]) for row in result["results"]] == [
        ("mean", 5),
        ("mean", 20),
        ("cls", 5),
        ("cls", 20),
    ]
    assert result["results"][0]["top1"] > 0.95, "painted classes are told apart by an untrained encoder too"
    assert f"{result['results'][0]['top1']:.2%}" in printed
    after = files_of(run)
    metrics = run / "metrics.jsonl"
    assert after.pop(metrics).startswith(before.pop(metrics))
    assert after == before
    assert read_metrics(run)[-1] == {"event": "evaluation", **result}


@pytest.mark.exhaustive
def test_every_launcher_gives_the_same_figures(run: Path, painted: Path, tmp_path: Path) -> None:
    common = ["--init", run, "--data", painted, *SMALL]
    results = []
    for launcher in ("python", "torchrun"):
        launched(launcher, "knn", *common, "--k", 1, 7, "--output", tmp_path / f"{launcher}.json")
        results.append(json.loads((tmp_path / f"{launcher}.json").read_text()))
    assert [result["world_size"] for result in results] == [1, 2]
    assert results[0]["results"] == results[1]["results"]
    small = ["--epochs", 16, "--warmup-epochs", 1, "--global-batch", 20, "--rates", 30, 300]
    for name, views in {"augmented": [], "cached": ["--cached"]}.items():
        output = tmp_path / f"{name}.json"
        launched("deepspeed", "linear", *common, *small, *views, "--output", output)
        result = json.loads(output.read_text())
        assert result["views"].startswith(name)
        assert max(row["top1"] for row in result["results"]) > 0.9


@pytest.mark.slow
def test_the_documented_commands_work(run: Path, painted: Path, tmp_path: Path) -> None:
    """Each line of the page that calls the command, with the tests' run and shards, and fewer images at once."""
    text = (REPOSITORY / "docs" / "evaluation.md").read_text().replace("\\\n", " ")
    lines = re.findall(r"^(deepspeed|torchrun|python) (?:-\S+ \S+ )*launch/evaluate.py (.*)$", text, re.MULTILINE)
    assert {launcher for launcher, _ in lines} == {"deepspeed", "torchrun", "python"}
    assert len(lines) >= 4
    for launcher, arguments in lines:
        words = shlex.split(arguments, comments=True)
        places = {"runs/vit_base": run, "shards": painted, "other_shards": painted, "knn.json": tmp_path / "knn.json"}
        words = [str(places.get(word, word)) for word in words]
        if words[0] == "linear":
            words += ["--global-batch", "20", "--epochs", "2", "--warmup-epochs", "0"]
        launched(launcher, *words, *SMALL)


def test_the_documented_calls_work(run: Path, painted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "evaluation.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "vit_base").symlink_to(run)
    (tmp_path / "shards").symlink_to(painted)
    small = text.replace("epochs=90, warmup_epochs=10, global_batch=256", "epochs=2, warmup_epochs=0, global_batch=20")
    assert small != text
    exec(small, {})


def test_the_documented_section_is_the_recipe_with_its_defaults() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (REPOSITORY / "docs" / "evaluation.md").read_text(), re.DOTALL)
    documented = parse_recipe(yaml.safe_load(text), "docs").evaluation
    assert documented == EvaluationConfig(every_epochs=20)


def refused(monkeypatch: pytest.MonkeyPatch, says: str, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
    with pytest.raises(BadInput, match=says) as caught:
        evaluate.main()
    assert "\n" not in str(caught.value)


def test_bad_input_is_refused_before_the_ranks_meet(
    run: Path, painted: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.evaluation.command.start_process_group", lambda *_: pytest.fail("nothing was refused"))
    sound = ["knn", "--init", run, "--data", painted]
    refused(monkeypatch, "--init .*nothing.*give a run directory", "knn", "--init", tmp_path / "no", "--data", painted)
    refused(monkeypatch, "no shard index at .*val.json", "knn", "--init", run, "--data", shards)
    refused(monkeypatch, "other classes.*label 0 is the first", *sound, "--val", shards / "train.json")
    refused(monkeypatch, "--data: a pipe:", "knn", "--init", run, "--data", "pipe:cat x.tar")
    refused(monkeypatch, "--val: a pipe:", *sound, "--val", "pipe:cat x.tar")
    refused(monkeypatch, "argument --k: give a positive integer, not '0'", *sound, "--k", 0)
    refused(monkeypatch, "argument --temperature: give a number above 0", *sound, "--temperature", "nan")
    refused(monkeypatch, "argument --pool", *sound, "--pool", "max")
    refused(monkeypatch, "required: method|required: {knn,linear}")
    (tmp_path / "taken.json").write_text("{}")
    refused(monkeypatch, "taken.json: exists.*--overwrite", *sound, "--output", tmp_path / "taken.json")
    refused(monkeypatch, "no folder .*make it first", *sound, "--output", tmp_path / "no" / "x.json")


def test_an_event_is_added_to_whole_metrics_only(run: Path) -> None:
    before = read_metrics(run)
    assert append_event(run, "evaluation", step=30, top1=float("nan"))
    assert read_metrics(run) == [*before, {"event": "evaluation", "step": 30, "top1": None}]
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"event": "st')  # a crash
    cut = (run / "metrics.jsonl").read_bytes()
    assert not append_event(run, "evaluation", step=30)
    assert (run / "metrics.jsonl").read_bytes() == cut
    shutil.rmtree(run)
    assert not append_event(run, "evaluation", step=30)
    assert not run.exists()
