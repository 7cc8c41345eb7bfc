"""What the head of a shipped recipe promises: a source, a result to expect and a cost, in figures that are computed."""

import re
from itertools import takewhile

import pytest

from launch.plan import IMAGENET_SAMPLES, RECIPES
from trainer.finetuning.recipe import FinetuneRecipe
from trainer.freezing.schedule import predicted_saving
from trainer.model.flops import classifier_flops, step_flops
from trainer.plan import plan_schedule
from trainer.recipe import load_kind, load_recipe

IMAGENET_CLASSES = 1000
SHIPPED = sorted(path.stem for path in RECIPES.glob("*.yaml"))
ARXIV = r"arXiv \d{4}\.\d{5}"


def head(recipe: str) -> list[str]:
    """The lines of comment that the file begins with, without their #."""
    lines = takewhile(lambda line: line.startswith("# "), (RECIPES / f"{recipe}.yaml").read_text().splitlines())
    return [line.removeprefix("# ") for line in lines]


def computed(recipe: str) -> tuple[float, float]:
    """GFLOP of an image in a step without frozen units, and the share in percent that the freezes of a run on
    ImageNet-1k save."""
    if recipe.startswith("finetune_"):
        config = load_kind(FinetuneRecipe, recipe, [], RECIPES).model
        return classifier_flops(config, IMAGENET_CLASSES).total / 1e9, 0.0
    loaded = load_recipe(recipe, [], RECIPES)
    schedule = plan_schedule(loaded, IMAGENET_SAMPLES // loaded.train.global_batch)
    return step_flops(loaded.model, 0).total / 1e9, 100 * predicted_saving(schedule, loaded.model)


def rounded(value: float, like: str) -> str:
    """With as many decimals as `like`."""
    return f"{value:.{len(like.partition('.')[2])}f}"


@pytest.mark.parametrize("recipe", SHIPPED)
def test_a_head_has_a_source_a_result_to_expect_and_a_cost(recipe: str) -> None:
    lines = head(recipe)
    starts = [line.partition(" ")[0] for line in lines]
    assert starts.count("Expected:") == 1, "one line is to begin '# Expected: '"
    assert starts.count("Cost:") == 1, "one line is to begin '# Cost: '"
    paper = re.search(ARXIV, " ".join(lines[:2]))
    assert paper or "Source:" in starts, "name a paper at the top, as arXiv 2303.05251, or begin a line '# Source: '"


@pytest.mark.parametrize("recipe", SHIPPED)
def test_the_figures_of_a_head_are_those_that_the_code_computes(recipe: str) -> None:
    text = " ".join(head(recipe))
    gflop, saving = computed(recipe)
    costs = re.findall(r"([\d.]+) GFLOP\b", text)
    savings = re.findall(r"([\d.]+) % fewer matmul FLOPs\b", text)
    assert costs + savings, "a cost in GFLOP, or what the freezes save in '% fewer matmul FLOPs'"
    assert costs == [rounded(gflop, figure) for figure in costs]
    assert savings == [rounded(saving, figure) for figure in savings]
