"""Every source gives the same encoder, and the decoders where it has them."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.model.golden import GoldenCase
from tests.pretrained.models import MODEL, expected_encoder, mae_names, write_run
from trainer.finetuning.recipe import FinetuneRecipe
from trainer.model.localmim import LocalMIM
from trainer.pretrained import build_vit, load_into, load_pretrained
from trainer.pretrained.export import write_full, write_timm
from trainer.pretrained.huggingface import write_huggingface
from trainer.recipe import AnyRecipe, Recipe, parse_kind


def assert_same(given: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert given.keys() == expected.keys()
    for name, tensor in expected.items():
        assert given[name].dtype == torch.float32
        assert torch.equal(given[name], tensor), name


@pytest.mark.parametrize("source", ["run", "step", "timm", "full", "huggingface", "fp32"])
def test_what_this_program_writes_it_reads_without_being_told_the_model(
    source: str, run: tuple[Path, LocalMIM], tmp_path: Path
) -> None:
    directory, model = run
    of_run = load_pretrained(directory)
    path = tmp_path / f"{source}.safetensors"
    if source in ("run", "step"):
        path = directory if source == "run" else directory / "checkpoints" / "step_00000010"
    elif source == "fp32":
        from launch.export import FORMATS

        FORMATS["fp32"](directory, path)
    else:
        {"timm": write_timm, "full": write_full, "huggingface": write_huggingface}[source](of_run, path)
    pretrained = load_pretrained(path)
    assert pretrained.source == f"{path}, step 10"
    assert_same(pretrained.encoder, expected_encoder(model))
    if source in ("timm", "huggingface"):
        assert pretrained.full is None
        assert pretrained.config.stage_blocks == [MODEL.num_blocks - 1]
    else:
        assert pretrained.config == MODEL
        assert pretrained.full is not None
        assert_same(pretrained.full, {name: p.detach() for name, p in model.named_parameters()})
    assert pretrained.about["recipe"] == of_run.about["recipe"]
    assert "somebody" not in pretrained.about["recipe"]


@pytest.mark.parametrize("kind", [Recipe, FinetuneRecipe])
def test_no_place_of_a_recipe_goes_with_the_weights(
    kind: type[AnyRecipe], run: tuple[Path, LocalMIM], tmp_path: Path
) -> None:
    """Of all its keys that hold a text, those that are added one day included."""
    recipe = kind().model_dump(mode="json")
    texts = [
        (section, key)
        for section, info in kind.model_fields.items()
        for key, field in info.annotation.model_fields.items()
        if field.annotation == str | None and key != "rand_augment"
    ]
    assert len(texts) >= 3
    for section, key in texts:
        recipe[section][key] = f"/home/somebody/{key}"
    recipe["data"]["cache_size"] = "1GB"
    save_file(mae_names(run[1]), tmp_path / "x.safetensors", metadata={"recipe": json.dumps(recipe)})
    left = load_pretrained(tmp_path / "x.safetensors", like=MODEL).about["recipe"]
    assert "somebody" not in left
    assert parse_kind(kind, json.loads(left), "what is left") == kind()


def test_a_run_gives_its_newest_whole_checkpoint(tmp_path: Path) -> None:
    older = write_run(tmp_path, MODEL, step=10)
    write_run(tmp_path, MODEL, step=20)
    (tmp_path / "checkpoints" / "step_00000020" / "rank_00001.safetensors").write_bytes(b"damaged")
    said: list[str] = []
    pretrained = load_pretrained(tmp_path, say=said.append)
    assert pretrained.source == f"{tmp_path}, step 10"
    assert_same(pretrained.encoder, expected_encoder(older))
    assert len(said) == 1
    assert "passing over a damaged checkpoint" in said[0]


@pytest.mark.parametrize("wrapping", [None, "model", "state_dict"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old pickle"])
def test_mae_gives_its_encoder_and_no_decoder(
    wrapping: str | None, zipped: bool, run: tuple[Path, LocalMIM], tmp_path: Path
) -> None:
    weights = mae_names(run[1])
    content = {wrapping: weights, "epoch": 3, "args": argparse.Namespace(lr=0.1)} if wrapping else weights
    torch.save(content, tmp_path / "mae.pth", _use_new_zipfile_serialization=zipped)
    pretrained = load_pretrained(tmp_path / "mae.pth", like=MODEL)
    assert pretrained.full is None
    assert pretrained.source == str(tmp_path / "mae.pth")
    assert_same(pretrained.encoder, expected_encoder(run[1]))


def test_published_localmim_gives_everything(golden: GoldenCase, tmp_path: Path) -> None:
    torch.save({"model": golden.state_dict(), "epoch": 1}, tmp_path / "localmim.pt")
    pretrained = load_pretrained(tmp_path / "localmim.pt", like=golden.config)
    assert pretrained.full is not None
    assert_same(pretrained.full, {name: p.detach() for name, p in golden.model().named_parameters()})


@pytest.mark.parametrize("pooling", ["token", "avg"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_classifiers_of_timm_give_what_stands_before_their_head(
    pooling: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Their positions are learned, which concerns `--init` and nobody else."""
    torch.manual_seed(0)
    vit = build_vit(MODEL, num_classes=10, global_pool=pooling).to(dtype)
    torch.nn.init.normal_(vit.pos_embed)
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    pretrained = load_pretrained(tmp_path / "vit.safetensors", like=MODEL)
    expected = {name: t.float() for name, t in vit.state_dict().items() if not name.startswith(("head.", "fc_norm."))}
    if pooling == "avg":
        expected |= {"norm.weight": torch.ones(32), "norm.bias": torch.zeros(32)}
    assert_same(pretrained.encoder, expected)


def test_standard_sizes_need_no_recipe(tmp_path: Path) -> None:
    import timm

    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    save_file(vit.state_dict(), tmp_path / "vit.safetensors")
    pretrained = load_pretrained(tmp_path / "vit.safetensors")
    assert (pretrained.config.size, pretrained.config.heads, pretrained.config.image_size) == ("tiny", 3, 224)
    again = build_vit(pretrained.config, num_classes=0)
    load_into(again, pretrained)
    pixels = torch.randn(1, 3, 224, 224)
    assert torch.equal(again.eval()(pixels), vit.eval()(pixels))
