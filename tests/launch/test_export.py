"""The export command: one fp32 file that needs nothing of this project, or one line that says why not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from launch import export
from tests.checkpoint.tensors import write_by_hand
from trainer.errors import BadInput
from trainer.model.config import ModelConfig
from trainer.model.localmim import LocalMIM

REPOSITORY = Path(__file__).parents[2]
MODEL = ModelConfig(
    image_size=64,
    patch_size=16,
    embed_dim=16,
    depth=4,
    num_heads=2,
    stages=[0, 1, 2, 3],
    decoder_dim=16,
    decoder_heads=2,
)
RECIPE = {"model": MODEL.model_dump(mode="json"), "train": {"seed": 3}}


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, LocalMIM]:
    """A run directory with checkpoints of two models, at steps 5 and 10, by three ranks; and the model of step 10."""
    for step in (5, 10):
        torch.manual_seed(step)
        model = LocalMIM(MODEL)
        weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
        write_by_hand(tmp_path / "run" / "checkpoints", step, weights, frozen_units=1, recipe=RECIPE)
    return tmp_path / "run", model


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["export.py", *map(str, arguments)])
    return export.main()


def test_the_command_writes_a_file_that_safetensors_alone_reads(run, tmp_path):
    directory, model = run
    output = tmp_path / "model.safetensors"
    done = subprocess.run(
        [sys.executable, "launch/export.py", "--checkpoint", directory, "--format", "fp32", "--output", output],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "step_00000010 as fp32" in done.stdout
    weights = load_file(output)
    assert weights.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(weights[name], p) and p.dtype == torch.float32 for name, p in model.named_parameters())
    with safe_open(output, framework="pt") as file:
        about = file.metadata()
    assert (about["step"], about["frozen_units"], about["format"]) == ("10", "1", "pt")
    assert json.loads(about["recipe"]) == RECIPE
    LocalMIM(MODEL).load_state_dict(weights)


def test_a_checkpoint_directory_is_exported_itself(run, tmp_path, monkeypatch):
    assert call(monkeypatch, "--checkpoint", run[0] / "checkpoints" / "step_00000005", "--format", "fp32",
                "--output", tmp_path / "x") == 0  # fmt: skip
    with safe_open(tmp_path / "x", framework="pt") as file:
        assert file.metadata()["step"] == "5"


def test_damage_is_passed_over_in_a_run_and_refused_in_a_checkpoint(run, tmp_path, monkeypatch, capsys):
    newest = run[0] / "checkpoints" / "step_00000010"
    (newest / "rank_00001.safetensors").unlink()
    with pytest.raises(BadInput, match=r"--checkpoint: .*none of its 1 checkpoints is whole; give another"):
        call(monkeypatch, "--checkpoint", newest, "--format", "fp32", "--output", tmp_path / "x")
    assert not (tmp_path / "x").exists()
    assert call(monkeypatch, "--checkpoint", run[0], "--format", "fp32", "--output", tmp_path / "x") == 0
    assert "passing over a damaged checkpoint" in capsys.readouterr().out


def test_nothing_is_overwritten_unless_asked_for(run, tmp_path, monkeypatch):
    output = tmp_path / "x"
    output.write_text("precious")
    with pytest.raises(BadInput, match=r"--output .*x: exists; choose another, or add --overwrite"):
        call(monkeypatch, "--checkpoint", run[0], "--format", "fp32", "--output", output)
    assert output.read_text() == "precious"
    assert call(monkeypatch, "--checkpoint", run[0], "--format", "fp32", "--output", output, "--overwrite") == 0
    assert load_file(output)


def test_an_export_that_cannot_be_written_leaves_what_was_there(run, tmp_path, monkeypatch):
    with pytest.raises(BadInput, match=r"--output .*nowhere/x: cannot be written \(No such file"):
        call(monkeypatch, "--checkpoint", run[0], "--format", "fp32", "--output", tmp_path / "nowhere" / "x")
    (tmp_path / "x").write_text("precious")

    def full_disk(*args: object, **kwargs: object) -> None:
        args[0].write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.checkpoint.consolidated.write_fp32", full_disk)
    with pytest.raises(BadInput, match=r"--output .*x: cannot be written \(No space left on device"):
        call(monkeypatch, "--checkpoint", run[0], "--format", "fp32", "--output", tmp_path / "x", "--overwrite")
    assert (tmp_path / "x").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "x"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "deepspeed-universal"], "invalid choice: 'deepspeed-universal'"),
        (["--format", "fp32"], "--checkpoint .*nowhere: no checkpoint there"),
        ([], "--format"),
    ],
)
def test_bad_input_is_one_line(arguments, words, tmp_path, monkeypatch):
    with pytest.raises(BadInput, match=words) as refusal:
        call(monkeypatch, "--checkpoint", tmp_path / "nowhere", "--output", tmp_path / "x", *arguments)
    assert "\n" not in str(refusal.value)
