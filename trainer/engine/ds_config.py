"""From a user's DeepSpeed JSON to one that is complete, consistent with the recipe and known to work with freezing.

"auto" values are filled from the recipe. What the recipe and the JSON both say must agree: nothing is overridden
silently. Features that freezing has not been tested with are refused by name, so that no run finds out after a day.
Pure: no DeepSpeed import, no files, no ranks.
"""

import copy
import difflib
import json
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from trainer.engine.ds_types import name_dtypes, refuse_wrong_types
from trainer.errors import BadInput

Precision = Literal["fp32", "bf16", "fp16"]
ELEMENT_BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2, "fp16": 2}

REFUSED = {
    "optimizer": "the recipe's section `optimizer` sets it",
    "scheduler": "the recipe's sections `optimizer` and `freezing` set the learning rates",
    "amp": "use bf16 or fp16",
    "torch_autocast": "use bf16 or fp16",
    "pipeline": "freezing is not tested with pipeline parallelism",
    "tensor_parallel": "freezing is not tested with tensor parallelism",
    "sequence_parallel_size": "freezing is not tested with sequence parallelism",
    "expert_parallel": "the models have no experts",
    "compression_training": "freezing is not tested with it",
    "progressive_layer_drop": "it changes which blocks run; the recipe's section `freezing` does",
    "data_efficiency": "the trainer's own loader decides the order of the data",
    "curriculum_learning": "the trainer's own loader decides the order of the data",
    "hybrid_engine": "it is for text generation",
    "elasticity": "it chooses the global batch; the recipe does",
    "autotuning": "it starts trial runs that the recipe knows nothing of",
    "checkpoint": "the trainer writes and reads its own checkpoints",
    "compile": "DeepCompile keeps a graph of the layers that freezing changes",
    "managed_gradient_accumulation": "freezing needs to know the accumulation boundaries",
}
REFUSED_IN_ZERO = {
    "cpu_offload": 'write "offload_optimizer": {"device": "cpu"}',
    "cpu_offload_params": "parameter offload is not tested with freezing",
    "offload_param": "parameter offload is not tested with freezing; offload_optimizer is",
    "zenflow": "freezing is not tested with it",
    "mics_shard_size": "freezing is not tested with it",
    "zero_hpz_partition_size": "freezing is not tested with ZeRO++",
    "zero_quantized_weights": "freezing is not tested with ZeRO++",
    "zero_quantized_nontrainable_weights": "freezing is not tested with ZeRO++",
    "zero_quantized_gradients": "freezing is not tested with ZeRO++",
}
OFF: tuple[Any, ...] = (None, False, 0, 1, {})
"""Values with which a refused key is harmless: absent, switched off, or a degree of parallelism of one."""

COMMON_KEYS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "zero_optimization",
    "zero_allow_untested_optimizer",
    "bf16",
    "fp16",
    "data_types",
    "communication_data_type",
    "prescale_gradients",
    "gradient_predivide_factor",
    "steps_per_print",
    "wall_clock_breakdown",
    "flops_profiler",
    "comms_logger",
    "aio",
    "timers",
)
"""Against these an unknown key is held: one that is nearly the same is a slip, others are DeepSpeed's business."""

DEFAULTS: dict[str, Any] = {"steps_per_print": 1_000_000_000}
"""Set where absent: the trainer writes its own log lines."""
ZERO_DEFAULTS: dict[str, Any] = {"reduce_bucket_size": 50_000_000}
"""Set where absent: DeepSpeed's 5e8 elements cost 1 GB of scratch under bf16; a ViT-H block has 2e7 parameters."""
TIMERS_DEFAULTS: dict[str, Any] = {"throughput": {"enabled": False}}
"""Set where absent: DeepSpeed's meter of images per second has the host wait for the device twice in every micro-batch,
and nothing here reads it. Whoever asks for it gets it."""


@dataclass(frozen=True)
class ResolvedDsConfig:
    """A DeepSpeed config without "auto", and what the trainer needs to know of it.

    `global batch = micro_batch × accumulation × world size`, in images."""

    config: dict[str, Any]
    micro_batch: int
    accumulation: int
    zero_stage: int
    precision: Precision
    offload_optimizer: bool = field(default=False)

    def with_micro_batch(self, micro_batch: int) -> "ResolvedDsConfig":
        """The same global batch in other micro-batches. Raises ValueError if they do not divide a rank's share."""
        share = self.micro_batch * self.accumulation
        if micro_batch < 1 or share % micro_batch:
            raise ValueError(f"a rank's {share} images a step are not a whole number of micro-batches of {micro_batch}")
        accumulation = share // micro_batch
        batch = {"train_micro_batch_size_per_gpu": micro_batch, "gradient_accumulation_steps": accumulation}
        return replace(self, config=self.config | batch, micro_batch=micro_batch, accumulation=accumulation)


