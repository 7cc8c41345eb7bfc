"""metrics.jsonl stays one consistent story across crashes and resumes."""

import json
import resource
from contextlib import contextmanager

import pytest

from trainer.tracking.metrics import Metrics, read_metrics
from trainer.tracking.summary import summarise


def test_resuming_drops_the_events_that_are_about_to_happen_again(tmp_path):
    first = Metrics(tmp_path, start_step=0, tensorboard=False)
    first.write("start", step=0)
    first.write("step", step=10)
    first.write("freeze", step=10, units=[0])  # frozen before step 10 was taken, after the checkpoint
    first.write("checkpoint", step=10)
    first.write("step", step=20)
    first.close()
    second = Metrics(tmp_path, start_step=10, tensorboard=False)
    second.write("resume", step=10)
    second.close()
    assert [(e["event"], e["step"]) for e in read_metrics(tmp_path)] == [
        ("start", 0), ("step", 10), ("checkpoint", 10), ("resume", 10)]  # fmt: skip


def test_a_line_cut_short_by_a_crash_does_not_spoil_the_rest(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"event": "step", "step": 1}) + '\n{"event": "st')
    assert read_metrics(tmp_path) == [{"event": "step", "step": 1}]


def test_a_new_run_starts_a_new_story(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"event": "step", "step": 1}) + "\n")
    Metrics(tmp_path, start_step=0, tensorboard=False).close()
    assert read_metrics(tmp_path) == []


def test_scalars_reach_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    metrics = Metrics(tmp_path, start_step=0, tensorboard=True)
    metrics.write("step", step=5, loss=1.5, loss_stages=[None, 1.5], lr=[None, 0.1])
    metrics.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert board.Scalars("train/loss")[0].value == 1.5
    assert board.Scalars("stage_loss/1")[0].step == 5
    assert "stage_loss/0" not in board.Tags()["scalars"]


def test_the_summary_tells_each_freeze_and_both_step_times():
    def step(number, frozen, seconds, stages):
        return {"event": "step", "step": number, "samples": number * 8, "epoch": number / 10, "frozen_units": frozen,
                "step_seconds": seconds, "loss_stages": stages, "loss": sum(filter(None, stages))}  # fmt: skip

    freeze = {"event": "freeze", "step": 4, "units": [0, 1], "stages_removed": [0], "seconds": 0.5,
              "optimizer_bytes_before": [1000, 1000], "optimizer_bytes_after": [400, 400]}  # fmt: skip
    events = [step(2, 0, 2.0, [9.0, 8.0]), step(4, 0, 2.0, [7.0, 6.0]), freeze,
              step(6, 2, 1.0, [None, 5.0]), step(8, 2, 1.0, [None, 4.0])]  # fmt: skip
    text = summarise(events)
    assert "loss 17.0000 → 4.0000" in text
    assert "stage 0: 9.0000 → 7.0000 at step 4, when its block froze" in text
    assert "stage 1: 8.0000 → 4.0000 at the end" in text
    assert "embedding, block 1" in text
    assert "before the first freeze 2.000 s, after the last 1.000 s (50%)" in text
    assert "1,000 → 400" in text


@contextmanager
def full_disk(size: int):
    """No file may grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's writer dies of it
def test_a_full_disk_is_told_once_and_loses_no_event(tmp_path):
    told: list[str] = []
    metrics = Metrics(tmp_path, start_step=0, tensorboard=True, warn=told.append)
    metrics.write("start", step=0)
    with full_disk((tmp_path / "metrics.jsonl").stat().st_size + 20):  # the next line is cut in its middle
        for step in range(1, 200):
            metrics.write("step", step=step, loss=1.0, loss_stages=[1.0], lr=[0.1])
    metrics.write("step", step=200, loss=1.0, loss_stages=[1.0], lr=[0.1])
    metrics.close()
    assert len(told) == 1
    assert "metrics cannot be written" in told[0]
    assert [e["step"] for e in read_metrics(tmp_path)] == list(range(201))
