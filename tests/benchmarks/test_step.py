"""The baseline computes what we compute, and the command that compares the two works."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.plain_step import PlainHog, PlainLocalMIM, PlainTraining
from benchmarks.step_contenders import RATE, bare_step, engine_step, make_batch, plain_steps
from benchmarks.step_profile import ELSEWHERE, HOG, MATMUL, OPTIMIZER, attention_flops, seconds_by_kind
from tests.distributed import run_on_ranks
from trainer.engine.ds_config import Precision
from trainer.model.config import ModelConfig
from trainer.model.flops import step_flops
from trainer.model.hog import hog_targets
from trainer.model.localmim import LocalMIM

REPOSITORY = Path(__file__).parents[2]
CONFIG = ModelConfig(
    image_size=64, embed_dim=32, depth=4, num_heads=4, stages=[0, 1, 2, 3], decoder_dim=16, decoder_heads=2
)


@pytest.fixture
def model() -> LocalMIM:
    torch.manual_seed(0)
    return LocalMIM(CONFIG)


def test_plain_step_has_the_loss_and_the_gradients_of_ours(model: LocalMIM) -> None:
    plain = PlainLocalMIM(CONFIG)
    plain.load_state_dict(model.state_dict())
    batch = make_batch(model, 2)
    loss, stage_losses = model(batch.images, batch.noise)
    plain_losses = torch.stack(plain(batch.pixels, batch.noise))
    # fp32 sums of a few hundred terms in other orders; noise as images, so that no pixel lies on a bin's border.
    torch.testing.assert_close(plain_losses, stage_losses, rtol=1e-5, atol=0)
    loss.backward()
    plain_losses.sum().backward()
    expected = _gradients(plain)
    ours = _gradients(model)
    assert ours.keys() == expected.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5 * expected[name].abs().max().item())


@pytest.mark.parametrize("by_hand", [False, True])
def test_plain_hog_is_ours(model: LocalMIM, by_hand: bool) -> None:
    pixels = make_batch(model, 2).pixels
    for window, target in zip([4, 8, 16, 32], hog_targets(pixels, [4, 8, 16, 32], 9), strict=True):
        plain = PlainHog(window, 9)
        plain.by_hand = by_hand
        torch.testing.assert_close(plain(pixels), target, rtol=0, atol=3e-7)


def test_plain_training_reads_its_losses_and_moves_every_weight(model: LocalMIM) -> None:
    training = PlainTraining(PlainLocalMIM(CONFIG), RATE, 0.05, (0.9, 0.95))
    training.model.load_state_dict(model.state_dict())
    batch = make_batch(model, 2)
    before = {name: weight.clone() for name, weight in training.model.state_dict().items()}
    loss, *stage_losses = training.step(batch.pixels, batch.noise)
    assert loss == pytest.approx(sum(stage_losses), rel=1e-6)
    assert [name for name, weight in training.model.state_dict().items() if torch.equal(weight, before[name])] == []


def test_contenders_start_from_the_same_weights_and_leave_them_alone(model: LocalMIM) -> None:
    weights = model.state_dict()
    before = {name: weight.clone() for name, weight in weights.items()}
    for step in (*plain_steps(CONFIG, weights), bare_step(CONFIG, weights)):
        step(make_batch(model, 2))
    assert all(torch.equal(weights[name], before[name]) for name in weights)


def take_engine_step(precision: Precision) -> None:
    """Runs on a rank."""
    model = LocalMIM(CONFIG)
    engine_step(CONFIG, model.state_dict(), 1, precision)(make_batch(model, 2))


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.exhaustive)])
def test_the_engines_step_runs_in_either_precision(precision: Precision) -> None:
    """Whatever the processor: the command leaves bf16 out where there are no instructions for it."""
    run_on_ranks(take_engine_step, 1, precision)


def test_profile_tells_the_kinds_of_work_apart(model: LocalMIM) -> None:
    batch, step = make_batch(model, 2), bare_step(CONFIG, model.state_dict())
    seconds, whole = seconds_by_kind(lambda: step(batch))
    assert sum(seconds.values()) == pytest.approx(whole)
    assert {HOG, MATMUL, OPTIMIZER, "attention", "GELU", "LayerNorm"} <= seconds.keys()
    assert min(seconds[kind] for kind in (HOG, MATMUL, OPTIMIZER)) > 0
    assert seconds[ELSEWHERE] >= 0  # the rest: negative if an operator counted twice


def test_attention_flops_are_those_that_the_cost_model_counts() -> None:
    """ViT-B without attention's products: 30.07 GF a step."""
    config = ModelConfig()
    assert attention_flops(config) == pytest.approx(0.753e9, rel=1e-3)
    assert step_flops(config, 0).total - attention_flops(config) == pytest.approx(30.07e9, rel=1e-3)


@pytest.mark.exhaustive
def test_quick_run_prints_and_writes_the_tables(tmp_path: Path) -> None:
    page = tmp_path / "step.md"
    command = [sys.executable, "-m", "benchmarks.step", "--quick", "--output", str(page)]
    finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    text = page.read_text()
    assert text in finished.stdout.replace("1 threads, micro-batch 2: done\n", "") + "\n"
    ours = ("| ours, bare PyTorch", "| ours, ZeRO-0 ", "| ours, ZeRO-1 ")
    for row in ("| plain ", *ours, "| per scale and channel", "| DeepSpeed "):
        assert row in text


def _gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
