"""The scaling benchmark runs: no time is judged here, for a busy machine may print any; what is counted is."""

from pathlib import Path

import pytest

from benchmarks.scaling import QUICK, main, run
from tests.distributed import RankPool


def test_the_traffic_table_counts_what_the_plan_says_at_every_frozen_count_and_stage() -> None:
    page = run(QUICK, ["traffic"], None)
    rows = [line for line in page.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert len(rows) == QUICK.case.model.num_units
    assert "16 of 16 cells" in page
    assert "planned:" not in page


@pytest.mark.slow
def test_one_command_measures_every_row_and_writes_the_page(tiles: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    assert main(["--quick", "--corpus", str(tiles), "--output", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    rows = [
        *(f"ZeRO-{stage} fp32" for stage in range(4)),
        "ZeRO-2 fp32, loader on",
        "ZeRO-1, as it is",
        "ZeRO-2, contiguous_gradients false",
    ]
    assert [row for row in rows if f"| {row} " not in text] == []
    assert "nan" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--only", "weak,speed"],
            "--only weak,speed: there is no part 'speed'; take some of weak,loader,keys,traffic",
        ),
        (["--output", "/missing/page.md"], "--output /missing/page.md: there is no folder /missing; make it"),
    ],
)
def test_bad_arguments_are_refused_before_a_rank_starts(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pool: RankPool) -> None:
        raise AssertionError("a rank was started")

    monkeypatch.setattr(RankPool, "_start", refuse)
    assert main(["--quick", *arguments]) == 2
    assert capsys.readouterr().err == f"benchmarks.scaling: {message}\n"
