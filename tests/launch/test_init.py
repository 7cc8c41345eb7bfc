"""--init on two ranks: the run begins at the weights that it is given, says so, and a resume goes before."""

from pathlib import Path

import pytest
import torch

from tests.launch.running import Run
from tests.pretrained.models import MODEL, mae_names, write_run

STANDSTILL = ("optimizer.lr=1e-12", "optimizer.min_lr=0", "train.epochs=0.4", "optimizer.warmup_epochs=0")


@pytest.mark.slow
def test_a_run_starts_from_another_and_then_goes_on_with_its_own(tmp_path: Path, shards: Path) -> None:
    model = write_run(tmp_path / "source", MODEL)
    arguments = ("--init", str(tmp_path / "source"), *STANDSTILL)
    with Run(tmp_path / "run", shards) as run:
        run.start("torchrun", *arguments)
        assert run.end() == 0, run.printed[-3000:]
        assert f"starting from {tmp_path}/source, step 10: encoder and decoders" in run.printed
        start = run.events()[0]
        assert start["event"] == "start"
        assert (start["init"], start["init_weights"]) == (f"{tmp_path}/source, step 10", "full")
        state = run.state()
        for name, parameter in model.named_parameters():
            trained = state[f"master {name}"].view_as(parameter)
            torch.testing.assert_close(trained, parameter.detach(), rtol=0, atol=1e-9)

        run.start("torchrun", *arguments, "--init", str(tmp_path / "gone since"))
        assert run.end() == 0, run.printed[-3000:]
        assert f"--init {tmp_path}/gone since is not read" in run.printed
        assert f"goes on from {run.directory}/checkpoints/step_00000007" in run.printed


@pytest.mark.exhaustive
def test_a_run_starts_from_an_encoder_alone(tmp_path: Path, shards: Path) -> None:
    """Under MAE's names, which have no stages."""
    model = write_run(tmp_path / "source", MODEL)
    torch.save({"model": mae_names(model)}, tmp_path / "mae.pth")
    with Run(tmp_path / "run", shards) as run:
        run.start("torchrun", "--init", str(tmp_path / "mae.pth"), *STANDSTILL, ds_config="ds_configs/zero3_bf16.json")
        assert run.end() == 0, run.printed[-3000:]
        assert "the encoder; the decoders are newly initialised, which the source has none of" in run.printed
        assert run.events()[0]["init_weights"] == "encoder"
        trained = run.state()["master blocks.2.attn.qkv.weight"].view(96, 32)
        torch.testing.assert_close(trained, model.blocks[2].attn.qkv.weight.detach(), rtol=0, atol=1e-9)
