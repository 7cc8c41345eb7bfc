"""A run's start on two real ranks: what is refused leaves the run directory as it was."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint.own_disks import FIRST, SECOND
from tests.checkpoint.preparing import plan_in, start, start_on_own_disks, write_checkpoint_of
from tests.distributed import RankPool
from trainer.checkpoint.manifest import Manifest, list_checkpoints, read_manifest, verify, write_manifest
from trainer.plan import RunPlan
from trainer.ranks import Ranks


@pytest.fixture
def plan(tmp_path: Path, shards: Path) -> RunPlan:
    """Of a run that has a recipe.yaml, and beyond the checkpoint that a test writes a damaged one."""
    plan = plan_in(tmp_path, shards, Ranks(0, 0, 2, 2), {})
    damaged = write_checkpoint_of(plan, 10)
    (damaged / "rank_00000.safetensors").unlink()
    (plan.output / "recipe.yaml").write_text("of the run before")
    return plan


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_lies_beyond_a_checkpoint_that_fits_is_set_aside(two_ranks: RankPool, plan: RunPlan, shards: Path) -> None:
    write_checkpoint_of(plan, 5)
    assert two_ranks.run(start, str(plan.output.parent), str(shards), {}) == ["step_00000005"] * 2
    assert [path.name for path in list_checkpoints(plan.checkpoints)] == ["step_00000005"]
    assert len(list(plan.checkpoints.glob("set_aside_step_00000010_*"))) == 1
    assert (plan.output / "recipe.yaml").read_text() != "of the run before"


@pytest.mark.parametrize(
    ("change", "ds_config", "says"),
    [
        (
            lambda m: replace(m, shapes=m.shapes | {"cls_token": m.shapes["cls_token"][::-1]}),
            {},
            "cls_token has shape .* there and .* in this recipe's model",
        ),
        (lambda m: replace(m, frozen_units=99), {}, "cannot freeze 99 units: .*give another checkpoint"),
        (
            lambda m: m,
            {"zero_optimization": {"stage": 1, "offload_optimiser": {}}},
            "offload_optimiser: unknown key; mend",
        ),
    ],
    ids=["shapes of another model", "more frozen units than there are", "key that DeepSpeed does not know"],
)
def test_what_is_refused_leaves_the_run_as_it_was(
    two_ranks: RankPool,
    plan: RunPlan,
    shards: Path,
    change: Callable[[Manifest], Manifest],
    ds_config: dict[str, Any],
    says: str,
) -> None:
    directory = write_checkpoint_of(plan, 5)
    write_manifest(directory, change(read_manifest(directory)))
    before = contents(plan.output)
    outcomes = two_ranks.run(start, str(plan.output.parent), str(shards), ds_config)
    assert outcomes[0] == outcomes[1]
    assert re.search(says, outcomes[0])
    assert contents(plan.output) == before


def test_a_checkpoint_that_cannot_be_set_aside_is_told_in_one_line(
    two_ranks: RankPool, plan: RunPlan, shards: Path
) -> None:
    write_checkpoint_of(plan, 5)
    before = contents(plan.output)
    outcomes = two_ranks.run(start, str(plan.output.parent), str(shards), {}, True)
    assert (
        outcomes == [f"--output {plan.output}: cannot be written (Permission denied): choose another, or mend that"] * 2
    )
    assert contents(plan.output) == before


@pytest.fixture
def machines(tmp_path: Path, shards: Path) -> list[str]:
    """Two, each with its half of a checkpoint of step 5; the second also with a later one that is damaged."""
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    plan = plan_in(first, shards, Ranks(0, 0, 2, 1), {})
    written = write_checkpoint_of(plan, 5, 2, hosts={FIRST: "node-a", SECOND: "node-b"})
    shutil.copytree(first / "run", second / "run")
    (written / SECOND).unlink()
    there = second / "run" / "checkpoints"
    (there / written.name / FIRST).unlink()
    (there / "step_00000010").mkdir()
    return [str(first), str(second)]


def test_on_own_disks_each_machine_is_made_ready_and_what_is_of_the_whole_run_is_rank_zeros(
    two_ranks: RankPool, machines: list[str], shards: Path
) -> None:
    whole = {f"checkpoints/step_00000005/{name}" for name in (FIRST, SECOND, "manifest.json")}
    for_ranks = {"checkpoints", "checkpoints/step_00000005", "logs", *whole}
    (first, there), (second, elsewhere) = two_ranks.run(start_on_own_disks, machines, str(shards), ["auto"] * 2)
    assert [first, second] == [f"{machine}/run/checkpoints/step_00000005" for machine in machines]
    assert set(there) == for_ranks | {"recipe.yaml", "ds_config.json", "environment.json", "pictures"}
    assert for_ranks < set(elsewhere)
    (aside,) = set(elsewhere) - for_ranks
    assert aside.startswith("checkpoints/set_aside_step_00000010_")


def test_another_runs_checkpoint_is_gathered_where_it_lies(
    two_ranks: RankPool, machines: list[str], tmp_path: Path, shards: Path
) -> None:
    for folder in ("c", "d"):
        (tmp_path / folder).mkdir()
    (Path(machines[1]) / "run" / "checkpoints" / "step_00000010").rmdir()
    here, given = [str(tmp_path / folder) for folder in ("c", "d")], [f"{machine}/run" for machine in machines]
    outcomes = two_ranks.run(start_on_own_disks, here[:1] * 2, str(shards), given)  # from own disks to a shared one
    assert [outcome for outcome, _ in outcomes] == [f"{run}/checkpoints/step_00000005" for run in given]
    for run in given:
        verify(Path(run) / "checkpoints" / "step_00000005")
    # from then on it may be given by its own name, from a disk that both share to own ones, and be taken to a third
    (tmp_path / "e").mkdir()
    given = [f"{machines[0]}/run/checkpoints/step_00000005", str(tmp_path / "e" / "step_00000005")]
    outcomes = two_ranks.run(start_on_own_disks, here, str(shards), given[:1] * 2)
    assert [outcome for outcome, _ in outcomes] == given[:1] * 2
    outcomes = two_ranks.run(start_on_own_disks, here, str(shards), given)
    assert [outcome for outcome, _ in outcomes] == given
    assert [path.name for path in (tmp_path / "e").iterdir()] == ["step_00000005"]


def test_a_resume_that_one_machine_refuses_all_refuse(
    two_ranks: RankPool, machines: list[str], tmp_path: Path, shards: Path
) -> None:
    (tmp_path / "c").mkdir()
    here = [str(tmp_path / "c"), machines[1]]
    outcomes = two_ranks.run(start_on_own_disks, here, str(shards), ["never"] * 2)
    root = f"{machines[1]}/run/checkpoints"
    refusal = f"rank 1 on node-b: --resume never: {root} already holds step_00000010; choose another --output"
    assert [outcome for outcome, _ in outcomes] == [refusal] * 2
    nowhere = str(tmp_path / "nowhere")
    outcomes = two_ranks.run(start_on_own_disks, here, str(shards), [nowhere] * 2)
    words = f"--resume {nowhere}: no checkpoint there (give a run directory or a step_… directory)"
    assert [outcome for outcome, _ in outcomes] == [words] * 2
    assert not (tmp_path / "nowhere").exists()
    assert not (tmp_path / "c" / "run").exists()
