"""A step with checkpointed activations and one without: time, and bytes kept for the backward pass."""

import gc
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from benchmarks.freezing_cases import random_batch
from benchmarks.frozen_memory import saved_storages
from benchmarks.rounds import Costs, ratio_text, take_turns
from benchmarks.tables import Section
from trainer.model.config import ModelConfig
from trainer.model.flops import step_flops
from trainer.model.localmim import LocalMIM
from trainer.planning.activations import saved_activation_bytes

MB = 1e6


def checkpointing_section(config: ModelConfig, micro_batch: int, frozen_counts: Sequence[int], rounds: int) -> Section:
    """A row for each number of frozen units."""
    models = {checkpointed: LocalMIM(config, checkpoint_activations=checkpointed) for checkpointed in (False, True)}
    models[True].load_state_dict(models[False].state_dict())
    batch = random_batch(config, micro_batch)
    rows = []
    for units in frozen_counts:
        for model in models.values():
            model.freeze_prefix(units)
        plain, checkpointed = take_turns({str(k): _step(model, batch) for k, model in models.items()}, rounds).values()
        row = [str(units), *time_cells(plain, checkpointed, _repeated_flops(config, units))]
        for again, model in models.items():
            predicted = saved_activation_bytes(config, units, micro_batch, "fp32", checkpoint_activations=again)
            row += [f"{_kept_bytes(model, batch) / MB:.1f}", f"{predicted / MB:.1f}"]
        rows.append(row)
        print(f"# checkpointing: {units} units frozen", flush=True)
    return Section(
        f"Checkpointed activations, {config.num_blocks} blocks of width {config.width}",
        f"fp32, micro-batch {micro_batch}, one thread; forward and backward. *Time*: with checkpointing over without, "
        "in turn; *by FLOPs*: what is run again, which would make this of it. *Kept*: bytes between forward and "
        "backward, parameters left out, and as `trainer.planning` predicts them. Results keep every bit (a test).",
        ["frozen units", "time", "by FLOPs", "kept, MB", "predicted", "kept checkpointed, MB", "predicted"],
        rows,
        ["Model FLOPs, and so the MFU that a run reports, do not count what is run again."],
    )


def time_cells(plain: Costs, checkpointed: Costs, repeated: float) -> list[str]:
    """Times the plain step: measured, and if only the repeated FLOPs counted (their fraction of the step's)."""
    return [ratio_text(plain, checkpointed), f"{1 + repeated:.2f}"]


def _step(model: LocalMIM, batch: tuple[Tensor, Tensor]) -> Callable[[], float]:
    def measure() -> float:
        start = time.perf_counter()
        model(*batch)[0].backward()
        seconds = time.perf_counter() - start
        model.zero_grad()
        return seconds

    return measure


def _repeated_flops(config: ModelConfig, frozen_units: int) -> float:
    """What live blocks run again, over the whole step: their forward without its last matrix product, which nothing in
    the backward pass asks for. Block 0 has no stage: what unit 1 costs the backward is twice the block's forward."""
    block = (step_flops(config, 1).backward - step_flops(config, 2).backward) / 2
    last_product = 2 * (1 + config.num_kept) * config.width * int(config.width * config.mlp_ratio)
    live = config.num_blocks - max(0, frozen_units - 1)
    return live * (block - last_product) / step_flops(config, frozen_units).total


def _kept_bytes(model: LocalMIM, batch: tuple[Tensor, Tensor]) -> int:
    """What operations save, and the inputs that checkpoints hold of their blocks."""
    gc.collect()

    def keep_input(_block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if model.checkpoint_activations and torch.is_grad_enabled():
            saved[inputs[0].untyped_storage().data_ptr()] = inputs[0].untyped_storage().nbytes()

    hooks = [block.register_forward_pre_hook(keep_input) for block in model.blocks]
    with saved_storages(model) as saved:
        loss, _ = model(*batch)
        del loss
    for hook in hooks:
        hook.remove()
    return sum(saved.values())
