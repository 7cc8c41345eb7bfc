"""What a real run leaves on the console and in its ranks' own logs, with one rank that is slow."""

from pathlib import Path

import pytest

from tests.launch.running import Run


@pytest.mark.slow
def test_a_slow_rank_is_named_and_each_rank_has_its_log(tmp_path: Path, shards: Path) -> None:
    with Run(tmp_path / "run", shards) as run:
        run.start("torchrun", "train.epochs=1", "tracking.log_every=6", fault="slow:1-18")
        assert run.end() == 0, run.printed[-3000:]
        steps = [event for event in run.events() if event["event"] == "step"]
        for step in steps:
            assert [entry["rank"] for entry in step["stragglers"] if entry["in"] == "forward"] == [1]
            (node,) = step["nodes"]
            assert node["ranks"] == 2
            assert node["forward_seconds"] > 0.25
        assert "held up by rank 1 on" in run.printed
        for rank in (0, 1):
            log = (run.directory / "logs" / f"rank_{rank:05d}.log").read_text()
            assert f"=== rank {rank} of 2 on " in log
            assert "step 18/18" in log
        assert run.printed.count("step 18/18") == 1
        assert "DeepSpeed" not in run.printed
        assert not (run.directory / "lock").exists()
