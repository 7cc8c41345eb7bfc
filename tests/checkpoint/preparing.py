"""What the tests of a run's start do on the ranks: choose a checkpoint and prepare the run directory."""

import errno
import json
from pathlib import Path
from typing import Any
from unittest import mock

import torch.distributed as dist

from tests.checkpoint.own_disks import on_own_host
from tests.checkpoint.tensors import write_by_hand
from tests.launch.bad_inputs import RECIPE
from trainer.errors import BadInput
from trainer.model.localmim import LocalMIM
from trainer.plan import RunPlan, plan_run
from trainer.ranks import Ranks
from trainer.recipe import load_recipe
from trainer.setup import choose_checkpoint, holding_output, prepare_output
from trainer.storages import Storages


def plan_in(folder: Path, shards: Path, ranks: Ranks, ds_config: dict[str, Any]) -> RunPlan:
    """The plan of a run in `folder`/run; its recipe and ds_config are written beside it."""
    (folder / f"recipe_{ranks.rank}.yaml").write_text(RECIPE)
    (folder / f"config_{ranks.rank}.json").write_text(json.dumps(ds_config))
    recipe = load_recipe(str(folder / f"recipe_{ranks.rank}.yaml"), [f"data.path={shards}"], folder)
    return plan_run(recipe, folder / f"config_{ranks.rank}.json", folder / "run", ranks)


def write_checkpoint_of(plan: RunPlan, step: int, world_size: int = 1, **changes: Any) -> Path:
    """A checkpoint that `plan` may go on from, but for the `changes` to its manifest."""
    weights = {name: parameter.detach() for name, parameter in LocalMIM(plan.recipe.model).named_parameters()}
    about = {"recipe": plan.recipe.model_dump(mode="json"), "index_hash": plan.index.content_hash}
    return write_by_hand(plan.checkpoints, step, weights, world_size, **about | changes)


def start(folder: str, shards: str, ds_config: dict[str, Any], rename_fails: bool = False) -> str:
    """What a run with `--resume auto` does before it builds its engine; how that ended on this rank."""
    ranks = Ranks(dist.get_rank(), dist.get_rank(), dist.get_world_size(), dist.get_world_size())
    failing = mock.patch.object(Path, "rename", side_effect=OSError(errno.EACCES, "Permission denied"))
    try:
        plan = plan_in(Path(folder), Path(shards), ranks, ds_config)
        if rename_fails:
            failing.start()
        checkpoint = choose_checkpoint(plan, "auto", Storages.shared())
        prepare_output(plan, checkpoint, Storages.shared())
        return "new run" if checkpoint is None else checkpoint.directory.name
    except BadInput as error:
        return str(error)
    finally:
        mock.patch.stopall()


def start_on_own_disks(folders: list[str], shards: str, resume: list[str]) -> tuple[str, list[str]]:
    """The same, with a folder and a `--resume` for each rank, under the locks; and what is in this rank's run then."""
    rank = dist.get_rank()
    plan = plan_in(Path(folders[rank]), Path(shards), Ranks(rank, rank, dist.get_world_size(), 1), {})
    with on_own_host(plan.output):
        try:
            with holding_output(plan.output) as storages:
                checkpoint = choose_checkpoint(plan, resume[rank], storages)
                prepare_output(plan, checkpoint, storages)
                outcome = "new run" if checkpoint is None else str(checkpoint.directory)
        except BadInput as error:
            outcome = str(error)
    return outcome, sorted(str(path.relative_to(plan.output)) for path in plan.output.rglob("*"))
