"""The recipe: what is refused, with which words, and what survives a round trip."""

from pathlib import Path

import pytest

from trainer.errors import BadInput
from trainer.finetuning.recipe import FinetuneRecipe
from trainer.model.config import EncoderConfig
from trainer.recipe import Recipe, describe_recipe, differing_keys, dump_recipe, load_kind, load_recipe

SHIPPED = Path(__file__).parents[1] / "launch" / "recipes"


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_and_survives_a_round_trip(path, tmp_path):
    ours, other = (FinetuneRecipe, Recipe) if path.stem.startswith("finetune_") else (Recipe, FinetuneRecipe)
    recipe = load_kind(ours, path.stem, [], SHIPPED)
    copy = tmp_path / "recipe.yaml"
    copy.write_text(dump_recipe(recipe))
    assert load_kind(ours, str(copy), [], SHIPPED) == recipe
    for name in (path.stem, str(copy)):
        with pytest.raises(BadInput, match=r"section finetune, so it is a recipe for launch/(pretrain|finetune)\.py"):
            load_kind(other, name, ["finetune.layer_decay=0.5"], SHIPPED)


@pytest.mark.parametrize("name", ["demo", "vit_small", "vit_base", "vit_large", "vit_huge"])
def test_what_a_recipe_pre_trains_its_counterpart_fine_tunes(name):
    counterpart = load_kind(FinetuneRecipe, f"finetune_{name.removeprefix('vit_')}", [], SHIPPED)
    pretrained = load_recipe(name, [], SHIPPED).model
    assert counterpart.model.model_dump() == pretrained.model_dump(include=set(EncoderConfig.model_fields))


def test_overrides_win_over_the_file_and_take_yaml_values():
    recipe = load_recipe("vit_base", ["train.epochs=100", "optimizer.blr=1e-3", "model.stages=[5, 11]",
                                      "model.scales=[2, 1]", "data.path=/a/b c"], SHIPPED)  # fmt: skip
    assert recipe.train.epochs == 100
    assert recipe.optimizer.blr == 1e-3  # YAML itself takes 1e-3 for a word
    assert recipe.model.stages == [5, 11]
    assert recipe.data.path == "/a/b c"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3h50m", 13800), ("45m", 2700), ("90min", 5400), ("1d", 86400), ("1h 30s", 3630), ("600", 600), ("0.5", 0.5),
     ("3:50:00", 13800), ("null", None)],
)  # fmt: skip
def test_durations_are_read_as_people_and_schedulers_write_them(text, seconds, tmp_path):
    recipe = load_recipe("vit_base", [f"train.stop_after={text}"], SHIPPED)
    assert recipe.train.stop_after == seconds
    (tmp_path / "copy.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(str(tmp_path / "copy.yaml"), [], SHIPPED) == recipe


@pytest.mark.parametrize("kind", [Recipe, FinetuneRecipe])
def test_no_key_shows_the_secrets_of_a_url(kind):
    """Of all that hold a text, those that are added one day included; the program itself sees the whole URL."""
    url, texts = "https://me:password@host/folder?token=1", 0
    for info in kind.model_fields.values():
        for key, field in info.annotation.model_fields.items():
            if field.annotation == str | None:
                section = info.annotation.model_construct(**{key: url})
                assert section.model_dump(mode="json")[key] == "https://host/folder?…"
                assert section.model_dump()[key] == url
                texts += 1
    assert texts >= 3


def test_the_learning_rate_follows_the_linear_scaling_rule_unless_given():
    assert load_recipe("vit_base", [], SHIPPED).learning_rate == pytest.approx(2e-4 * 2048 / 256)
    assert load_recipe("vit_base", ["optimizer.lr=0.5"], SHIPPED).learning_rate == 0.5


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.epoch=5"], ["train.epoch", "did you mean 'epochs'"]),
        (["trian.epochs=5"], ["trian", "did you mean 'train'"]),
        (["train.epochs"], ["section.key=value"]),
        (["train=5"], ["section.key=value"]),
        (["train.epochs=ten"], ["train.epochs", "'ten'"]),
        (["train.global_batch=0"], ["train.global_batch", "greater than or equal to 1"]),
        (["train.precision=fp8"], ["train.precision", "'bf16'"]),
        (["optimizer.warmup_epochs=2000"], ["optimizer.warmup_epochs", "2000", "1600"]),
        (["model.patch_size=15"], ["model", "15"]),
        (["freezing.t0=1.5"], ["freezing", "t0"]),
        (["checkpoint.keep_last=0"], ["checkpoint.keep_last"]),
        (["train.stop_after=soon"], ["train.stop_after", "write a duration as 3h50m", "'soon'"]),
        (["train.stop_after=''"], ["train.stop_after", "write a duration"]),
        (["train.stop_after=0"], ["train.stop_after", "greater than 0"]),
        (["train.hang_timeout=-5"], ["train.hang_timeout", "greater than or equal to 0"]),
        (["train.max_bad_steps=0"], ["train.max_bad_steps", "greater than or equal to 1"]),
    ],
)
def test_a_bad_override_is_one_line_that_names_the_key(overrides, words):
    with pytest.raises(BadInput) as error:
        load_recipe("vit_base", overrides, SHIPPED)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("text", "word"),
    [("train: [1, 2", "not valid YAML"), ("- train", "mapping of sections"), ("train: 5", "mapping of keys")],
)
def test_a_file_that_is_no_recipe_is_refused_by_name(tmp_path, text, word):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=word) as error:
        load_recipe(str(path), [], SHIPPED)
    assert str(path) in str(error.value)


def test_an_unknown_recipe_name_suggests_the_nearest():
    with pytest.raises(BadInput, match="did you mean 'vit_base'"):
        load_recipe("vit_bse", [], SHIPPED)


def test_differences_between_recipes_are_named_by_key():
    now = load_recipe("vit_base", ["train.seed=3"], SHIPPED)
    assert differing_keys(load_recipe("vit_base", [], SHIPPED), now) == {"train.seed": (0, 3)}


@pytest.mark.parametrize("kind", [Recipe, FinetuneRecipe])
def test_every_key_is_documented(kind):
    text = describe_recipe(kind)
    for section, field in kind.model_fields.items():
        for key, info in field.annotation.model_fields.items():
            assert info.description, f"{section}.{key}"
            assert f"  {key}: " in text
