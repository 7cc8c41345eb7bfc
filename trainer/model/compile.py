"""`train.compile`: the encoder's block as one compiled region that all blocks share, ready before the first step.

A freeze must not start the compiler. torch.compile takes another graph wherever gradients are recorded or not, so a
block goes through three in its life: live; live on top of the frozen prefix, where its input needs no gradient (a
matrix product less in the backward pass); and frozen. All three are compiled at the start, on a block that stands in
for those of the model, for every micro-batch that the run will use. The graphs hold no weights, so they serve every
block of that shape, and a rebuild of the optimizer, which moves the weights, leaves them valid. Nor do they need the
model: whether the compiler works is known before there is one.

The decoders stay as they are. So does what draws pictures: it makes a model of its own. Not for ZeRO-3, whose hooks sit
inside the block: DeepSpeed's leaf modules would move them out, but 0.19.8 then reduces the gradients of the first live
block before they exist, its input needing none.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MethodType

import torch
from torch import Tensor, nn

from trainer.errors import BadInput
from trainer.model.block import transformer_block
from trainer.model.config import ModelConfig
from trainer.model.localmim import LocalMIM


@dataclass(frozen=True)
class CompiledBlock:
    """``forward``: stands in for the method of every block of one shape. ``seconds``: what compiling it took."""

    forward: Callable[..., Tensor]
    seconds: float

    def install(self, model: LocalMIM) -> None:
        """Have the encoder's blocks run compiled, names in ``state_dict`` unchanged.

        ``forward`` itself is replaced, inside the module's hooks: those of the engine and of whoever watches a block
        run uncompiled."""
        for block in model.blocks:
            block.forward = MethodType(self.forward, block)


def compile_block(
    config: ModelConfig,
    *,
    micro_batches: Sequence[int],
    device: torch.device,
    dtype: torch.dtype,
    backend: str | Callable = "inductor",
) -> CompiledBlock:
    """Compile the encoder's block.

    A further micro-batch costs each graph one more compilation, with the batch as a variable; after that any number of
    them cost nothing.

    Args:
        micro_batches: every number of images per forward that will come, the first to come first.
        device, dtype: those of the weights in training.
        backend: torch.compile's.

    Raises BadInput where the compiler does not work: one is needed beside torch (g++; on a GPU Triton and gcc).
    """
    started = time.perf_counter()
    stand_in = transformer_block(config.width, config.heads, config.mlp_ratio, config.norm_eps).to(device, dtype)
    # fullgraph: what cannot be compiled whole is an error, not a slow surprise
    compiled = torch.compile(type(stand_in).forward, fullgraph=True, backend=backend)
    try:
        for size in dict.fromkeys(micro_batches):
            shape = (size, 1 + config.num_kept, config.width)
            _run_every_graph(compiled, stand_in, torch.zeros(shape, device=device, dtype=dtype))
    except torch._dynamo.exc.ShortenTraceback as error:  # a backend fails, no Triton, a GPU too old for it
        raise BadInput(
            f"train.compile: the compiler does not work here ({_first_line(error)}); "
            "install g++ (on a GPU: gcc and triton), or set train.compile=false"
        ) from error
    return CompiledBlock(compiled, time.perf_counter() - started)


def _run_every_graph(compiled: Callable, block: nn.Module, tokens: Tensor) -> None:
    """Forward and backward of each of the three graphs, once."""
    block.requires_grad_(True)
    compiled(block, tokens.clone().requires_grad_()).sum().backward()
    compiled(block, tokens).sum().backward()
    block.requires_grad_(False)
    with torch.no_grad():
        compiled(block, tokens)


def _first_line(error: BaseException) -> str:
    return (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
