"""What the study of going on runs, on which images, and what its page says of it."""

from copy import deepcopy

import pytest

from data_tools.photograph_sources import debian_photographs, user_cache
from studies import fashion_mnist
from studies.continuations import BUDGETS, EXPLORED_SEEDS, RIVALS, WAYS, Continuation, continuations, trained
from studies.continued import jobs, tables
from studies.continued_picture import draw
from studies.continued_results import START, TAKEN, Found, read_found, sections
from studies.continued_sets import CLOTHES, CONTINUED_SETS, SHOES_AND_BAGS
from studies.results import Judged, write_judged
from studies.trials import POLICIES
from trainer.data.shard_index import ShardIndex
from trainer.model.flops import step_flops
from trainer.plan import plan_schedule
from trainer.recipe import parse_recipe

STEPS_PER_EPOCH = 1125
FROZEN = [way for way in WAYS if WAYS[way].frozen_units]


@pytest.mark.parametrize("run", continuations(1), ids=lambda run: run.name)
def test_a_run_is_what_its_way_says_and_costs_its_budget(run):
    policies = deepcopy(POLICIES)
    recipe = parse_recipe(run.recipe(STEPS_PER_EPOCH), source="run")
    way = WAYS[run.way]
    schedule = plan_schedule(recipe, STEPS_PER_EPOCH)
    assert (schedule.total_steps, schedule.warmup_steps) == (run.steps, round(run.steps / 10))
    assert [schedule.frozen_units(step) for step in (0, run.steps - 1)] == [way.frozen_units] * 2
    assert (recipe.optimizer.lr, recipe.train.seed) == (way.lr, run.seed)
    cost = run.steps * step_flops(recipe.model, way.frozen_units).total
    assert cost == pytest.approx(run.budget * step_flops(recipe.model, 0).total, rel=3e-3)
    assert policies == POLICIES


def test_the_frozen_ones_differ_from_their_rivals_in_nothing_else():
    plain = Continuation("unfrozen", 180, 2).recipe(STEPS_PER_EPOCH)
    for way in FROZEN:
        frozen = Continuation(way, 180, 2).recipe(STEPS_PER_EPOCH)
        length = Continuation(way, 180, 2).steps / 180
        assert frozen["freezing"].pop("initial_units") == WAYS[way].frozen_units
        assert frozen["train"].pop("epochs") == pytest.approx(length * plain["train"]["epochs"])
        assert frozen["optimizer"].pop("warmup_epochs") == pytest.approx(length * plain["optimizer"]["warmup_epochs"])
        same = deepcopy(plain)
        for section, key in (("freezing", "initial_units"), ("train", "epochs"), ("optimizer", "warmup_epochs")):
            same[section].pop(key)
        assert {k: v for k, v in frozen.items() if k != "checkpoint"} == {
            k: v for k, v in same.items() if k != "checkpoint"
        }


