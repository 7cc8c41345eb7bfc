"""A run's start on two real ranks: what is refused leaves the run directory as it was, and all ranks must see it."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint.preparing import look_at_own_folder, plan_in, start, write_checkpoint_of
from tests.distributed import RankPool
from trainer.checkpoint.manifest import Manifest, list_checkpoints, read_manifest, write_manifest
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


def test_an_output_that_is_not_shared_is_refused_by_all_ranks(two_ranks: RankPool, tmp_path: Path) -> None:
    (tmp_path / "shared" / "checkpoints").mkdir(parents=True)
    shared, other = str(tmp_path / "shared"), str(tmp_path / "another_machine")
    assert two_ranks.run(look_at_own_folder, [shared, shared]) == ["shared"] * 2
    assert (
        two_ranks.run(look_at_own_folder, [shared, other])
        == [f"rank 1 does not see --output {other} as rank 0 does: give a folder that all machines share"] * 2
    )
