"""Contenders take turns, and ratios are taken within a round."""

import numpy as np

from benchmarks.rounds import Costs, ratio_text, take_turns


def test_contenders_take_turns_and_the_first_round_does_not_count():
    calls = []
    costs = iter([9.0, 9.0, 2.0, 1.0, 4.0, 2.0])

    def contender(name: str):
        def measure() -> float:
            calls.append(name)
            return next(costs)

        return measure

    measured = take_turns({"theirs": contender("theirs"), "ours": contender("ours")}, rounds=2)
    assert calls == ["theirs", "ours"] * 3
    assert measured["theirs"].seconds.tolist() == [2.0, 4.0]
    assert measured["ours"].best_rate == 1.0


def test_a_machine_that_slows_down_for_a_round_does_not_change_the_ratio():
    baseline, ours = Costs(np.array([2.0, 20.0, 2.0])), Costs(np.array([1.0, 10.0, 1.0]))
    assert ours.times_faster_than(baseline) == (2.0, 2.0, 2.0)
    assert ratio_text(ours, baseline) == "2.00 (2.00–2.00)"
    assert ratio_text(baseline, baseline) == "1"


def test_two_rounds_show_both_ratios_and_one_its_own():
    assert ratio_text(Costs(np.array([1.0, 1.0])), Costs(np.array([2.0, 3.0]))) == "2.50 (2.00, 3.00)"
    assert ratio_text(Costs(np.array([1.0])), Costs(np.array([2.0]))) == "2.00"
