"""What a freeze frees, moves and forbids: runs on the ranks, returns plain data for the tests to judge."""

import gc
import time
import weakref
from typing import Any

import torch
import torch.distributed as dist

from tests.engine.cases import STEPS, Setting, engine_for, group_sizes, message_of, new_model, train_step, weights
from tests.engine.small_vit import batch
from tests.engine.traffic import counted_traffic
from trainer.engine import internals


def traffic_by_frozen_units(setting: Setting) -> list[dict[str, Any]]:
    """Elements per step at each freeze stage, with the sizes that they should follow from.

    The step counted is the third after a freeze: ZeRO-3 records the order of its gathers in the first."""
    found = []
    model = new_model()
    everything = [parameter.numel() for parameter in model.parameters()]
    with engine_for(model, setting) as engine:
        for frozen_units in range(4):
            if frozen_units:
                engine.freeze(frozen_units)
            train_step(engine, 0)
            train_step(engine, 1)
            with counted_traffic() as traffic:
                train_step(engine, 2)
            found.append(
                {
                    "reduced": sum(call.elements for call in traffic.reductions),
                    "gathered": sum(call.elements for call in traffic.gathers),
                    "groups": group_sizes(engine),
                    "all_parameters": everything,
                }
            )
    return found


def live_tensor_bytes() -> int:
    """Bytes in the storages of this case's tensors (those made since `gc.freeze()`); views of one count once.

    The least of several looks: gloo's threads drop the tensors of the last collectives a moment later."""
    looks = []
    for _ in range(5):
        time.sleep(0.02)
        gc.collect()
        storages = {}
        for found in gc.get_objects():
            if isinstance(found, torch.Tensor):
                for tensor in (found, found.grad if found.is_leaf else None):
                    if tensor is not None:
                        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        looks.append(sum(storages.values()))
    return min(looks)


def many_freezes(setting: Setting, freezes: int) -> list[dict[str, Any]]:
    """One unit at a time, a step between: live bytes and optimizer bytes around each freeze, and leaked wrappers."""
    found = []
    wrappers: list[weakref.ref] = []
    with engine_for(new_model(depth=freezes), setting) as engine:
        for frozen_units in range(1, freezes + 1):
            train_step(engine, frozen_units)
            if setting.stage:  # stage 0 keeps its wrapper
                wrappers.append(weakref.ref(engine._engine.optimizer))
            live, groups = live_tensor_bytes(), group_sizes(engine)
            report = engine.freeze(frozen_units)
            rank = dist.get_rank()
            found.append(
                {
                    "live_bytes_freed": live - live_tensor_bytes(),
                    "optimizer_bytes_freed": report.optimizer_bytes_before[rank] - report.optimizer_bytes_after[rank],
                    "leaked_wrappers": sum(wrapper() is not None for wrapper in wrappers),
                    "frozen_groups": groups[: len(groups) - len(group_sizes(engine))],
                }
            )
    return found


def training_with_rebuilds(setting: Setting, rebuild_at: set[int]) -> tuple[list[float], dict[str, Any], int]:
    """Losses, final weights and skipped steps of a run whose wrapper is rebuilt at some steps without freezing."""
    losses = []
    with engine_for(new_model(), setting) as engine:
        for step in range(STEPS):
            if step in rebuild_at:
                internals.rebuild_wrapper(engine._engine, engine._groups, range(len(engine._groups)))
            losses += train_step(engine, step)
        return losses, {n: w.float().numpy() for n, w in weights(engine).items()}, engine.skipped_steps


def rebuilding_changes_nothing(setting: Setting) -> bool:
    """Whether a run with two rebuilds equals one without in every bit."""
    losses, final, skipped = training_with_rebuilds(setting, {3, 5})
    other_losses, other_final, other_skipped = training_with_rebuilds(setting, set())
    same_weights = all((final[name] == other_final[name]).all() for name in final)
    return losses == other_losses and skipped == other_skipped and same_weights


def refusals(setting: Setting) -> dict[str, str]:
    """Messages of the freezes that are refused; each must leave the engine able to train and freeze."""
    messages = {}
    with engine_for(new_model(), setting) as engine:
        train_step(engine, 0)
        loss = engine.forward(*batch(1, 0))
        engine.backward(loss)
        messages["before step()"] = message_of(engine.freeze, 1)
        engine.step()
        messages["between micro-batches"] = message_of(engine.freeze, 1)
        loss = engine.forward(*batch(1, 1))
        engine.backward(loss)
        engine.step()
        messages["ranks disagree"] = message_of(engine.freeze, 1 + dist.get_rank())
        messages["everything"] = message_of(engine.freeze, engine.model.num_units)
        engine.freeze(2)
        messages["nothing"] = message_of(engine.freeze, 2)
        messages["no rate"] = message_of(engine.set_learning_rates, [None] * engine.model.num_units)
        train_step(engine, 2)
    return messages


def freeze_before_the_first_step(setting: Setting) -> tuple[int, dict[str, Any]]:
    """Bytes kept by an engine frozen before any update, and its weights after two steps."""
    with engine_for(new_model(), setting) as engine:
        engine.freeze(2)
        kept = engine.optimizer_bytes()
        train_step(engine, 0)
        train_step(engine, 1)
        return kept, {n: w.float().numpy() for n, w in weights(engine).items()}


def built_frozen(setting: Setting) -> tuple[int, dict[str, Any]]:
    """The same as `freeze_before_the_first_step` with a model that was frozen before its engine existed."""
    model = new_model()
    model.freeze_prefix(2)
    with engine_for(model, setting) as engine:
        kept = engine.optimizer_bytes()
        train_step(engine, 0)
        train_step(engine, 1)
        return kept, {n: w.float().numpy() for n, w in weights(engine).items()}
