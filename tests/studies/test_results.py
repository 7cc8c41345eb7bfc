"""From result files to the table and the picture, on made-up results."""

import json
from dataclasses import replace

import pytest

from studies.contrast import at_cost, main_sections, others_section
from studies.cost import flops, unit
from studies.freezing import MODULE, tables
from studies.image_sets import IMAGE_SETS
from studies.page import END, begin, put_tables
from studies.picture import draw
from studies.results import Judged, read_judged, read_points, result_file, write_judged
from studies.trials import BUDGETS, CONTRASTED, POLICIES, STOPS, Trial, main_contrast, shortened
from trainer.errors import BadInput

BEGIN = begin(MODULE)
BUDGET = BUDGETS[0]
FASHION, TILES = IMAGE_SETS
SHORTER = shortened("cubic .8", BUDGET)


def made_up(trial: Trial, step: int) -> Judged:
    """Better with every step; freezing costs two points of k-NN, the shorter schedule gains one; seeds differ."""
    knn = 0.5 + 0.3 * step / BUDGET + 0.004 * trial.seed
    knn -= 0.02 * (trial.policy != "none")
    knn += 0.01 * (trial.steps < BUDGET)
    return Judged(knn, knn + 0.1, 2.0 * step, knn + 0.15 if step in trial.finetuned_at else None)


