"""A real training on two machines whose --output is each one's own: it ends with the bits of a run on a shared one."""

import time
from pathlib import Path

import pytest

from tests.checkpoint.by_hand import LAST_STEP, end, start, train
from trainer.checkpoint.manifest import list_checkpoints, read_manifest, step_of, verify
from trainer.tracking.metrics import read_metrics


def losses(run: Path) -> dict[int, list]:
    return {event["step"]: event["loss_stages"] for event in read_metrics(run) if event["event"] == "step"}


@pytest.mark.slow
def test_a_killed_run_goes_on_from_what_its_machines_have_together_to_the_same_bits(
    tmp_path: Path, shards: Path
) -> None:
    shared = tmp_path / "s" / "run"
    own = [tmp_path / machine / "run" for machine in "ab"]
    assert [code for code, _ in train([shared] * 2, shards)] == [0, 0]
    ranks = start(own, shards)
    while not any(event["event"] == "checkpoint" and event["step"] >= 8 for event in read_metrics(own[0])):
        assert all(process.poll() is None for process in ranks), end(ranks)
        time.sleep(0.05)
    for process in ranks:
        process.kill()
    end(ranks)
    (first, said), (second, _) = train(own, shards)
    assert [first, second] == [0, 0], said[-3000:]
    assert "not one folder but 2: of ranks 0 (" in said
    assert f"resuming from {own[0]}/checkpoints/step_" in said
    whole = [directory for directory in list_checkpoints(own[1] / "checkpoints") if len(list(directory.iterdir())) == 3]
    assert len(whole) == 1  # what was gone on from, and no other
    assert verify(whole[0]) == verify(own[0] / "checkpoints" / whole[0].name)

    assert losses(own[0]) == losses(shared)
    newest = [list_checkpoints(run / "checkpoints")[0] for run in (*own, shared)]
    assert [step_of(directory) for directory in newest] == [LAST_STEP] * 3
    manifests = [read_manifest(directory) for directory in newest]
    assert manifests[0].files == manifests[1].files == manifests[2].files  # names, sizes and sha256
    # what is of the whole run is on rank 0's machine; the rest is where it was made
    assert {path.name for path in own[0].iterdir()} >= {"metrics.jsonl", "recipe.yaml", "pictures", "logs"}
    assert {path.name for path in own[1].iterdir()} == {"checkpoints", "logs"}
    assert [path.name for path in (own[1] / "logs").iterdir()] == ["rank_00001.log"]
