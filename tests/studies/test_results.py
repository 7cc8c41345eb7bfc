"""From result files to the table and the picture, on made-up results."""

import json

import pytest

from studies.contrast import at_cost, main_section, others_section
from studies.cost import unit
from studies.judge import Accuracy
from studies.page import BEGIN, END, put_tables
from studies.picture import draw
from studies.results import read_judged, read_points, result_file, write_judged
from studies.trials import BUDGETS, STOPS, Trial, all_trials, main_contrast, shortened
from trainer.errors import BadInput

BUDGET = BUDGETS[0]


def made_up(trial: Trial, step: int) -> Accuracy:
    """Better with every step; freezing costs two points of k-NN, the shorter schedule gains one; seeds differ."""
    knn = 0.5 + 0.3 * step / BUDGET + 0.004 * trial.seed
    knn -= 0.02 * (trial.policy != "none")
    knn += 0.01 * (trial.steps == shortened(BUDGET))
    return Accuracy(knn=knn, linear=knn + 0.1)


@pytest.fixture
def points(tmp_path):
    trials = all_trials(3)
    for trial in trials:
        stops = range(trial.steps // 2, trial.steps + 1, trial.every) if trial.has_curve else [trial.steps]
        write_judged(tmp_path, trial, {step: made_up(trial, step) for step in stops})
    return read_points(tmp_path, trials)


def test_results_come_back_as_they_were_written(tmp_path):
    trial, judged = Trial("cubic .8 scaled, warm", 720, 2), {720: Accuracy(0.5, 0.75), 60: Accuracy(0.25, 0.5)}
    write_judged(tmp_path, trial, judged)
    assert read_judged(tmp_path, trial) == judged
    assert read_judged(tmp_path, Trial("none", 720, 2)) == {}
    content = json.loads(result_file(tmp_path, trial).read_text())
    assert (content["policy"], content["seed"]) == (trial.policy, 2)


def test_the_main_table_compares_at_equal_cost_seed_by_seed(points):
    section = main_section(points, BUDGET, unit())
    rows = {row[0]: row[1:] for row in section.rows}
    assert rows["unfrozen, to the end"] == ["3", "1.000", "80.40 ± 0.40", "90.40 ± 0.40"]
    assert rows["unfrozen, stopped early"] == ["3", "0.833", "75.40 ± 0.40", "85.40 ± 0.40"]
    assert rows["unfrozen, shorter schedule"] == ["3", "0.833", "76.40 ± 0.40", "86.40 ± 0.40"]
    assert rows["cubic .8"] == ["3", "0.835", "78.40 ± 0.40", "88.40 ± 0.40"]
    (remark,) = [text for text in section.remarks if text.startswith("cubic .8 less unfrozen, stopped early")]
    assert "k-NN +3.00 ± 0.00, linear probe +3.00 ± 0.00 points" in remark
    assert len(section.remarks) == 2 * 3


def test_what_has_not_been_run_is_left_out_of_the_table(points):
    only = [point for point in points if point.trial.policy == "none" and point.trial.seed == 0]
    section = main_section(only, BUDGET, unit())
    assert [row[0] for row in section.rows] == [
        "unfrozen, to the end",
        "unfrozen, stopped early",
        "unfrozen, shorter schedule",
    ]
    assert section.rows[0][1:] == ["1", "1.000", "80.00", "90.00"]
    assert list(section.remarks) == []


def test_other_policies_stand_beside_the_unfrozen_run_at_their_own_cost(points):
    rows = {row[0]: row[1:] for row in others_section(points, BUDGET, unit()).rows}
    cost, knn, above, *_ = rows["cubic .5"]
    assert knn == "78.00%"
    at_that_cost = 0.5 + 0.3 * float(cost)
    assert float(above) == pytest.approx(100 * (0.78 - at_that_cost), abs=0.06)
    assert "none" not in rows


def test_accuracy_between_two_checkpoints_lies_on_the_line(points):
    curve = [p for p in points if p.trial == Trial("none", BUDGET, 0)]
    assert len(curve) == STOPS // 2 + 1
    assert at_cost(curve, "knn", round(0.7 * unit())) == pytest.approx(0.5 + 0.3 * 0.7)
    assert at_cost(curve, "knn", round(0.3 * unit())) is None
    assert at_cost(curve, "knn", round(1.1 * unit())) is None


def test_the_page_keeps_its_prose(tmp_path):
    page = tmp_path / "study.md"
    page.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nprose\n")
    put_tables(page, "new tables\n")
    assert page.read_text() == f"# Title\n\n{BEGIN}\n\nnew tables\n\n{END}\n\nprose\n"
    page.write_text("# Title\n")
    with pytest.raises(BadInput, match="no place for the tables"):
        put_tables(page, "new")
    assert page.read_text() == "# Title\n"


def test_the_picture_shows_each_policy_and_the_early_stops(points, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    draw(points, unit(), tmp_path / "study.png")
    panel = drawn[0].axes[0]
    lines = {line.get_label(): line for line in panel.lines}
    assert {"none", "cubic .8", "cubic .8 scaled", "linear .5", "none, stopped early"} <= lines.keys()
    costs, accuracies = lines["none, stopped early"].get_data()
    assert list(costs) == pytest.approx([step / STOPS for step in range(STOPS // 2, STOPS + 1)])
    assert accuracies[-1] == pytest.approx(80.4)
    costs, accuracies = lines["cubic .8"].get_data()
    assert accuracies[0] == pytest.approx(78.4)
    assert costs[0] == pytest.approx(5 / 6, abs=2e-3)


def test_main_contrast_of_every_seed_is_in_the_figures(points):
    assert {point.trial for point in points} >= {trial for s in range(3) for trial in main_contrast(BUDGET, s)}
