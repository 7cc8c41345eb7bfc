"""Blocks of the encoder, eager and compiled: their time, the compiler's, and that freezes leave it alone."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.gemm import why_no_bf16
from benchmarks.rounds import Costs, ratio_text, take_turns
from benchmarks.tables import Section
from trainer.model.compile import compile_block
from trainer.model.config import ModelConfig
from trainer.model.localmim import LocalMIM

CPU = torch.device("cpu")
MICRO_BATCHES = (2, 4, 3)


@dataclass(frozen=True)
class BlockCase:
    """A block of an encoder on 224-pixel images of which a quarter is seen: 50 tokens with the class token."""

    name: str
    width: int
    heads: int
    micro_batch: int

    @property
    def model(self) -> ModelConfig:
        """The smallest with such a block."""
        return ModelConfig(embed_dim=self.width, num_heads=self.heads, depth=1, stages=[0], scales=[1.0])

    def tokens(self, dtype: torch.dtype) -> Tensor:
        return torch.randn(self.micro_batch, 1 + self.model.num_kept, self.width).to(dtype)


def block_section(cases: Sequence[BlockCase], rounds: int) -> Section:
    """A row for each block, precision and pass; the compiler's seconds among the remarks."""
    no_bf16 = why_no_bf16()
    rows, remarks = [], []
    for case in cases:
        for dtype in (torch.float32,) if no_bf16 else (torch.float32, torch.bfloat16):
            eager, compiled = LocalMIM(case.model).to(dtype), LocalMIM(case.model).to(dtype)
            compiled.load_state_dict(eager.state_dict())
            seconds = []
            for _ in ("cold", "from the cache"):
                torch.compiler.reset()
                block = compile_block(case.model, micro_batches=[case.micro_batch], device=CPU, dtype=dtype)
                seconds.append(block.seconds)
            block.install(compiled)
            name = f"{case.name}, {str(dtype).removeprefix('torch.')}"
            rows += _rows(name, eager.blocks[0], compiled.blocks[0], case.tokens(dtype), rounds)
            remarks.append(f"Compiling for {name}: {seconds[0]:.0f} s, {seconds[1]:.0f} s from the cache on disk.")
            print(f"# {remarks[-1]}", flush=True)
    return Section(
        "A block, eager and compiled",
        "One thread. *Live*: forward and backward; *frozen*: forward without gradients. Eager and compiled in turn; "
        "medians and quartiles of the rounds' ratios. *Difference*: of the outputs, over the largest of them.",
        ["block", "pass", "eager, ms", "compiled, times as fast", "difference"],
        rows,
        remarks + ([no_bf16] if no_bf16 else []),
    )


def _rows(name: str, eager: nn.Module, compiled: nn.Module, tokens: Tensor, rounds: int) -> list[list[str]]:
    rows = []
    for way, run in (("live", _live), ("frozen", _frozen)):
        for block in (eager, compiled):
            block.requires_grad_(way == "live")
        costs = take_turns({"eager": _timed(run, eager, tokens), "compiled": _timed(run, compiled, tokens)}, rounds)
        reference, found = run(eager, tokens), run(compiled, tokens)
        difference = float((found - reference).abs().max() / reference.abs().max())
        rows.append(block_row(name, way, costs, difference))
    return rows


def block_row(name: str, way: str, costs: Mapping[str, Costs], difference: float) -> list[str]:
    """`costs`: seconds of the eager and of the compiled block."""
    eager, compiled = costs["eager"], costs["compiled"]
    return [name, way, f"{1000 / eager.median_rate:.1f}", ratio_text(compiled, eager), f"{difference:.0e}"]


def _live(block: nn.Module, tokens: Tensor) -> Tensor:
    output = block(tokens.detach().requires_grad_())
    output.sum().backward()
    block.zero_grad()
    return output.detach()


@torch.no_grad()
def _frozen(block: nn.Module, tokens: Tensor) -> Tensor:
    return block(tokens)


def _timed(run: Callable[[nn.Module, Tensor], Tensor], block: nn.Module, tokens: Tensor) -> Callable[[], float]:
    def measure() -> float:
        start = time.perf_counter()
        run(block, tokens)
        return time.perf_counter() - start

    return measure


def freezing_section(config: ModelConfig) -> Section:
    """Graphs that the compiler made, at the start and over a walk through every freeze and several micro-batches."""
    torch.compiler.reset()
    model = LocalMIM(config)
    rows = []
    before = _graphs_made()
    for size in MICRO_BATCHES:
        compile_block(model.config, micro_batches=[size], device=CPU, dtype=torch.float32, backend="aot_eager").install(
            model
        )
        rows.append([f"at the start, micro-batch {size}", str(_graphs_made() - before)])
        before = _graphs_made()
    for units in range(1, model.num_units):
        model.freeze_prefix(units)
        size = MICRO_BATCHES[units % len(MICRO_BATCHES)]
        images = torch.randint(0, 256, (size, 3, config.image_size, config.image_size), dtype=torch.uint8)
        model(images, torch.rand(size, config.num_patches))[0].backward()
    rows.append(
        [f"at {model.num_units - 1} freezes, micro-batches of {MICRO_BATCHES} in turn", str(_graphs_made() - before)]
    )
    return Section(
        f"Compilations of a model of {config.num_blocks} blocks",
        "Graphs that torch.compile captured (no code is generated here, which would be as often): a live block, a live "
        "block on top of the frozen prefix, a frozen block. The second micro-batch makes the number of images a "
        "variable. Target: no compilation at a freeze.",
        ["when", "graphs"],
        rows,
    )


def _graphs_made() -> int:
    import torch._dynamo.utils

    return torch._dynamo.utils.counters["stats"]["unique_graphs"]
