"""No ratio stands the wrong way round: the rows of the tables, made of invented times."""

import numpy as np
import pytest

from benchmarks.checkpointed_blocks import time_cells
from benchmarks.compiled_blocks import block_row
from benchmarks.freezing_cases import TINY
from benchmarks.frozen_compute import StepCosts, count_section, part_section, saving_section
from benchmarks.frozen_loading import RankSeconds, saving_cells
from benchmarks.frozen_memory import Held, columns_of
from benchmarks.frozen_run import RunSeconds, saved_rows
from benchmarks.published_freezing import published_flops
from benchmarks.rebatch import QUICK, measured_counts, overhead_cells, steps_by_frozen_units, times_faster
from benchmarks.rebuild import Row, memory_section, time_section
from benchmarks.rebuild_costs import Costs as FreezeCosts
from benchmarks.rounds import Costs
from benchmarks.scaling_ranks import Case, StepSeconds
from benchmarks.scaling_tables import breakdown_row, efficiency_row, key_row
from benchmarks.step_profile import ATTENTION, ELSEWHERE, MATMUL
from benchmarks.step_tables import BARE, ENGINE, GEMM, PLAIN, hog_rows, left_rows, step_row
from trainer.freezing.schedule import FreezeSchedule, saving


def costs(seconds: float) -> Costs:
    """The same in every round."""
    return Costs(np.full(4, seconds))


def ratio(value: float) -> str:
    return f"{value:.2f} ({value:.2f}–{value:.2f})"


def test_a_step_in_half_the_time_of_the_plain_one_is_twice_it() -> None:
    measured = {PLAIN: costs(0.4), ENGINE: costs(0.2), GEMM: costs(1e-3)}  # an image; a FLOP
    row = step_row(ENGINE, 1, 16, measured, flops=150)
    assert row == [ENGINE, "1", "16", "5.00", ratio(2), "1", "75.0%", "≥ 1.30, ≥ 85 %"]
    assert step_row(PLAIN, 1, 16, measured, flops=150)[3:7] == ["2.50", "1", ratio(0.5), "37.5%"]


def test_hog_in_a_tenth_of_the_time_is_ten_times_it() -> None:
    measured = {"per scale and channel": costs(0.020), "ours": costs(0.002)}
    plain, ours = hog_rows(measured, step=costs(0.1))
    assert plain == ["per scale and channel", "20.00", "1", "20.0%", ""]
    assert ours == ["ours", "2.00", ratio(10), "2.0%", "≥ 9, ≤ 3 %"]


def test_deepspeed_is_what_the_engines_step_takes_beyond_the_bare_one() -> None:
    needed = {MATMUL: 0.5, ATTENTION: 0.1}
    rows = left_rows({ATTENTION: 0.25, MATMUL: 0.75, ELSEWHERE: 0.0}, {BARE: costs(0.8), ENGINE: costs(1.0)}, needed)
    assert rows == [
        [MATMUL, "60.0%", "50.0%", "10.0"],
        [ATTENTION, "20.0%", "10.0%", "10.0"],
        [ELSEWHERE, "0.0%", "", "0.0"],
        ["DeepSpeed", "20.0%", "", "20.0"],
        ["all", "100.0%", "60.0%", "40.0"],
    ]


def test_two_ranks_that_take_longer_than_one_are_less_efficient() -> None:
    case = Case("ZeRO-1", TINY.model, 2, stage=1)
    measured = {"alone": costs(4.0), "apart": costs(5.0), "ZeRO-1": costs(8.0)}
    assert efficiency_row(case, measured, "≥ 0.95") == [
        "ZeRO-1", "4.00", "5.00", "8.00", ratio(0.8), ratio(0.625), ratio(0.5), "≥ 0.95",
    ]  # fmt: skip
    thrown_away = StepSeconds(9, 9, 9, 9)
    parts = {"apart": [thrown_away, StepSeconds(0, 1, 3, 1)], "ZeRO-1": [thrown_away, StepSeconds(0, 1, 6, 1)]}
    assert breakdown_row(case, parts, (2.0, 7)) == [
        "ZeRO-1", "0.00 → 0.00", "1.00 → 1.00", "3.00 → 6.00", "1.00 → 1.00", "2.00 (7)", "25.0%",
    ]  # fmt: skip
    base = {"ZeRO-1": costs(8.0), "ZeRO-1, reduce_bucket_size 5e6": costs(4.0)}
    assert key_row(case, base, (2.0, 7)) == ["ZeRO-1", "8.00", ratio(0.5), "2.00 (7)"]


def test_a_freeze_counts_in_steps_of_its_layout_and_of_the_slowest_rank() -> None:
    def one_rank(slower: float, precision: str) -> FreezeCosts:
        next_steps = [0.5 * slower] * 2 if precision == "fp32" else []
        step = 2.0 * slower if precision == "fp32" else 0.0
        return FreezeCosts(
            step, 6 * 10**6, 30 * 10**6, [1.0 * slower, 3.0 * slower], next_steps, [1, 2], [3, 4], [5, 6]
        )

    rows = [
        Row(2, stage, precision, [one_rank(slower * (stage + 1), precision) for slower in (0.5, 1.0)])
        for stage in (0, 1)
        for precision in ("fp32", "bf16")
    ]
    seconds = time_section(TINY, rows).rows
    # the slower rank: freezes of 1 and 3 s; a step loses the median of 0.25 and 0.5 s; 2 freezes of a run of 18,750 s
    assert seconds[0][1:] == ["2.000", "3.000", "0.375", "2.00", "1.69", "0.025 %"]
    assert seconds[1][1:] == ["2.000", "3.000", "-", "2.00", "1.50", "0.021 %"]
    assert seconds[2][1:] == ["4.000", "6.000", "0.750", "4.00", "1.69", "0.051 %"]
    assert memory_section(TINY, rows).rows[0][1:3] == ["30.0", "6.0"]


