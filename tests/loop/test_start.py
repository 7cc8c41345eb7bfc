"""What happens before the first step: refusals come first, and the start line tells what the run really does."""

import contextlib
import io
import os
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from tests.distributed import RankPool, run_on_ranks
from tests.loop.small_training import small_plan, small_training
from trainer.data.micro_batches import MicroBatches
from trainer.errors import BadInput
from trainer.ranks import on_every_rank


def refusal_without_a_compiler(shards: Path, output: Path) -> str:
    """What a start with `train.compile` says on a rank whose machine has no compiler. Runs on a rank."""
    from torch._inductor import config

    plan = small_plan(shards, output, {}, train={"micro_batch": 4, "compile": True})
    cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(output.parent / "inductor")
    try:
        with (
            config.patch({"cpp.cxx": (str(output / "no-such-compiler"),), "force_disable_caches": True}),
            small_training(plan),
        ):
            return "started"
    except BadInput as error:
        return str(error)
    finally:
        torch.compiler.reset()
        os.environ.pop("TORCHINDUCTOR_CACHE_DIR")
        if cache is not None:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache


def test_a_missing_compiler_is_found_out_before_anything_is_written(
    one_rank: RankPool, shards: Path, tmp_path: Path
) -> None:
    (said,) = one_rank.run(refusal_without_a_compiler, shards, tmp_path / "run")
    assert said.startswith("rank 0: train.compile: the compiler does not work here")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["given.json"]  # the test's own


def refused_by_the_last_rank() -> str:
    def action() -> int:
        if dist.get_rank() == dist.get_world_size() - 1:
            raise BadInput("install g++")
        return dist.get_rank()

    assert on_every_rank(dist.get_rank) == dist.get_rank()
    try:
        return f"went on with {on_every_rank(action)}"
    except BadInput as error:
        return str(error)


def test_what_one_machine_refuses_all_ranks_refuse() -> None:
    assert run_on_ranks(refused_by_the_last_rank, 2) == ["rank 1: install g++"] * 2


def start_line(shards: Path, output: Path) -> str:
    """Of a run whose freezes have let the micro-batch grow, as after a resume. Runs on a rank."""
    plan = small_plan(shards, output, {}, train={"micro_batch": 2})
    share = plan.ds.micro_batch * plan.ds.accumulation
    assert share > 2
    told = io.StringIO()
    with contextlib.redirect_stdout(told), small_training(replace(plan, micro_batches=MicroBatches.always(share))):
        pass
    return told.getvalue().replace(f"micro-batch {share}", "micro-batch SHARE")


def test_the_start_line_tells_the_micro_batch_that_is_in_use(one_rank: RankPool, shards: Path, tmp_path: Path) -> None:
    (told,) = one_rank.run(start_line, shards, tmp_path)
    assert "(1 ranks x 1 x micro-batch SHARE)" in told
