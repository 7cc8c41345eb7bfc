"""The whole training loop in a rank of the tests: the real plan, loader, engine and files, and no launcher."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.launch.small_recipe import small_recipe
from trainer.checkpoint.reader import Checkpoint
from trainer.plan import RunPlan, plan_run
from trainer.pretraining import Pretraining
from trainer.ranks import Ranks
from trainer.recipe import parse_recipe
from trainer.stopping import SIGNALS, StopSignals
from trainer.storages import Storages
from trainer.watchdog import Watchdog

ALONE = Ranks(0, 0, 1, 1)


def small_plan(
    shards: Path, output: Path, ds_config: dict[str, Any], ranks: Ranks = ALONE, **changes: dict[str, Any]
) -> RunPlan:
    """A rank's plan for the recipe of the tests. `changes`: sections, with the keys that are other than there."""
    output.mkdir(parents=True, exist_ok=True)
    given = output / ("given.json" if ranks.rank == 0 else f"given_{ranks.rank}.json")
    given.write_text(json.dumps(ds_config))
    data = {"workers": 0, "window": 4, "lanes": 4, "path": str(shards)} | changes.get("data", {})
    tree = yaml.safe_load(small_recipe(**changes | {"data": data}))
    return plan_run(parse_recipe(tree, "test"), given, output, ranks)


@contextmanager
def small_training(plan: RunPlan, checkpoint: Checkpoint | None = None) -> Iterator[Pretraining]:
    """A training that has not begun, or goes on. Call its `run` in here, on a rank of a pool."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    watchdog = Watchdog(0, plan.output / "flight_recorder")
    training = Pretraining(plan, torch.device("cpu"), Storages.shared(), checkpoint, watchdog, StopSignals())
    try:
        yield training
    finally:
        watchdog.close()
        training.logbook.close()  # and not `training.close`, which would end the pool's process group
        for number, handler in handlers.items():
            signal.signal(number, handler)