def test_freezing_that_halves_a_steps_time_saves_half_of_it() -> None:
    """A model that costs what its FLOPs promise saves what they do; one whose parts cost the same always, nothing."""
    flops = {"here": TINY.flops, "as published": published_flops(TINY.model)}
    by_flops = {
        name: StepCosts(TINY, "fp32", own, {count: [own[count], own[count], 2 * own[count]] for count in (0, 4)})
        for name, own in flops.items()
    }
    for row, own in zip(saving_section([by_flops], []).rows, flops.values(), strict=True):
        assert row[3:] == [f"{saving(TINY.schedule, own):.1%}"] * 2
    last = count_section(by_flops).rows[-1]
    here, published = (f"{own[4] / own[0]:.3f}" for own in flops.values())
    assert last == ["4", here, here, here, published, published, published]
    constant = {"here": StepCosts(TINY, "fp32", TINY.flops, {count: [1.0, 2.0, 1.0] for count in (0, 4)})}
    assert [row[1:4] for row in part_section(constant).rows] == [
        ["25.0%", "0.0%", "0.00"], ["50.0%", "0.0%", "0.00"], ["25.0%", "0.0%", "0.00"],
    ]  # fmt: skip
    assert saving_section([constant], []).rows[0][3:] == ["0.0%", "0.0%"]


def test_a_loader_that_takes_its_time_at_the_last_freeze_saves_less() -> None:
    """Ready data: as the FLOPs promise, in twice the time on the slower rank. The loader holds the last count up."""
    flops = TINY.flops

    def rank(slower: float) -> dict[int, RankSeconds]:
        ready = {count: slower * flops[count] / flops[0] for count in TINY.counts}
        waits = {count: 0.0 if count < 4 else slower * (1 - flops[4] / flops[0]) for count in TINY.counts}
        return {
            count: RankSeconds(2.0, [ready[count] + waits[count]] * 3, [waits[count]] * 3, [ready[count]] * 3)
            for count in TINY.counts
        }

    saved, wall, difference, _, step, waiting = saving_cells(TINY, [rank(1.0), rank(2.0)])
    assert saved == f"{saving(TINY.schedule, flops):.1%}"
    assert float(wall.rstrip("%")) < float(saved.rstrip("%"))
    assert float(difference) < 0
    assert step == "1.50 s"
    assert waiting == f"0.0%, {1 - flops[4] / flops[0]:.1%}"


def test_a_run_that_freezes_in_less_time_saves_and_its_freezes_count_against_it() -> None:
    schedule = FreezeSchedule(TINY.schedule.config, 4, 100, 10, lr=1e-4, min_lr=0)
    rows = saved_rows(schedule, [1.0] * 5, [2.0, 1.0, 1.0, 1.0, 1.0], RunSeconds(100, 0), RunSeconds(90, 5))
    found = dict(rows)
    assert found["by FLOPs"] == "0.0%"
    assert 0 < float(found["by the step costs above"].rstrip("%")) < 50
    assert found["this run, without the freezes themselves"] == "15.0%"
    assert found["this run, all of it"] == "10.0%"


def test_the_peak_falls_from_the_unfrozen_one() -> None:
    columns = columns_of([Held(4, 16, 100, 50, peak=1000), Held(3, 12, 80, 40, peak=700)])
    assert columns == [[4, 3], [16, 12], [100, 80], [50, 40], [0, 300]]


def test_many_micro_batches_take_longer_than_one() -> None:
    """A share of 4: 1 s in one micro-batch, 1.5 s in two, 2.5 s in four, which are three more."""
    cells = overhead_cells(QUICK, {"1": costs(2.5), "2": costs(1.5), "4": costs(1.0)})
    assert cells == ["2.50", "1.50", "1.00", "500"]


def test_a_whole_run_is_faster_by_what_its_steps_are_at_each_frozen_count() -> None:
    chosen = [1, 1, 2, 2, 4]
    assert measured_counts(chosen) == [0, 2, 4]
    counts = range(5)
    same = {size: dict.fromkeys(counts, 3.0) for size in (1, 2, 4)}
    assert times_faster(QUICK.model, chosen, same) == pytest.approx(1)
    twice = {1: {0: 2.0, 2: 2.0, 4: 2.0}, 2: {2: 1.0, 4: 1.0}, 4: {4: 1.0}}
    steps = steps_by_frozen_units(QUICK.model)
    expected = 2 * steps.sum() / (2 * steps[:2].sum() + steps[2:].sum())
    assert times_faster(QUICK.model, chosen, twice) == pytest.approx(expected)
    falling = {1: {0: 3.0, 4: 1.0}, 2: {0: 3.0, 4: 1.0}, 4: {4: 1.0}}  # not as if count 0's time held to the end
    assert times_faster(QUICK.model, chosen, falling) == pytest.approx(1)


def test_a_compiled_block_in_half_the_time_is_twice_as_fast_and_checkpointing_takes_longer() -> None:
    measured = {"eager": costs(0.004), "compiled": costs(0.002)}
    assert block_row("tiny", "live", measured, 1e-6) == ["tiny", "live", "4.0", ratio(2), "1e-06"]
    assert time_cells(plain=costs(1.0), checkpointed=costs(1.25), repeated=0.3) == [ratio(1.25), "1.30"]
