"""The benchmark of rebuilds runs through on a tiny model; what it measures is up to the machine."""

from pathlib import Path

import pytest

from benchmarks.rebuild import main


@pytest.mark.exhaustive
def test_the_benchmark_has_a_row_for_every_layout(tmp_path: Path) -> None:
    page = tmp_path / "rebuild.md"
    assert main(["--quick", "--ranks", "1", "--stages", "0", "1", "--output", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    for stage in (0, 1):
        for precision in ("fp32", "bf16"):
            assert text.count(f"| ZeRO-{stage} {precision}, 1 rank") == 2
