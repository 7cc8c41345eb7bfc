"""Bad input ends with one line that names the mend and exit code 2, before an engine is built or a file written."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from launch import command
from launch.finetune import main
from tests.distributed import REPOSITORY, RankPool
from tests.finetuning.small import run_small, small_tree
from trainer.data.shard_index import ShardIndex, write_index
from trainer.errors import BadInput
from trainer.finetuning.plan import count_classes

TABLE = {
    "no weights": ("no weights to start from: give --init", ["finetune.init="]),
    "weights behind a URL": (
        r"finetune.init: https://host/x\.pth\?… is a URL, and weights are read from paths alone: download them",
        ["--init", "https://me:password@host/x.pth?token=1"],
    ),
    "pre-training's recipe": (
        "has no section finetune, so it is a recipe for launch/pretrain",
        ["--recipe", "vit_base"],
    ),
    "pre-training's key": ("unknown key model.mask_ratio", ["model.mask_ratio=0.5"]),
    "pre-training's section": ("unknown section 'freezing'", ["freezing.how=cubic"]),
    "decay above one": ("finetune.layer_decay: .*less than or equal to 1", ["finetune.layer_decay=1.1"]),
    "average that never moves": ("finetune.average: .*less than 1", ["finetune.average=1"]),
    "RandAugment in other words": ("augmentation.rand_augment: write .* as rand-m9", ["augmentation.rand_augment=m9"]),
    "odd pairs": ("mixup and cutmix pair .* 1 is odd: set train.micro_batch", ["train.micro_batch=1"]),
    "classes too few": ("finetune.classes is 5 but .*train.json names 6: raise it", ["finetune.classes=5"]),
    "a pipe": ("data.path is a pipe:", ["--data", "pipe:cat x", "data.samples=100"]),
    "no such shards": ("no shard index at .*nowhere", ["--data", "nowhere"]),
    "no such held-out shards": ("validation: no shard index at .*--validation SHARDS", ["--validation", "nowhere"]),
    "warm-up longer than the run": ("optimizer.warmup_epochs .* below train.epochs", ["optimizer.warmup_epochs=9"]),
    "floor above the peak": ("optimizer.min_lr 1: .*between 0 and", ["optimizer.min_lr=1"]),
    "profile beyond the run": ("train.profile: step 99 lies beyond the run: .* 1 to 6", ["train.profile=99"]),
    "flag that is not there": ("--bogus .*--help", ["--bogus"]),
}


def refusal(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says as it refuses these arguments, in this process."""
    monkeypatch.setattr(sys, "argv", ["finetune.py", *arguments])
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit) as leaving:
        command.run_command(main)
    told = capsys.readouterr().err
    assert leaving.value.code == 2, told
    assert told.count("\n") == 1
    assert told.startswith("error: ")
    return told


@pytest.fixture
def sound(tmp_path: Path, split: Path, pretrained: Path) -> list[str]:
    recipe, ds_config = tmp_path / "small.yaml", tmp_path / "config.json"
    recipe.write_text(yaml.safe_dump(small_tree(split, pretrained)))
    ds_config.write_text("{}")
    return ["--recipe", str(recipe), "--ds_config", str(ds_config), "--output", str(tmp_path / "run")]


@pytest.mark.parametrize(("says", "spoilt"), TABLE.values(), ids=TABLE)
def test_it_is_refused_before_the_ranks_meet(
    says: str,
    spoilt: list[str],
    sound: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert re.search(says, refusal([*sound, *spoilt], monkeypatch, capsys))
    assert not (tmp_path / "run").exists()


def test_shards_that_train_are_no_held_out_shards(
    split: Path, sound: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refusal([*sound, "--validation", str(split / "train.json")], monkeypatch, capsys)
    assert "is what the run trains on; give held-out shards" in told


def test_classes_come_from_the_index_or_from_the_recipe(split: Path) -> None:
    index = ShardIndex.open(split)
    assert count_classes(None, index) == 6
    assert count_classes(9, index) == 9
    nameless = replace(index, classes=None)
    assert count_classes(4, nameless) == 4
    with pytest.raises(BadInput, match="names no classes, as an index of shards without labels: give shards with lab"):
        count_classes(None, nameless)


def refused_on_a_rank(data: Path, init: Path, output: Path, settings: dict) -> str:
    try:
        return f"ended with {run_small(data, init, output, **settings)}"
    except BadInput as error:
        return str(error)


@pytest.mark.parametrize(
    ("says", "settings"),
    [
        ("its number of attention heads is 2, that of the recipe's model is 4: change", {"model": {"num_heads": 4}}),
        ("its image size is 32, that of the recipe's model is 64: change", {"model": {"image_size": 64}}),
    ],
)
def test_weights_of_another_shape_are_refused_before_anything_is_written(
    one_rank: RankPool, split: Path, pretrained: Path, tmp_path: Path, says: str, settings: dict
) -> None:
    (told,) = one_rank.run(refused_on_a_rank, split, pretrained, tmp_path / "run", settings)
    assert re.search(rf"^rank 0: --init .*step 5: {says}", told), told
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["given_0.json"]  # the test's own


def test_a_missing_file_of_weights_is_refused(one_rank: RankPool, split: Path, tmp_path: Path) -> None:
    (told,) = one_rank.run(refused_on_a_rank, split, tmp_path / "nothing", tmp_path / "run", {})
    assert re.search("rank 0: .*nothing", told), told
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["given_0.json"]


def test_a_sample_whose_label_is_none_of_the_classes_is_named(
    one_rank: RankPool, split: Path, pretrained: Path, tmp_path: Path
) -> None:
    """An index that names five classes, over shards of six."""
    index = ShardIndex.open(split)
    for tar in index.shards:
        (tmp_path / tar.path).symlink_to(split / tar.path)
    write_index(tmp_path, "train", list(index.shards), np.array(index.offsets), index.classes[:5], {})
    (told,) = one_rank.run(
        refused_on_a_rank, tmp_path, pretrained, tmp_path / "run", {"validation": {"every_epochs": 0}}
    )
    assert re.search(r"train.json: sample \S+ has label 5, the classes are 0 to 4: set finetune.classes", told), told


@pytest.mark.parametrize(
    ("program", "shown", "hidden"),
    [("finetune", "finetune_base", "vit_base"), ("pretrain", "vit_base", "finetune_base")],
)
def test_the_commands_name_only_their_own_recipes(program: str, shown: str, hidden: str) -> None:
    command_line = [sys.executable, f"launch/{program}.py", "--help"]
    done = subprocess.run(command_line, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    listed = done.stdout.partition("one of the shipped:")[2].partition("--data")[0]
    assert shown in listed
    assert hidden not in listed