@pytest.fixture
def points(tmp_path):
    trials = FASHION.trials(3, quick=False)
    for trial in trials:
        curve = [0, *range(trial.steps // 2, trial.steps + 1, trial.every)]
        stops = curve if trial.has_curve else [trial.steps]
        write_judged(tmp_path, trial, {step: made_up(trial, step) for step in stops})
    return read_points(tmp_path, trials)


def test_results_come_back_as_they_were_written(tmp_path):
    trial = Trial("cubic .8 scaled, warm", 720, 2)
    judged = {720: Judged(0.5, 0.75, 12.5, 0.875), 60: Judged(0.25, 0.5, 1.5)}
    write_judged(tmp_path, trial, judged)
    assert read_judged(tmp_path, trial) == judged
    assert read_judged(tmp_path, Trial("none", 720, 2)) == {}
    content = json.loads(result_file(tmp_path, trial).read_text())
    assert (content["policy"], content["seed"]) == (trial.policy, 2)


def test_the_main_table_compares_at_equal_cost(points):
    section, _ = main_sections(points, BUDGET, unit())
    rows = {row[0]: row[1:] for row in section.rows}
    assert rows["unfrozen, to the end"] == ["3", "1.000", "1.000", "80.40 ± 0.40", "90.40 ± 0.40", "95.40 ± 0.40"]
    assert rows["unfrozen, stopped at 0.833"] == ["3", "0.833", "0.833", "75.40 ± 0.40", "85.40 ± 0.40", "90.40 ± 0.40"]
    assert rows["unfrozen, schedule of 0.833"][3:] == ["76.40 ± 0.40", "86.40 ± 0.40", "91.40 ± 0.40"]
    assert rows["cubic .8"] == ["3", "0.835", "1.000", "78.40 ± 0.40", "88.40 ± 0.40", "93.40 ± 0.40"]
    at_late = f"{100 * (0.504 + 0.3 * 0.896):.2f} ± 0.40"  # between two checkpoints
    assert rows["unfrozen, stopped at 0.896"][:4] == ["3", "0.896", "0.896", at_late]
    assert rows["untrained"] == ["3", "0.000", "0.000", "50.40 ± 0.40", "60.40 ± 0.40", "–"]
    assert [float(row[2]) for row in section.rows] == sorted((float(row[2]) for row in section.rows), reverse=True)


def test_differences_are_taken_seed_by_seed_and_at_equal_cost(points):
    _, section = main_sections(points, BUDGET, unit())
    rows = {row[0]: row[1:] for row in section.rows}
    assert rows["cubic .8 less unfrozen, stopped at 0.833"] == ["+3.00 ± 0.00"] * 3
    assert rows["cubic .8 scaled less unfrozen, schedule of 0.833"] == ["+2.00 ± 0.00"] * 2 + ["–"]  # not fine-tuned
    assert rows["cubic .8 less unfrozen, to the end"] == ["-2.00 ± 0.00"] * 3
    assert set(rows) == {
        f"{policy} less unfrozen, {rival}"
        for policy, share in zip(CONTRASTED, ("0.833", "0.833", "0.896", "0.896"), strict=True)
        for rival in (f"stopped at {share}", f"schedule of {share}", "to the end")
    }


def test_seeds_that_only_one_of_the_two_has_are_left_out_of_the_difference(points):
    fewer = [p for p in points if not (p.trial.policy == "cubic .8" and p.trial.seed == 2)]
    fewer = [p for p in fewer if p.trial != Trial("none", SHORTER, 0)]
    rows = {row[0]: row[1:] for row in main_sections(fewer, BUDGET, unit())[1].rows}
    assert rows["cubic .8 less unfrozen, schedule of 0.833"] == ["+2.00"] * 3  # of seed 1 alone


def test_what_has_not_been_run_is_left_out_of_the_table(points):
    only = [point for point in points if point.trial.policy == "none" and point.trial.seed == 0]
    (section,) = main_sections(only, BUDGET, unit())
    assert [row[0] for row in section.rows] == ["unfrozen, to the end", "untrained"]
    assert section.rows[0][1:] == ["1", "1.000", "1.000", "80.00", "90.00", "95.00"]


def test_a_measure_that_was_not_taken_is_a_dash(points):
    bare = [replace(p, judged=replace(p.judged, finetune=None)) for p in points]
    section, differences = main_sections(bare, BUDGET, unit())
    assert {row[-1] for row in (*section.rows, *differences.rows)} == {"–"}
    assert {row[-2] for row in others_section(bare, BUDGET, unit()).rows} == {"–"}


def test_other_policies_stand_beside_the_unfrozen_runs_at_their_own_cost(points):
    rows = {row[0]: row[1:] for row in others_section(points, BUDGET, unit()).rows}
    seeds, cost, knn, above, *_, finetuned, _ = rows["cubic .5"]
    assert (seeds, knn, finetuned) == ("1", "78.00", "–")
    at_that_cost = 0.5 + 0.3 * float(cost)
    assert float(above) == pytest.approx(100 * (0.78 - at_that_cost), abs=0.06)
    assert rows["cubic .8"][-2:] == ["93.40 ± 0.40", "+2.96 ± 0.00"]
    seeds, cost, knn, above, *_ = rows["cubic .9"]
    assert (seeds, knn) == ("3", "78.40 ± 0.40")
    middle, spread = map(float, above.split(" ± "))
    assert middle == pytest.approx(100 * (0.78 - 0.5 - 0.3 * float(cost)), abs=0.06)
    assert spread == 0
    assert "none" not in rows


def test_runs_that_chose_when_to_freeze_are_compared_each_at_its_own_cost(points):
    planned = [p for p in points if p.trial.policy != "plasticity"]
    by_chance = [
        replace(p, cost=round(share * unit()), judged=replace(p.judged, knn=0.5 + 0.3 * share + 0.004 * seed))
        for seed, share in enumerate((0.8, 0.9, 0.7))
        for p in points
        if p.trial == Trial("plasticity", BUDGET, seed)
    ]
    (row,) = [row for row in others_section(planned + by_chance, BUDGET, unit()).rows if row[0] == "plasticity"]
    assert row[1:3] == ["3", "0.800"]
    assert row[4] == "+0.00 ± 0.00"


def test_accuracy_between_two_checkpoints_lies_on_the_line(points):
    curve = [p for p in points if p.trial == Trial("none", BUDGET, 0)]
    assert len(curve) == STOPS // 2 + 2  # and the network that it began with

    def knn(share: float) -> float | None:
        return at_cost(curve, lambda point: point.judged.knn, round(share * unit()))

    assert knn(0.7) == pytest.approx(0.5 + 0.3 * 0.7)
    assert at_cost(curve, lambda point: point.judged.knn, flops(Trial("none", SHORTER, 0))) == pytest.approx(0.75)
    assert knn(0.3) is None
    assert knn(1.1) is None


def test_the_page_has_a_part_for_each_set_of_images(points):
    points_of_tiles = [p for p in points if p.trial in TILES.trials(3, quick=False)]
    text = tables({FASHION: points, TILES: points_of_tiles}, unit(), "python -m studies.freezing")
    fashion, of_tiles = text.split("### Grey tiles of photographs")
    assert "### Fashion-MNIST" in fashion
    assert f"{BUDGETS[1]} steps, seed by seed" in fashion
    assert "All policies" in fashion
    assert f"#### {BUDGET} steps\n" in of_tiles
    assert "All policies" not in of_tiles


def test_the_page_keeps_its_prose(tmp_path):
    page = tmp_path / "study.md"
    page.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nprose\n")
    put_tables(page, "new tables\n", MODULE)
    assert page.read_text() == f"# Title\n\n{BEGIN}\n\nnew tables\n\n{END}\n\nprose\n"
    page.write_text("# Title\n")
    with pytest.raises(BadInput, match="no place for the tables"):
        put_tables(page, "new", MODULE)
    assert page.read_text() == "# Title\n"


def test_the_picture_shows_each_policy_and_the_early_stops(points, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    draw({FASHION: points}, unit(), tmp_path / "study.png")
    panel, *_, finetuned = drawn[0].axes
    lines = {line.get_label(): line for line in panel.lines}
    assert {"none", "cubic .8", "cubic .8 scaled", "linear .5", "none, stopped early"} <= lines.keys()
    costs, accuracies = lines["none, stopped early"].get_data()
    assert list(costs) == pytest.approx([step / STOPS for step in range(STOPS // 2, STOPS + 1)])
    assert accuracies[-1] == pytest.approx(80.4)
    costs, accuracies = lines["cubic .8"].get_data()
    assert accuracies[0] == pytest.approx(78.4)
    assert costs[0] == pytest.approx(5 / 6, abs=2e-3)
    (stopped,) = [line for line in finetuned.lines if line.get_label() == "none, stopped early"]
    assert list(stopped.get_data()[0]) == pytest.approx([5 / 6, 1])


def test_the_picture_has_a_colour_for_each_policy_and_no_empty_panel(points, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    bare = [replace(p, judged=replace(p.judged, finetune=None)) for p in points]
    spread = [replace(p, cost=p.cost - p.trial.seed) if p.trial.policy == "plasticity" else p for p in points]
    draw({FASHION: spread, TILES: bare}, unit(), tmp_path / "study.png")
    *_, without = drawn[0].axes
    assert [panel.axison for panel in drawn[0].axes] == [True] * 5 + [False]
    assert not without.lines
    lines = {line.get_label(): line for line in drawn[0].axes[0].lines if not line.get_label().startswith("_")}
    assert len({line.get_color() for line in lines.values()}) == len(lines) == len(POLICIES) + 1
    assert len(lines["plasticity"].get_xdata()) == 1  # one length: the mean of its seeds, whatever each cost


def test_main_contrast_of_every_seed_is_in_the_figures(points):
    assert {point.trial for point in points} >= {trial for s in range(3) for trial in main_contrast(BUDGET, s)}
