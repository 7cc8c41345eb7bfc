"""Between two log lines the host waits for the accelerator once an update, to know whether it was a good one."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.distributed import RankPool
from tests.engine.cases import Setting, engine_for, new_model, train_step
from tests.engine.localmim_case import CONFIG
from tests.loop.small_training import small_plan, small_training
from tests.loop.waiting import BetweenDevices, Wait, host_waits
from trainer.engine import engine as engine_module
from trainer.model.localmim import LocalMIM
from trainer.model.masking import mask_noise
from trainer.tracking.losses import StageLosses

LOG_EVERY, STEPS = 4, 9


@pytest.mark.parametrize("frozen_units", [0, 3])
def test_a_forward_and_the_sums_of_its_losses_stay_on_the_device(frozen_units: int) -> None:
    with FakeTensorMode():  # tensors without values: whoever reads one raises
        with torch.device("cuda"):
            model, losses = LocalMIM(CONFIG), StageLosses(4, torch.device("cuda"))
            images, keys = torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.arange(4)
        model.freeze_prefix(frozen_units)
        with BetweenDevices() as copies:
            loss, stage_losses = model(images, mask_noise(keys, model.num_patches))
            losses.add(model.live_stages, stage_losses, len(images))
    assert copies.found == []
    assert loss.device.type == "cuda"


def waits_of_updates(setting: Setting) -> tuple[list[Wait], int]:
    """Two updates of AdamW as it is on CUDA, some time after a freeze, and how many groups trained. Runs on a rank.

    For two passes after it DeepSpeed notes in which order ZeRO-3's modules come, and compares that over the ranks."""
    step, fused = 0, engine_module._fused
    engine_module._fused = lambda: True
    try:
        with engine_for(new_model(), setting) as engine:
            engine.freeze(1)
            train_step(engine, 0)
            train_step(engine, 1)
            with host_waits(lambda: step) as found:
                for step in (2, 3):
                    train_step(engine, step)
            return found, len(engine._groups)
    finally:
        engine_module._fused = fused


@pytest.mark.parametrize(
    "setting",
    [Setting(0, "fp32", accumulation=2)]
    + [Setting(stage, precision, clip=0.5, accumulation=2) for stage in (1, 2, 3) for precision in ("fp32", "bf16")],
    ids=str,
)
def test_an_update_waits_once_and_a_micro_batch_never(one_rank: RankPool, setting: Setting) -> None:
    ((found, groups),) = one_rank.run(waits_of_updates, setting)
    found = Counter((wait.step, wait.what) for wait in found if wait.where != "elsewhere")  # the test reads its losses
    expected = {(step, "_local_scalar_dense"): 1 for step in (2, 3)}
    if setting.stage == 3:  # DeepSpeed's -1 for a norm that is not finite
        expected |= {(step, "upload"): groups for step in (2, 3)}
    assert found == expected


def waits_of_a_run(shards: Path, output: Path) -> list[Wait]:
    """Runs on a rank."""
    plan = small_plan(
        shards, output, {"zero_optimization": {"stage": 2}},
        train={"epochs": STEPS / 18, "micro_batch": 4}, optimizer={"warmup_epochs": 0.1},
        tracking={"log_every": LOG_EVERY, "pictures": "never"}, checkpoint={"every_steps": 0, "every_epochs": 0},
    )  # fmt: skip
    fused = engine_module._fused
    engine_module._fused = lambda: True
    try:
        with small_training(plan) as training, host_waits(lambda: training.step) as found:
            training.run()
            assert training.model.frozen_units >= 2
            assert training.step == STEPS
    finally:
        engine_module._fused = fused
    return found


def test_a_run_reads_nothing_between_its_log_lines_but_that_its_updates_were_good(
    one_rank: RankPool, shards: Path, tmp_path: Path
) -> None:
    (found,) = one_rank.run(waits_of_a_run, shards, tmp_path)
    frozen = {wait.step for wait in found if wait.where == "trainer/engine/engine.py _by_rank"}  # a freeze may wait
    # A step goes by the number of those before it; where that is a multiple, the last log line's waits are found too.
    between = [step for step in range(STEPS) if step % LOG_EVERY and step not in frozen]
    assert len(between) >= 3
    for step in between:
        assert [wait.where for wait in found if wait.step == step] == [
            "deepspeed/runtime/utils.py is_invalid_grad_norm"
        ]
    assert any(wait.where.startswith("trainer/tracking/") for wait in found), "the log lines were traced as well"
