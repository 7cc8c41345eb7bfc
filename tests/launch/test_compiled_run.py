"""`train.compile` in a whole run: the real compiler, through freezes, and a resume that switches it off."""

import signal
from pathlib import Path

import pytest

from tests.launch.running import Run


@pytest.mark.exhaustive
def test_a_compiled_run_goes_on_uncompiled_and_checkpointed(tmp_path: Path, shards: Path) -> None:
    with Run(tmp_path / "plain", shards) as plain, Run(tmp_path / "run", shards) as run:
        plain.start("python", "tracking.pictures=never")
        assert plain.end() == 0, plain.printed[-3000:]
        run.start("python", "tracking.pictures=never", "train.compile=true")
        first_freeze = next(event["step"] for event in plain.events() if event["event"] == "freeze")
        run.wait_for_step(first_freeze + 1)
        run.launcher.send_signal(signal.SIGTERM)
        assert run.end() == 75, run.printed[-3000:]
        assert "compiled the encoder's block in" in run.printed
        run.start("python", "tracking.pictures=never", "train.checkpoint_activations=true")
        assert run.end() == 0, run.printed[-3000:]
        ours, theirs = run.losses(), plain.losses()
    assert ours.keys() == theirs.keys()
    for step, values in theirs.items():
        # Compiled kernels sum in another order; Adam makes steps of full size of last bits where a gradient is near 0.
        live = [value for value in values if value is not None]
        assert [value for value in ours[step] if value is not None] == pytest.approx(live, rel=2e-4)