def resolve_ds_config(
    raw: dict[str, Any],
    *,
    source: str,
    world_size: int,
    global_batch: int,
    micro_batch: int | None,
    precision: Precision | None,
    clip_grad: float,
) -> ResolvedDsConfig:
    """Fill and check a DeepSpeed config.

    `source` names the file in messages; `micro_batch` (images per rank and forward) and `precision` are None where
    the recipe leaves them to this config. Raises `BadInput` naming the key, both values and the mend."""
    config = copy.deepcopy(raw)
    _refuse_misspelt(config, source)
    refuse_wrong_types(config, source)
    name_dtypes(config, source)
    stage = _zero_stage(config, source)
    _refuse_untested(config, source)
    found_precision = _resolve_precision(config, source, precision, stage)
    offload = _offload_optimizer(config, source, stage)
    _refuse_gradient_dtype(config, source, stage, found_precision)
    micro, accumulation = _resolve_batch(config, source, world_size, global_batch, micro_batch)
    _resolve_clipping(config, source, clip_grad)
    config |= {key: value for key, value in DEFAULTS.items() if key not in config}
    config["timers"] = copy.deepcopy(TIMERS_DEFAULTS) | _section(config, "timers", source)
    if stage > 0:
        config["zero_optimization"] = ZERO_DEFAULTS | config["zero_optimization"]
    _refuse_other_autos(config, source)
    return ResolvedDsConfig(config, micro, accumulation, stage, found_precision, offload)


def _refuse_misspelt(config: dict[str, Any], source: str) -> None:
    """DeepSpeed ignores a key that it does not know, so that `zero_optimisation` would mean stage 0."""
    for key in config:
        close = difflib.get_close_matches(key, COMMON_KEYS, n=1, cutoff=0.8)
        if key not in COMMON_KEYS and key not in REFUSED and close:
            raise BadInput(f"{source}: unknown key {key}; did you mean {close[0]}?")


def _section(config: dict[str, Any], key: str, source: str) -> dict[str, Any]:
    section = config.get(key, {})
    if not isinstance(section, dict):
        raise BadInput(f"{source}: {key} must be an object, not {section!r}")
    return section


def _zero_stage(config: dict[str, Any], source: str) -> int:
    stage = _section(config, "zero_optimization", source).get("stage", 0)
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        raise BadInput(f"{source}: zero_optimization.stage is {stage!r}; give 0, 1, 2 or 3")
    return stage


def _refuse_untested(config: dict[str, Any], source: str) -> None:
    zero = _section(config, "zero_optimization", source)
    for prefix, section, refused in (("", config, REFUSED), ("zero_optimization.", zero, REFUSED_IN_ZERO)):
        for key, reason in refused.items():
            value = section.get(key)
            if key == "managed_gradient_accumulation":  # on by default
                value = value is False
            if isinstance(value, dict) and (value.get("enabled") is False or value.get("device") == "none"):
                continue
            if value is True or value not in OFF:
                raise BadInput(f"{source}: remove {prefix}{key}: {reason}")
    for section_name in ("bf16", "fp16"):
        for key, value in _section(config, section_name, source).items():
            if value is True and (key == "auto_cast" or "master_weights" in key or "optimizer_states" in key):
                raise BadInput(f"{source}: remove {section_name}.{key}: freezing is tested with fp32 optimizer states")
    for section_name, key in (("bf16", "check_grad_overflow"), ("zero_optimization", "compute_grad_norm")):
        if _section(config, section_name, source).get(key) is False:
            raise BadInput(
                f"{source}: remove {section_name}.{key}: without it DeepSpeed applies updates that are not finite"
            )


