"""What is no usable checkpoint gives one line that names the file and the trouble."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.pretrained.models import MODEL, mae_names, scrambled
from trainer.errors import BadInput
from trainer.pretrained import load_pretrained
from trainer.pretrained.export import write_timm
from trainer.pretrained.huggingface import write_huggingface

Weights = dict[str, Tensor]


class Command:
    """A pickle that would run a command."""

    def __init__(self, ran: Path):
        self.ran = ran

    def __reduce__(self) -> Any:
        import os

        return os.system, (f"touch {self.ran}",)


def mae(**changes: Tensor | None) -> Weights:
    """MAE's names with changes; None takes a weight away."""
    weights: dict[str, Tensor | None] = {**mae_names(scrambled(MODEL)), **changes}
    return {name: tensor for name, tensor in weights.items() if tensor is not None}


WEIGHTS: dict[str, tuple[Callable[[], Weights], str]] = {
    "a missing weight": (lambda: mae(**{"blocks.2.mlp.fc2.bias": None}), "it lacks blocks.2.mlp.fc2.bias; give"),
    "half a norm": (lambda: mae(**{"norm.bias": None}), "it lacks norm.bias"),
    "a missing block": (
        lambda: {name: tensor for name, tensor in mae().items() if not name.startswith("blocks.1.")},
        r"it lacks blocks.1.attn.proj.bias, .* and 4 more",
    ),
    "a wrong shape": (
        lambda: mae(**{"blocks.1.norm1.weight": torch.ones(31)}),
        r"do not fit its model: blocks.1.norm1.weight \[31\] instead of \[32\]",
    ),
    "layer scale": (lambda: mae(**{"blocks.0.ls1.gamma": torch.ones(32)}), "has no place for: blocks.0.ls1.gamma"),
    "register tokens": (lambda: mae(reg_token=torch.ones(1, 4, 32)), "has no place for: reg_token"),
    "no class token": (lambda: mae(cls_token=None), "it lacks cls_token"),
    "a grid that is no square": (
        lambda: mae(pos_embed=torch.ones(1, 20, 32)),
        r"pos_embed \[1, 20, 32\] instead of \[1, 17, 32\]",
    ),
    "another family": (
        lambda: {"conv1.weight": torch.ones(64, 3, 7, 7)},
        "unknown architecture: it has no patch_embed",
    ),
    "one weight of shape nothing": (
        lambda: {"patch_embed.proj.weight": torch.ones(())},
        "unknown architecture: it has no patch_embed",
    ),
    "an unusual width": (
        lambda: {name: torch.ones([20 if n == 32 else n for n in t.shape]) for name, t in mae().items()},
        "unknown architecture: no standard ViT is 20 wide and 4 blocks deep",
    ),
    "our names without a recipe": (lambda: dict(scrambled(MODEL).state_dict()), "export it again"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_are_none_of_a_plain_vit(case: str, tmp_path: Path) -> None:
    make, says = WEIGHTS[case]
    path = tmp_path / "x.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in make().items()}, path)
    like = None if case.startswith("our names") else MODEL
    with pytest.raises(BadInput, match=says) as refusal:
        load_pretrained(path, like=like)
    assert str(refusal.value).startswith(f"{path}: ")
    assert "\n" not in str(refusal.value)


def folder(path: Path, name: str, text: str) -> Path:
    write_huggingface(load_pretrained(written(path / "e.safetensors"), like=MODEL), path / "folder")
    (path / "folder" / name).write_text(text)
    return path / "folder"


def written(path: Path, **metadata: str) -> Path:
    save_file(mae(), path, metadata)
    return path


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def bytes_at(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def cut(path: Path, share: float = 0.9) -> Path:
    return bytes_at(path, path.read_bytes()[: int(path.stat().st_size * share)])


PATHS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nothing": (lambda p: p / "nowhere", "nowhere: no such file; give a checkpoint"),
    "an empty folder": (lambda p: p, "no checkpoint there"),
    "a text": (lambda p: bytes_at(p / "x.pth", b"weights of a model"), "x.pth: not a checkpoint, or cut short"),
    "an empty file": (lambda p: bytes_at(p / "x.pth", b""), "x.pth: not a checkpoint, or cut short"),
    "half a pickle": (lambda p: cut(saved(p / "x.pth", mae())), "x.pth: not a checkpoint, or cut short"),
    "half a safetensors file": (lambda p: cut(written(p / "x.safetensors")), "not a whole safetensors file"),
    "a pickle named safetensors": (lambda p: saved(p / "x.safetensors", mae()), "not a whole safetensors file"),
    "a pickle that runs code": (
        lambda p: saved(p / "x.pth", {"model": mae(), "args": Command(p / "ran")}),
        r"x.pth: is a pickle that runs code \(\S*system\)",
    ),
    "a list": (lambda p: saved(p / "x.pth", [torch.ones(1)]), r"holds no weights by name \(list\)"),
    "a number among the weights": (
        lambda p: saved(p / "x.pth", {**mae(), "epoch": 3}),
        "holds 'epoch', which is no weight",
    ),
    "a recipe that is no JSON": (
        lambda p: written(p / "x.safetensors", recipe="{"),
        "the recipe in its metadata is not",
    ),
    "a recipe that is a list": (
        lambda p: written(p / "x.safetensors", recipe="[]"),
        "the recipe in its metadata is not",
    ),
    "a recipe of another time": (
        lambda p: written(p / "x.safetensors", recipe='{"model": {"colours": 4}}'),
        "its recipe's model.colours: .*use the program that wrote it",
    ),
    "config.json that is no JSON": (lambda p: folder(p, "config.json", "{"), "config.json: cannot be read"),
    "config.json of other heads": (
        lambda p: folder(p, "config.json", json.dumps({"model_args": {"num_heads": 8}})),
        "model_args.num_heads is 8",
    ),
    "a folder with half a file": (
        lambda p: (cut(folder(p, "x", "") / "model.safetensors"), p / "folder")[1],
        "model.safetensors: not a whole safetensors file",
    ),
}


@pytest.mark.parametrize("case", PATHS)
def test_paths_that_hold_no_weights(case: str, tmp_path: Path) -> None:
    make, says = PATHS[case]
    path = make(tmp_path)
    with pytest.raises(BadInput, match=says) as refusal:
        load_pretrained(path, like=MODEL)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "ran").exists()


def test_the_pickle_that_runs_code_would_run_it(tmp_path: Path) -> None:
    saved(tmp_path / "x.pth", Command(tmp_path / "ran"))
    torch.load(tmp_path / "x.pth", weights_only=False)
    assert (tmp_path / "ran").exists()


def test_an_encoder_alone_is_refused_as_a_full_model(tmp_path: Path) -> None:
    from trainer.pretrained.export import write_full

    pretrained = load_pretrained(written(tmp_path / "x.safetensors"), like=MODEL)
    with pytest.raises(BadInput, match="has no decoders"):
        write_full(pretrained, tmp_path / "y")


def test_an_epsilon_that_timm_does_not_have_is_refused(tmp_path: Path) -> None:
    config = MODEL.model_copy(update={"norm_eps": 1e-5})
    pretrained = load_pretrained(written(tmp_path / "x.safetensors"), like=config)
    with pytest.raises(BadInput, match="norm_eps is 1e-05"):
        write_timm(pretrained, tmp_path / "y")
    assert not (tmp_path / "y").exists()
