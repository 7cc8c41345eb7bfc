"""The real model with its blocks compiled or checkpointed, through freezes on the engine: runs on the ranks."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from tests.engine.cases import Setting, engine_for, weights
from tests.engine.localmim_case import CONFIG, batch
from tests.engine.traffic import counted_traffic
from trainer.model.compile import compile_block
from trainer.model.localmim import LocalMIM

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
STEPS = 8


@dataclass
class Outcome:
    """Of one rank: the loss of each step, final weights, elements gathered, graphs compiled before and in each step."""

    losses: list[float]
    weights: dict[str, np.ndarray]
    gathered: list[int]
    graphs: list[int]


def train(
    setting: Setting, *, compiled: bool = False, checkpointed: bool = False, backend: str = "aot_eager"
) -> Outcome:
    """Freeze a unit before every other step, until the last is left."""
    torch.manual_seed(0)
    model = LocalMIM(CONFIG, checkpoint_activations=checkpointed)
    losses, gathered, graphs = [], [], []
    with engine_for(model, setting) as engine:
        count_graphs = _compile(model, setting, backend) if compiled else lambda: 0
        graphs.append(count_graphs())
        for step in range(STEPS):
            if step % 2:
                engine.freeze(model.frozen_units + 1)
            engine.set_learning_rates([1e-3] * model.num_units)
            with counted_traffic() as traffic:
                loss, _ = engine.forward(*batch(step, dist.get_rank()))
                engine.backward(loss)
                engine.step()
            losses.append(loss.item())
            gathered.append(sum(call.elements for call in traffic.gathers))
            graphs.append(count_graphs())
        final = {name: weight.float().numpy() for name, weight in weights(engine).items()}
    return Outcome(losses, final, gathered, graphs)


def _compile(model: LocalMIM, setting: Setting, backend: str) -> Callable[[], int]:
    """Returns what counts the graphs that the backend has been given so far."""
    from torch._dynamo.testing import CompileCounterWithBackend  # seconds, which the other cases need not wait

    torch.compiler.reset()
    counter = CompileCounterWithBackend(backend)
    dtype = DTYPES[setting.precision]
    compiled = compile_block(model.config, micro_batches=[4], device=torch.device("cpu"), dtype=dtype, backend=counter)
    compiled.install(model)
    return lambda: counter.frame_count


def train_checkpointed(setting: Setting) -> Outcome:
    return train(setting, checkpointed=True)


def train_compiled(setting: Setting) -> Outcome:
    return train(setting, compiled=True)


def train_compiled_and_checkpointed(setting: Setting) -> Outcome:
    return train(setting, compiled=True, checkpointed=True)


def train_with_inductor(setting: Setting) -> Outcome:
    return train(setting, compiled=True, backend="inductor")
