"""The export command: files and folders that need nothing of this project, or one line that says why not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from launch import export
from tests.checkpoint.tensors import write_by_hand
from tests.pretrained.models import MODEL as SCRAMBLED
from tests.pretrained.models import scrambled, unmasked_features, write_run
from trainer.errors import BadInput
from trainer.model.config import ModelConfig
from trainer.model.localmim import LocalMIM
from trainer.pretrained import load_pretrained
from trainer.pretrained.export import write_timm
from trainer.pretrained.weights import from_localmim

SLOW = pytest.mark.slow
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


@pytest.fixture(scope="module")
def scrambled_run(tmp_path_factory) -> tuple[Path, LocalMIM]:
    """A run with a checkpoint at step 10 in which no weight is as it began; and its model. Read-only."""
    directory = tmp_path_factory.mktemp("export") / "run"
    return directory, write_run(directory, SCRAMBLED)


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


PIXELS = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def assert_timm_computes_what_we_do(vit: torch.nn.Module, model: LocalMIM, pixels: torch.Tensor) -> None:
    expected = unmasked_features(model, pixels)
    with torch.no_grad():
        torch.testing.assert_close(vit.eval()(pixels), expected[:, 0], rtol=0, atol=1e-5)
        torch.testing.assert_close(vit.forward_features(pixels), expected, rtol=0, atol=1e-5)


def test_the_encoder_loads_strictly_into_the_call_that_is_printed(scrambled_run, tmp_path, monkeypatch, capsys):
    directory, model = scrambled_run
    output = tmp_path / "encoder.safetensors"
    assert call(monkeypatch, "--checkpoint", directory, "--format", "timm", "--output", output) == 0
    said = capsys.readouterr().out
    assert "step 10 as timm" in said
    vit = eval(said.split("read it with ")[1], {"timm": timm})
    vit.load_state_dict(load_file(output), strict=True)
    assert_timm_computes_what_we_do(vit, model, PIXELS)
    with safe_open(output, framework="pt") as file:
        about = file.metadata()
    assert (about["step"], about["architecture"]) == ("10", "vit_base_patch16_224")
    assert json.loads(about["model_args"]) == {"img_size": 64, "embed_dim": 32, "depth": 4, "num_heads": 2}


@pytest.mark.parametrize(
    "size", ["small", pytest.param("base", marks=SLOW), pytest.param("large", marks=pytest.mark.exhaustive)]
)
def test_standard_sizes_load_strictly_by_timms_name_with_the_same_features(size, tmp_path):
    config = ModelConfig(size=size, decoder_dim=16, decoder_heads=2)
    model = scrambled(config)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    write_timm(from_localmim(config, weights, "x", {}), tmp_path / "encoder.safetensors")
    vit = timm.create_model(f"vit_{size}_patch16_224", num_classes=0)
    vit.load_state_dict(load_file(tmp_path / "encoder.safetensors"), strict=True)
    assert_timm_computes_what_we_do(vit, model, torch.randn(1, 3, 224, 224))


def test_the_full_model_has_localmims_names_and_starts_a_model(scrambled_run, tmp_path, monkeypatch):
    directory, model = scrambled_run
    output = tmp_path / "localmim.safetensors"
    assert call(monkeypatch, "--checkpoint", directory, "--format", "full", "--output", output) == 0
    weights = load_file(output)
    assert torch.equal(weights["norm.3.weight"], model.stages[3].norm.weight)
    assert torch.equal(weights["decoder.0.pred.4.bias"], model.stages[0].decoder.predict.bias)
    assert torch.equal(weights["decoder.1.pos_embed"], model.stages[1].decoder.pos_embed)
    again = LocalMIM(model.config)
    again.load_state_dict(load_pretrained(output).full)
    images, noise = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8), torch.rand(1, 16)
    assert torch.equal(again(images, noise)[1], model(images, noise)[1])


def test_a_folder_for_the_hub(scrambled_run, tmp_path, monkeypatch, capsys):
    directory, model = scrambled_run
    arguments = ("--checkpoint", directory, "--format", "huggingface", "--output", tmp_path / "my_vit")
    assert call(monkeypatch, *arguments) == 0
    assert_timm_computes_what_we_do(
        eval(capsys.readouterr().out.split("read it with ")[1], {"timm": timm}), model, PIXELS
    )
    with pytest.raises(BadInput, match=r"--output .*my_vit: exists; choose another, or add --overwrite"):
        call(monkeypatch, *arguments)
    assert call(monkeypatch, *arguments, "--overwrite") == 0
    (tmp_path / "my_vit" / "thesis.tex").write_text("precious")
    with pytest.raises(BadInput, match="holds other things"):
        call(monkeypatch, *arguments, "--overwrite")
    assert (tmp_path / "my_vit" / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize("format", ["timm", "full", "huggingface"])
def test_no_format_leaves_half_a_file(format, scrambled_run, tmp_path, monkeypatch):
    with pytest.raises(BadInput, match=r"--output .*nowhere/x: cannot be written \(No such file"):
        call(monkeypatch, "--checkpoint", scrambled_run[0], "--format", format, "--output", tmp_path / "nowhere" / "x")

    def full_disk(*args: object, **kwargs: object) -> None:
        args[0].write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.pretrained.export.write_fp32", full_disk)
    with pytest.raises(BadInput, match=r"--output .*x: cannot be written \(No space left on device"):
        call(monkeypatch, "--checkpoint", scrambled_run[0], "--format", format, "--output", tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_another_projects_checkpoint_becomes_timms(scrambled_run, tmp_path, monkeypatch):
    weights = {"model": scrambled(ModelConfig(size="tiny", decoder_dim=16, decoder_heads=2)).state_dict()}
    weights["model"] = {name: t for name, t in weights["model"].items() if not name.startswith("stages.")}
    weights["model"]["pos_embed"] = torch.zeros(1, 197, 192)
    torch.save(weights, tmp_path / "mae.pth")
    call(monkeypatch, "--checkpoint", tmp_path / "mae.pth", "--format", "timm", "--output", tmp_path / "x")
    timm.create_model("vit_tiny_patch16_224", num_classes=0).load_state_dict(load_file(tmp_path / "x"), strict=True)
    with pytest.raises(BadInput, match=r"mae\.pth: has no decoders"):
        call(monkeypatch, "--checkpoint", tmp_path / "mae.pth", "--format", "full", "--output", tmp_path / "y")
