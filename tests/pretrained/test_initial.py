"""What a new run starts from: everything where the models are alike, the encoder else, nothing that does not fit; and
the weights in a real engine on two ranks, at every ZeRO stage."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.distributed import RankPool
from tests.pretrained.models import MODEL, mae_names
from trainer.engine.config import OptimizerConfig
from trainer.engine.ds_config import resolve_ds_config
from trainer.engine.engine import FreezingEngine
from trainer.errors import BadInput
from trainer.model.config import ModelConfig
from trainer.model.localmim import LocalMIM
from trainer.pretrained import load_pretrained
from trainer.pretrained.export import write_timm
from trainer.pretrained.initial import InitialWeights, initial_weights, read_together

Change = dict[str, Any]
ENCODER = ("cls_token", "patch_embed.", "blocks.", "stages.3.norm.")


def start(run: Path, **changes: Any) -> InitialWeights:
    config = ModelConfig.model_validate(MODEL.model_dump() | changes)
    return initial_weights(load_pretrained(run, like=config), config)


@pytest.mark.parametrize("changes", [{}, {"mask_ratio": 0.6}, {"size": "small"}, {"norm_eps": 1e-5}], ids=str)
def test_a_model_that_is_alike_starts_from_everything(changes: Change, run: tuple[Path, LocalMIM]) -> None:
    initial = start(run[0], **changes)
    assert initial.origin.extent == "full"
    assert "step 10: encoder and decoders" in str(initial.origin)
    assert initial.weights.keys() == dict(run[1].named_parameters()).keys()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"hog_bins": 18}, "model.hog_bins is 9 there and 18 here"),
        ({"decoder_heads": 4}, "model.decoder_heads is 2 there and 4 here"),
        ({"stages": [0, 1, 3], "scales": [4, 2, 1]}, r"model.stages is \[0, 1, 2, 3\] there and \[0, 1, 3\] here"),
        ({"scales": [2, 2, 1, 0.5]}, "model.scales is"),
    ],
)
def test_other_decoders_leave_the_encoder_and_say_so(changes: Change, why: str, run: tuple[Path, LocalMIM]) -> None:
    initial = start(run[0], **changes)
    assert initial.origin.extent == "encoder"
    assert re.search(why, str(initial.origin))
    config = ModelConfig.model_validate(MODEL.model_dump() | changes)
    torch.manual_seed(5)
    fresh = LocalMIM(config)
    torch.manual_seed(5)
    model = LocalMIM(config)
    initial.copy_into(model)
    norm = f"stages.{len(config.stage_blocks) - 1}.norm."
    source = {
        name.replace("stages.3.norm.", norm): p for name, p in run[1].named_parameters() if name.startswith(ENCODER)
    }
    for name, parameter in model.named_parameters():
        expected = source[name] if name in source else fresh.get_parameter(name)
        assert torch.equal(parameter, expected), name


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"embed_dim": 64}, "model.embed_dim is 32 there and 64 in this recipe"),
        ({"depth": 5, "stages": [0, 1, 2, 4]}, "model.depth is 4 there and 5"),
        ({"num_heads": 4}, "model.num_heads is 2 there and 4"),
        ({"patch_size": 8}, "model.patch_size is 16 there and 8"),
        ({"image_size": 96}, "model.image_size is 64 there and 96"),
        ({"mlp_ratio": 2.0}, "model.mlp_ratio is 4.0 there and 2.0"),
    ],
)
def test_another_encoder_is_refused_by_key(changes: Change, says: str, run: tuple[Path, LocalMIM]) -> None:
    with pytest.raises(BadInput, match=f"run, step 10: {says}"):
        start(run[0], **changes)


def test_learned_positions_are_refused(run: tuple[Path, LocalMIM], tmp_path: Path) -> None:
    weights = mae_names(run[1])
    torch.save(weights, tmp_path / "good.pth")
    assert start(tmp_path / "good.pth").origin.lacking == "which the source has none of"
    torch.save(weights | {"pos_embed": weights["pos_embed"] + 0.01}, tmp_path / "bad.pth")
    with pytest.raises(BadInput, match=r"bad\.pth: .*other positions than fixed sin-cos: pos_embed"):
        start(tmp_path / "bad.pth")


def masters_after_start(path: Path, stage: int) -> dict[str, tuple[int, np.ndarray]]:
    """name → (start, master) of this rank in an engine that was built over initial weights. Runs on a rank, which
    cannot send tensors."""
    resolved = resolve_ds_config(
        {"zero_optimization": {"stage": stage}, "bf16": {"enabled": stage > 0}},
        source="test",
        world_size=2,
        global_batch=4,
        micro_batch=None,
        precision=None,
        clip_grad=0.0,
    )
    torch.manual_seed(dist.get_rank())  # what a rank does not take from the source shows
    initial = read_together(path, MODEL, lambda _: None)
    model = LocalMIM(MODEL)
    initial.copy_into(model)
    engine = FreezingEngine(model, resolved, OptimizerConfig())
    engine.set_masters(initial.weights)
    return {f.name: (f.start, f.master.numpy().copy()) for f in engine.fragments(owned_only=True)}


@pytest.mark.parametrize("stage", [*(pytest.param(stage, marks=pytest.mark.slow) for stage in (0, 1)), 2, 3])
def test_two_ranks_start_from_the_weights_at_every_zero_stage(
    stage: int, two_ranks: RankPool, run: tuple[Path, LocalMIM]
) -> None:
    expected = {name: parameter.detach().flatten() for name, parameter in run[1].named_parameters()}
    seen = {name: torch.zeros(len(values), dtype=torch.bool) for name, values in expected.items()}
    for masters in two_ranks.run(masters_after_start, run[0], stage):
        for name, (first, master) in masters.items():
            assert torch.equal(torch.from_numpy(master), expected[name][first : first + len(master)]), name
            seen[name][first : first + len(master)] = True
    assert all(bool(every.all()) for every in seen.values())


def refusal(paths: list[Path]) -> str:
    """What a rank says that was given the path of its own. Runs on a rank."""
    try:
        read_together(paths[dist.get_rank()], MODEL, lambda _: None)
    except BadInput as error:
        return str(error)
    return "started"


@pytest.mark.parametrize(
    ("name", "spoil", "says"),
    [
        ("other.safetensors", lambda path: path, "rank 1 read other weights"),
        ("gone.safetensors", lambda path: path.unlink(), "rank 1: --init: .*gone.safetensors: no such file"),
    ],
)
def test_what_one_rank_cannot_read_or_reads_otherwise_all_refuse(
    name: str, spoil: Callable[[Path], Any], says: str, two_ranks: RankPool, run: tuple[Path, LocalMIM], tmp_path: Path
) -> None:
    pretrained = load_pretrained(run[0])
    write_timm(pretrained, tmp_path / "same.safetensors")
    pretrained.encoder["blocks.0.mlp.fc1.bias"][7] += 1e-6
    write_timm(pretrained, tmp_path / name)
    spoil(tmp_path / name)
    for said in two_ranks.run(refusal, [tmp_path / "same.safetensors", tmp_path / name]):
        assert re.search(says, said), said
