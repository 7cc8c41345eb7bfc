"""Compiled blocks: three graphs for the whole model, all there before the first step, and the same training."""

import gc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.exc import GPUTooOldForTriton, TritonMissing

from trainer.errors import BadInput
from trainer.model.compile import compile_block
from trainer.model.config import ModelConfig
from trainer.model.localmim import LocalMIM

Batch = tuple[Tensor, Tensor]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _nothing_compiled_yet() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def gradients(model: LocalMIM) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def first_images(batch: Batch, count: int) -> Batch:
    """As many images as asked for, the same ones again where there are fewer."""
    images, noise = (tensor.repeat(-(-count // len(tensor)), *[1] * (tensor.dim() - 1))[:count] for tensor in batch)
    return images, noise


def test_no_freeze_and_no_later_micro_batch_starts_the_compiler(tiny: ModelConfig, batch: Batch) -> None:
    model = LocalMIM(tiny)
    names = model.state_dict().keys()
    counter = CompileCounterWithBackend("aot_eager")
    compile_block(model.config, micro_batches=[2, 4, 6], device=CPU, dtype=torch.float32, backend=counter).install(
        model
    )
    graphs = counter.frame_count
    assert graphs == 3 + 3  # for two images, and for any number from then on
    gc.collect()  # a graph that needed anything but the model would go now
    for units, count in enumerate([2, 2, 4, 4, 6]):
        if units:
            model.freeze_prefix(units)
        loss, _ = model(*first_images(batch, count))
        loss.backward()
        assert counter.frame_count == graphs
    assert model.state_dict().keys() == names
    LocalMIM(tiny).reconstruct(*batch)  # what draws pictures makes a model of its own
    assert counter.frame_count == graphs


def test_compiled_blocks_train_like_others_and_their_hooks_run(tiny: ModelConfig, batch: Batch) -> None:
    torch.manual_seed(0)
    eager = LocalMIM(tiny)
    compiled = LocalMIM(tiny)
    compiled.load_state_dict(eager.state_dict())
    counter = CompileCounterWithBackend("aot_eager")
    compile_block(compiled.config, micro_batches=[2], device=CPU, dtype=torch.float32, backend=counter).install(
        compiled
    )
    assert counter.frame_count == 3  # for all blocks together
    seen: list[bool] = []
    for block in compiled.blocks:
        block.register_forward_pre_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    for model in (eager, compiled):
        model.freeze_prefix(3)
        model(*batch)[0].backward()
    assert seen == [False, False, True, True]
    ours, theirs = gradients(compiled), gradients(eager)
    assert ours.keys() == theirs.keys()
    for name in theirs:  # this backend runs torch's own kernels
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.exhaustive
def test_the_real_compiler_gives_the_same_to_rounding(tiny: ModelConfig, batch: Batch) -> None:
    torch.manual_seed(0)
    eager = LocalMIM(tiny)
    compiled = LocalMIM(tiny)
    compiled.load_state_dict(eager.state_dict())
    counter = CompileCounterWithBackend("inductor")
    compile_block(compiled.config, micro_batches=[2], device=CPU, dtype=torch.float32, backend=counter).install(
        compiled
    )
    for units in (0, 1, 3):
        for model in (eager, compiled):
            if units:
                model.freeze_prefix(units)
            model.zero_grad()
        losses = [model(*batch)[0] for model in (eager, compiled)]
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=0)
        for loss in losses:
            loss.backward()
        theirs = gradients(eager)
        for name, ours in gradients(compiled).items():  # sums in another order: last bits, relative to the largest
            torch.testing.assert_close(ours, theirs[name], rtol=1e-4, atol=1e-5 * float(theirs[name].abs().max()))
    assert counter.frame_count == 3


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TritonMissing(None), "Cannot find a working triton installation"),
        (
            GPUTooOldForTriton(SimpleNamespace(name="K80", major=3, minor=7), None),  # type: ignore[arg-type]
            "Found K80 which is too old",
        ),
    ],
)
def test_a_gpu_without_triton_is_told_in_one_line(tiny: ModelConfig, error: Exception, words: str) -> None:
    def backend(*_: object) -> None:
        raise error

    with pytest.raises(BadInput, match=rf"compiler does not work here \({words}.*gcc and triton") as refusal:
        compile_block(tiny, micro_batches=[2], device=CPU, dtype=torch.float32, backend=backend)
    assert "\n" not in str(refusal.value)


def test_a_missing_compiler_is_told_in_one_line(
    tiny: ModelConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (str(tmp_path / "no-such-compiler"),))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with pytest.raises(BadInput, match=r"train\.compile: the compiler does not work here .*install g\+\+") as refusal:
        compile_block(tiny, micro_batches=[2], device=CPU, dtype=torch.float32)
    assert "\n" not in str(refusal.value)