def _resolve_precision(config: dict[str, Any], source: str, wanted: Precision | None, stage: int) -> Precision:
    asked = {name: _section(config, name, source).get("enabled", False) for name in ("bf16", "fp16")}
    for name, value in asked.items():
        if value not in (True, False, "auto"):
            raise BadInput(f'{source}: {name}.enabled is {value!r}; give true, false or "auto"')
    on = [name for name, value in asked.items() if value is True]
    auto = [name for name, value in asked.items() if value == "auto"]
    if len(on) == 2:
        raise BadInput(f"{source}: bf16.enabled and fp16.enabled are both true; keep one")
    allowed = on or [*auto, "fp32"]
    precision = wanted or cast(Precision, allowed[0])
    if precision not in allowed:
        found = ", ".join(f"{name}.enabled={json.dumps(value)}" for name, value in asked.items())
        raise BadInput(f'{source}: {found} but the recipe\'s precision is {wanted}; change one, or write "auto" here')
    for name in asked:
        if name in config:
            config[name] = config[name] | {"enabled": name == precision}
    if precision == "fp16" and stage == 0:
        raise BadInput(
            f"{source}: fp16 with zero_optimization.stage 0: DeepSpeed 0.19 divides the gradients by a loss scale that "
            "it never applied to the loss; use stage 1, 2 or 3, or bf16"
        )
    return precision


def _offload_optimizer(config: dict[str, Any], source: str, stage: int) -> bool:
    zero = _section(config, "zero_optimization", source)
    offload = zero.get("offload_optimizer") or {}
    if not isinstance(offload, dict):
        raise BadInput(f'{source}: zero_optimization.offload_optimizer must be an object: {{"device": "cpu"}}')
    device = offload.get("device", "none")
    if device == "none":
        return False
    if device != "cpu":
        raise BadInput(
            f"{source}: zero_optimization.offload_optimizer.device is {device!r}: freezing is tested with cpu and none"
        )
    if stage == 0:
        raise BadInput(f"{source}: zero_optimization.offload_optimizer needs stage 1, 2 or 3; stage is 0")
    if offload.get("ratio", 1.0) != 1.0 or offload.get("super_offload"):
        raise BadInput(f"{source}: remove ratio and super_offload from offload_optimizer: not tested with freezing")
    return True


def _refuse_gradient_dtype(config: dict[str, Any], source: str, stage: int, precision: Precision) -> None:
    dtype = _section(config, "data_types", source).get("grad_accum_dtype")
    if dtype not in (None, precision) and stage < 2:
        raise BadInput(
            f"{source}: data_types.grad_accum_dtype is {dtype} and the precision {precision}: DeepSpeed takes another "
            "optimizer for that below stage 2, which freezing is not tested with; use stage 2 or 3"
        )


def _resolve_batch(
    config: dict[str, Any], source: str, world_size: int, global_batch: int, wanted_micro: int | None
) -> tuple[int, int]:
    keys = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    total, micro, accumulation = (_positive(config, key, source) for key in keys)
    if total not in (None, global_batch):
        raise BadInput(
            f"{source}: train_batch_size is {total} but the recipe's global batch is {global_batch}; "
            'change one, or set train_batch_size to "auto"'
        )
    if None not in (micro, wanted_micro) and micro != wanted_micro:
        raise BadInput(
            f"{source}: train_micro_batch_size_per_gpu is {micro} but the recipe's micro-batch is {wanted_micro}; "
            'change one, or set train_micro_batch_size_per_gpu to "auto"'
        )
    micro = micro or wanted_micro or global_batch // (world_size * (accumulation or 1))
    accumulation = accumulation or global_batch // (world_size * max(micro, 1))
    if micro * accumulation * world_size != global_batch:
        raise BadInput(
            f"{source}: global batch {global_batch} is not micro-batch × accumulation × ranks = "
            f"{micro} × {accumulation} × {world_size}; change {keys[1]}, {keys[2]} or the recipe's global batch"
        )
    config |= dict(zip(keys, (global_batch, micro, accumulation), strict=True))
    return micro, accumulation


def _positive(config: dict[str, Any], key: str, source: str) -> int | None:
    """A positive integer, or None for "auto" and for an absent key."""
    value = config.get(key, "auto")
    if value == "auto":
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadInput(f'{source}: {key} is {value!r}; give a positive integer or "auto"')
    return value


def _resolve_clipping(config: dict[str, Any], source: str, clip_grad: float) -> None:
    value = config.get("gradient_clipping", "auto")
    if value not in ("auto", clip_grad):
        raise BadInput(
            f"{source}: gradient_clipping is {value!r} but the recipe's optimizer.clip_grad is {clip_grad}; "
            'change one, or set gradient_clipping to "auto"'
        )
    config["gradient_clipping"] = clip_grad


def _refuse_other_autos(section: dict[str, Any], source: str, prefix: str = "") -> None:
    for key, value in section.items():
        if value == "auto":
            raise BadInput(f'{source}: {prefix}{key} is "auto", which nothing fills; give a value or remove it')
        if isinstance(value, dict):
            _refuse_other_autos(value, source, f"{prefix}{key}.")
