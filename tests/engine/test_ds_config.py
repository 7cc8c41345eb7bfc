"""ds_config: "auto" is filled from the recipe, contradictions and untested features are refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
from deepspeed.utils.config import get_timers_config

from tests.distributed import RankPool
from tests.engine.shipped_config_case import train_two_steps
from trainer.engine.ds_config import ResolvedDsConfig, resolve_ds_config
from trainer.errors import BadInput

SHIPPED = sorted((Path(__file__).parents[2] / "ds_configs").glob("*.json"))
BF16, FP16 = {"bf16": {"enabled": True}}, {"fp16": {"enabled": True}}


def resolve(raw: dict[str, Any], **changes: Any) -> ResolvedDsConfig:
    recipe: dict[str, Any] = {
        "world_size": 4, "global_batch": 64, "micro_batch": None, "precision": None, "clip_grad": 0.0,
    }  # fmt: skip
    return resolve_ds_config(raw, source="my.json", **recipe | changes)


def zero(stage: int, **keys: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage, **keys}}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_resolves_without_auto(path: Path) -> None:
    resolved = resolve_ds_config(
        json.loads(path.read_text()),
        source=str(path), world_size=8, global_batch=2048, micro_batch=64, precision=None, clip_grad=0.3,
    )  # fmt: skip
    assert "auto" not in json.dumps(resolved.config)
    assert (resolved.micro_batch, resolved.accumulation) == (64, 4)
    assert resolved.config["gradient_clipping"] == 0.3
    assert f"zero{resolved.zero_stage}" in path.stem
    assert resolved.precision in path.stem or path.stem == "zero2_cpu"
    assert resolved.offload_optimizer == ("offload" in path.stem)


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if "offload" in path.stem else []) for path in SHIPPED],
)
def test_every_shipped_config_trains(two_ranks: RankPool, path: Path) -> None:
    for applied_updates in two_ranks.run(train_two_steps, json.loads(path.read_text()), timeout=500):
        assert applied_updates == 2


@pytest.mark.parametrize(
    ("raw", "recipe", "expected"),
    [
        ({}, {}, (16, 1)),
        ({}, {"micro_batch": 4}, (4, 4)),
        ({"gradient_accumulation_steps": 8}, {}, (2, 8)),
        ({"train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": "auto"}, {}, (8, 2)),
        ({"train_batch_size": 64, "train_micro_batch_size_per_gpu": 16}, {"micro_batch": 16}, (16, 1)),
    ],
)
def test_batch_sizes_are_completed(raw: dict[str, Any], recipe: dict[str, Any], expected: tuple[int, int]) -> None:
    resolved = resolve(raw, **recipe)
    assert (resolved.micro_batch, resolved.accumulation) == expected
    assert resolved.config["train_batch_size"] == 64
    assert resolved.config["train_micro_batch_size_per_gpu"] == expected[0]
    assert resolved.config["gradient_accumulation_steps"] == expected[1]


@pytest.mark.parametrize(
    ("raw", "wanted", "expected"),
    [
        ({}, None, "fp32"),
        ({}, "fp32", "fp32"),
        (BF16, None, "bf16"),
        (BF16, "bf16", "bf16"),
        ({"bf16": {"enabled": "auto"}}, None, "bf16"),
        ({"bf16": {"enabled": "auto"}}, "fp32", "fp32"),
        ({"bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}, **zero(1)}, "fp16", "fp16"),
        ({"bf16": {"enabled": False}, **FP16, **zero(1)}, None, "fp16"),
    ],
)
def test_precision_comes_from_config_and_recipe(raw: dict[str, Any], wanted: Any, expected: str) -> None:
    resolved = resolve(raw, precision=wanted)
    assert resolved.precision == expected
    enabled = [name for name in ("bf16", "fp16") if resolved.config.get(name, {}).get("enabled")]
    assert enabled == [name for name in (expected,) if name != "fp32"]


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("name", ["fp32", "float32", "torch.float32", "float", "FP32"])
def test_every_name_of_a_type_means_the_same(name: str, stage: int) -> None:
    resolved = resolve(zero(stage) | {"data_types": {"grad_accum_dtype": name}, "communication_data_type": name})
    assert resolved.config["data_types"]["grad_accum_dtype"] == "fp32"
    assert resolved.config["communication_data_type"] == "fp32"


@pytest.mark.parametrize(
    ("raw", "recipe", "words"),
    [
        ({"zero_optimisation": {"stage": 2}}, {}, ["zero_optimisation", "did you mean zero_optimization"]),
        (
            {"bf16": {"enabled": True, "check_grad_overflow": False}},
            {},
            ["remove bf16.check_grad_overflow", "not finite"],
        ),
        (zero(2, compute_grad_norm=False), {}, ["remove zero_optimization.compute_grad_norm", "not finite"]),
        ({"train_batch_size": 32}, {}, ["train_batch_size is 32", "global batch is 64"]),
        ({"train_micro_batch_size_per_gpu": 8}, {"micro_batch": 4}, ["is 8", "micro-batch is 4"]),
        ({"train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 3}, {}, ["64", "8 × 3 × 4"]),
        ({}, {"world_size": 3}, ["64", "× 3"]),
        ({}, {"world_size": 128}, ["64", "× 128"]),
        ({}, {"micro_batch": 32}, ["64", "32 × ", "× 4"]),
        ({"gradient_accumulation_steps": 5}, {}, ["64", "× 5 × 4"]),
        ({"gradient_accumulation_steps": 0}, {}, ["gradient_accumulation_steps is 0"]),
        ({"gradient_clipping": 1.0}, {}, ["gradient_clipping is 1.0", "clip_grad is 0.0"]),
        (BF16 | FP16 | zero(1), {}, ["bf16.enabled", "fp16.enabled", "both true"]),
        (BF16, {"precision": "fp32"}, ["bf16.enabled", "fp32"]),
        (BF16, {"precision": "fp16"}, ["bf16.enabled=true", "fp16"]),
        ({}, {"precision": "bf16"}, ["bf16.enabled=false", "precision is bf16"]),
        ({"bf16": {"enabled": "auto"}, **zero(1)}, {"precision": "fp16"}, ["fp16.enabled=false", "precision is fp16"]),
        (FP16, {}, ["fp16", "stage 0", "loss scale"]),
        ({"bf16": {"enabled": "yes"}}, {}, ["bf16.enabled is 'yes'"]),
        ({"optimizer": {"type": "AdamW"}}, {}, ["remove optimizer", "recipe"]),
        ({"scheduler": {"type": "WarmupLR"}}, {}, ["remove scheduler", "recipe"]),
        ({"torch_autocast": {"enabled": True}}, {}, ["remove torch_autocast"]),
        ({"sequence_parallel_size": 2}, {}, ["remove sequence_parallel_size"]),
        ({"managed_gradient_accumulation": False}, {}, ["remove managed_gradient_accumulation"]),
        ({"checkpoint": {"load_universal": True}}, {}, ["remove checkpoint"]),
        ({"fp16": {"enabled": True, "auto_cast": True}, **zero(1)}, {}, ["remove fp16.auto_cast"]),
        (zero(4), {}, ["stage is 4"]),
        (zero(0, offload_optimizer={"device": "cpu"}), {}, ["offload_optimizer", "stage is 0"]),
        (zero(2, offload_optimizer={"device": "nvme"}), {}, ["offload_optimizer.device is 'nvme'"]),
        (zero(3, offload_param={"device": "cpu"}), {}, ["remove zero_optimization.offload_param"]),
        (zero(2, cpu_offload=True), {}, ["remove zero_optimization.cpu_offload", "offload_optimizer"]),
        (zero(3, zero_quantized_weights=True), {}, ["remove zero_optimization.zero_quantized_weights"]),
        (zero(3, zero_hpz_partition_size=8), {}, ["remove zero_optimization.zero_hpz_partition_size"]),
        (zero(2, reduce_bucket_size="auto"), {}, ['zero_optimization.reduce_bucket_size is "auto"']),
        (BF16 | zero(1) | {"data_types": {"grad_accum_dtype": "fp32"}}, {}, ["grad_accum_dtype", "stage 2"]),
        (
            {"data_types": {"grad_accum_dtype": "int8"}},
            {},
            ["data_types.grad_accum_dtype is 'int8'", "give fp32, bf16"],
        ),
        ({"communication_data_type": "fp7"}, {}, ["communication_data_type is 'fp7'", "give fp32, bf16 or fp16"]),
        ({"zero_optimization": 2}, {}, ["zero_optimization must be an object"]),
        ({"timers": True}, {}, ["timers must be an object"]),
        ({"timer": {}}, {}, ["unknown key timer; did you mean timers?"]),
    ],
)
def test_contradictions_and_untested_features_are_refused_by_name(
    raw: dict[str, Any], recipe: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(BadInput) as refused:
        resolve(raw, **recipe)
    message = str(refused.value)
    assert message.startswith("my.json: ")
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    "raw",
    [
        zero(3, zero_hpz_partition_size=1, offload_param={"device": "none"}, zero_quantized_weights=False),
        {"torch_autocast": {"enabled": False}, "managed_gradient_accumulation": True, "sequence_parallel_size": 1},
    ],
)
def test_refused_features_may_be_present_but_switched_off(raw: dict[str, Any]) -> None:
    resolve(raw)


@pytest.mark.parametrize(
    ("raw", "enabled"),
    [
        ({}, False),
        ({"timers": {}}, False),
        ({"timers": {"throughput": {"enabled": True, "synchronized": False}}}, True),
    ],
)
def test_deepspeeds_throughput_meter_runs_only_where_it_is_asked_for(raw: dict[str, Any], enabled: bool) -> None:
    assert get_timers_config(resolve(raw).config).enabled == enabled


def test_the_users_own_settings_and_his_dictionary_are_left_alone() -> None:
    raw = {**zero(2, reduce_bucket_size=7), "steps_per_print": 3, "wall_clock_breakdown": True}
    before = json.dumps(raw)
    resolved = resolve(raw)
    assert json.dumps(raw) == before
    assert resolved.config["zero_optimization"]["reduce_bucket_size"] == 7
    assert resolved.config["steps_per_print"] == 3
    assert resolved.config["wall_clock_breakdown"] is True
