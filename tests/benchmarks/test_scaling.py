"""The scaling benchmark runs: no time is judged here, for a busy machine may print any; what is counted is."""

from pathlib import Path

import pytest

from benchmarks.scaling import QUICK, main, sections


@pytest.mark.exhaustive
def test_the_traffic_table_counts_what_the_plan_says_at_every_frozen_count_and_stage() -> None:
    (section,) = sections(QUICK, ["traffic"], None)
    page = section.markdown()
    assert len(section.rows) == QUICK.case.model.num_units
    assert "16 of 16 cells" in page
    assert "planned:" not in page


@pytest.mark.exhaustive
def test_one_command_measures_every_row_and_writes_the_page(tiles: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    assert main(["--quick", "--corpus", str(tiles), "--output", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    rows = [
        "ZeRO-0 fp32",
        *(f"ZeRO-{stage} fp32, reduce_bucket_size {size}" for stage in (1, 2) for size in ("5e7 (default)", "5e6")),
        "ZeRO-3 fp32",
        "ZeRO-2 fp32, micro-batch 2",
        "ZeRO-2 fp32, micro-batch 2, loader on",
        "ZeRO-1, reduce_bucket_size 5e6",
        "ZeRO-2, contiguous_gradients false",
    ]
    assert [row for row in rows if f"| {row} " not in text] == []
    assert "nan" not in text