def test_every_run_comes_once_with_its_own_folder_and_unexplored_seeds():
    runs = continuations(3)
    assert len({run.name for run in runs}) == len(set(runs)) == len(runs)
    assert {run.seed for run in runs} == {EXPLORED_SEEDS, EXPLORED_SEEDS + 1, EXPLORED_SEEDS + 2}
    of_first = runs[: len(runs) // 3]
    assert {run.seed for run in of_first} == {EXPLORED_SEEDS}
    assert {run.way for run in of_first} == set(WAYS)
    assert {run.budget for run in of_first if run.way in (*RIVALS, "5 units frozen")} == set(BUDGETS)


def test_all_begin_with_the_weights_of_their_seed_but_those_from_scratch(shards, tmp_path):
    runs = continuations(2)
    for run, job in zip(runs, jobs(runs, shards, tmp_path), strict=True):
        words = [str(word) for word in job.arguments]
        start = str(tmp_path / trained(run.seed).name / "checkpoints/step_00001440")
        assert words == ["--data", str(shards), *([] if WAYS[run.way].is_new else ["--init", start])]


def test_the_new_classes_are_not_the_old_ones(package, tmp_path):
    assert sorted((*SHOES_AND_BAGS, *CLOTHES)) == list(range(len(fashion_mnist.CLASSES)))
    clothes = CONTINUED_SETS[0]
    (labels,) = (fashion_mnist.read_idx(path) for path in package.rglob("train-labels*"))
    for make, classes in ((clothes.make_old, SHOES_AND_BAGS), (clothes.make_new, CLOTHES)):
        index = ShardIndex.open(make(tmp_path / str(len(classes)), None), "train")
        assert index.num_samples == sum(label in classes for label in labels)
        assert index.classes is not None
        assert [int(name[0]) for name in index.classes] == list(classes)


def test_the_new_photographs_are_not_the_old_ones(photograph_packages, tmp_path):
    photographs = CONTINUED_SETS[1]
    halves = [
        set(ShardIndex.open(make(tmp_path / name, 12), "train").classes or ())
        for name, make in (("old", photographs.make_old), ("new", photographs.make_new))
    ]
    names = {path.stem for path in debian_photographs(user_cache("photographs"))}
    assert halves[0] | halves[1] == names
    assert not halves[0] & halves[1]


def made_up(run: Continuation) -> Judged:
    """Freezing gains two points of k-NN with a budget of 180 and loses one beyond it; seeds differ."""
    knn = 0.5 + 0.0001 * run.budget + 0.004 * run.seed
    if run.way in FROZEN:
        knn += 0.02 if run.budget == BUDGETS[0] else -0.01
    if run.way == "unfrozen, from scratch":
        knn -= 0.1
    return Judged(knn, knn + 0.1, 1.0)


@pytest.fixture
def found(tmp_path) -> Found:
    runs = continuations(3)
    for run in runs:
        write_judged(tmp_path, run, {run.steps: made_up(run)})
        write_judged(tmp_path, trained(run.seed), {1440: Judged(0.3, 0.4, 1.0)})
    return read_found(tmp_path, runs)


def test_the_tables_compare_seed_by_seed_at_equal_cost(found):
    accuracy, differences = sections(found)
    assert accuracy.rows[0] == [START, "–", "0", "3", "30.00 ± 0.00", "40.00 ± 0.00"]
    rows = {(row[0], row[1]): row[2:] for row in accuracy.rows}
    assert rows["unfrozen", "180"] == ["180", "3", "53.00 ± 0.40", "63.00 ± 0.40"]
    assert rows["5 units frozen", "180"] == ["265", "3", "55.00 ± 0.40", "65.00 ± 0.40"]
    assert ("8 units frozen", "1440") not in rows
    rows = {(row[0], row[1]): row[2:] for row in differences.rows}
    assert rows["5 units frozen less unfrozen", "180"] == ["+2.00 ± 0.00", "3 of 3"] * 2
    assert rows["5 units frozen less unfrozen, half the rate", "1440"] == ["-1.00 ± 0.00", "0 of 3"] * 2
    assert rows["8 units frozen less unfrozen, from scratch", "540"] == ["+9.00 ± 0.00", "3 of 3"] * 2
    assert len(rows) == len(RIVALS) * sum(len(WAYS[way].budgets) for way in FROZEN)


def test_what_has_not_been_run_is_left_out(found):
    some = [o for o in found.outcomes if o.run.way == "5 units frozen" or (o.run.way, o.run.seed) == ("unfrozen", 3)]
    accuracy, differences = sections(Found({}, tuple(some)))
    assert {row[0] for row in accuracy.rows} == {"5 units frozen", "unfrozen"}
    assert {row[0] for row in differences.rows} == {"5 units frozen less unfrozen"}
    assert differences.rows[0][2:] == ["+2.00", "1 of 1"] * 2
    assert sections(Found({}, ())) == []


def test_page_and_picture_have_a_part_for_each_pair_of_sets(found, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    both = dict.fromkeys(CONTINUED_SETS, found)
    text = tables(both, "python -m studies.continued")
    assert [text.count(f"### {images.title}\n") for images in CONTINUED_SETS] == [1, 1]
    assert f"{2 * (len(found.outcomes) + 3)} runs" in text

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    draw(both, tmp_path / "picture.png")
    panels = drawn[0].axes
    assert len(panels) == len(CONTINUED_SETS) * len(TAKEN)
    lines = {line.get_label(): line for line in panels[0].lines if not line.get_label().startswith("_")}
    assert lines.keys() == {START, *WAYS}
    assert list(lines["5 units frozen"].get_xdata()) == list(BUDGETS)
    assert list(lines["5 units frozen"].get_ydata()) == pytest.approx([55.0, 55.6, 64.6])
    assert len({lines[way].get_color() for way in WAYS}) == len(WAYS)
