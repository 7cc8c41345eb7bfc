"""Print the matrix of tests/engine/test_trajectory.py with its largest differences, as a Markdown table.

Run with: python -m tests.engine.trajectory_table [PART OF A SETTING'S NAME …]
"""

import sys

from tests.distributed import RankPool
from tests.engine.trajectory import MATRIX, OFFLOADED, build_cpu_adam, tolerance, trajectory


def main(wanted: list[str]) -> None:
    settings = [s for s in [*MATRIX, *OFFLOADED] if not wanted or any(part in str(s) for part in wanted)]
    print("| setting | loss differs by | weights differ by | allowed | updates skipped | bytes = theory |")
    print("|---|---|---|---|---|---|")
    with RankPool(2) as ranks:
        if any(setting.offload for setting in settings):
            ranks.run(build_cpu_adam, timeout=500)
        for setting in settings:
            by_rank = ranks.run(trajectory, setting)
            loss, weight = (max(found[f"{kind}_difference"] for found in by_rank) for kind in ("loss", "weight"))
            exact = all(found["bytes_measured"] == found["bytes_expected"] for found in by_rank)
            skipped = by_rank[0]["skipped"][0]
            print(
                f"| {setting} | {loss:.1e} | {weight:.1e} | {tolerance(setting):.0e} | {skipped} | {exact} |",
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
