"""The table of wrong inputs, part one: command line, recipe, ds_config and launcher. Part two: `bad_runs`.

Each row starts from a command line that would train, and spoils one thing. `says` is a regular expression that the
message must contain: the file or the key, then the mend. `tests/launch/test_bad_input.py` runs the rows.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.launch.small_recipe import small_recipe

RECIPE = small_recipe(
    optimizer={"warmup_epochs": 0.1, "clip_grad": 0.0},
    data={"workers": 0},
    train={"epochs": 0.5},
    checkpoint={"every_steps": 4, "keep_last": 2},
)
BF16, FP16 = {"bf16": {"enabled": True}}, {"fp16": {"enabled": True}}
TWO_RANKS = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@dataclass(frozen=True)
class Place:
    """The files of one sound command line, a fresh copy for each row."""

    recipe: Path
    ds_config: Path
    shards: Path
    run: Path

    @property
    def arguments(self) -> list[str]:
        paths = {"ds_config": self.ds_config, "recipe": self.recipe, "data": self.shards, "output": self.run}
        return [word for name, path in paths.items() for word in (f"--{name}", str(path))]

    @property
    def newest(self) -> Path:
        """The newest checkpoint of the run."""
        return max((self.run / "checkpoints").glob("step_*"))


@dataclass(frozen=True)
class Row:
    says: str
    arguments: tuple[str, ...] = ()
    spoil: Callable[[Place], object] = lambda place: None
    environment: dict[str, str] = field(default_factory=dict)


def override(says: str, *overrides: str) -> Row:
    return Row(says, overrides)


def recipe_text(says: str, text: str) -> Row:
    return Row(says, spoil=lambda place: place.recipe.write_text(text))


def ds_config(says: str, content: Any, *overrides: str) -> Row:
    return Row(says, overrides, lambda place: place.ds_config.write_text(json.dumps(content)))


def zero(stage: object, **keys: object) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage, **keys}}


def launcher(says: str, **environment: str | None) -> Row:
    """Two ranks' environment with changes; None takes a variable away."""
    changed = {name: value for name, value in (TWO_RANKS | environment).items() if value is not None}
    return Row(says, environment=changed)


def spoiled(says: str, spoil: Callable[[Place], object], *arguments: str) -> Row:
    return Row(says, arguments, spoil)


COMMAND_LINE = {
    "flag without its value": Row("--recipe: expected one argument .*--help", ("--recipe",)),
    "unknown flag": Row("--bogus .*--help", ("--bogus",)),
    "recipe that is not shipped": Row("vit_bass.*did you mean 'vit_base'", ("--recipe", "vit_bass")),
    "recipe file that is missing": Row(
        "recipe nowhere/mine.yaml: .*No such file.*give", ("--recipe", "nowhere/mine.yaml")
    ),
    "recipe that is a folder": spoiled("recipe .*small.yaml: .*give", lambda p: (p.recipe.unlink(), p.recipe.mkdir())),
    "ds_config that is missing": Row("--ds_config nowhere.json: .*No such file.*give", ("--ds_config", "nowhere.json")),
    "--data given empty": Row("no data: give --data SHARDS, or data.path", ("--data", "")),
}
RECIPES = {
    "unknown section": override("unknown section 'optimiser'; did you mean 'optimizer'", "optimiser.lr=1"),
    "unknown key": override("unknown key train.epoch; did you mean 'epochs'", "train.epoch=3"),
    "override without a value": override("override 'train.epochs': write section.key=value", "train.epochs"),
    "override without a section": override("override 'epochs=3': write section.key=value", "epochs=3"),
    "override of broken YAML": override(
        r"override 'model.stages=\[1, 2': the value is not valid YAML; close", "model.stages=[1, 2"
    ),
    "override below a key": override("unknown key train.epochs.x; did you mean 'epochs'", "train.epochs.x=3"),
    "word for a number": override("train.epochs: .*valid number.*given: 'many'", "train.epochs=many"),
    "fraction for a whole number": override("train.global_batch: .*integer.*given: 8.5", "train.global_batch=8.5"),
    "list for a number": override(r"optimizer.lr: .*number.*given: \[1\]", "optimizer.lr=[1]"),
    "negative number": override("train.epochs: .*greater than 0.*given: -1", "train.epochs=-1"),
    "infinite epochs": override("train.epochs: .*finite", "train.epochs=.inf"),
    "learning rate not a number": override("optimizer.lr: .*finite", "optimizer.lr=.nan"),
    "one beta": override("optimizer.betas", "optimizer.betas=[0.9]"),
    "beta of one": override("optimizer.betas: .*below 1", "optimizer.betas=[0.9, 1.0]"),
    "learning-rate floor above the peak": override("optimizer.min_lr 1: .*between 0 and", "optimizer.min_lr=1"),
    "unknown precision": override("train.precision: .*'fp32', 'bf16' or 'fp16'.*given: 'fp8'", "train.precision=fp8"),
    "unknown model size": override("model.size: .*'tiny'.*given: 'giant'", "model.size=giant"),
    "patch that does not divide the image": override(
        "image_size 64 is not a multiple of patch_size 15: take 60", "model.patch_size=15"
    ),
    "heads that do not divide the width": override(
        "num_heads 3 does not divide embed_dim 32: take", "model.num_heads=3"
    ),
    "width without positions": override(
        "embed_dim 30 is not a multiple of 4.*take", "model.embed_dim=30", "model.num_heads=2"
    ),
    "mask that hides everything": override(
        "mask_ratio 0.99 keeps 0 of 16 patches: at least one", "model.mask_ratio=0.99"
    ),
    "stage beyond the depth": override(r"stages \[0, 1, 2, 9\] must lie between 0 and 3", "model.stages=[0, 1, 2, 9]"),
    "stages that fall": override(r"stages \[3, 1\] must rise", "model.stages=[3, 1]"),
    "scales short of the stages": override("4 stages .* 2 scales.*give one", "model.scales=[4, 2]"),
    "scale without a head": override(
        "scale 3.0 has no decoder head: take 4, 2, 1 or 0.5", "model.scales=[3, 2, 1, 0.5]"
    ),
    "warm-up longer than the run": override(
        "optimizer.warmup_epochs .* below train.epochs.*shorten", "optimizer.warmup_epochs=1"
    ),
    "freezing by an unknown rule": override(
        "freezing.how: .*'none', 'linear', 'squared', 'cubic', 'steps' or 'plasticity'", "freezing.how=sqrt"
    ),
    "freezing before the start": override("freezing.t0: .*greater than 0", "freezing.t0=0"),
    "freezing after the end": override("freezing.t0: .*less than or equal to 1", "freezing.t0=1.5"),
    "freezing at steps that fall": override(
        r"freezing.steps: \[5, 4\]: .*let the numbers rise", "freezing.how=steps", "freezing.steps=[5, 4]"
    ),
    "freezing at a step after the last": override(
        "freezing.steps: step 50 lies beyond the last one of the run, 8; leave",
        "freezing.how=steps",
        "freezing.steps=[50]",
    ),
    "freezing at no steps": override("freezing: how is steps but none are given: set steps", "freezing.how=steps"),
    "everything frozen from the start": override(
        "freezing.initial_units 5: of the model's 5 units the last must train; take at most 4",
        "freezing.initial_units=5",
    ),
    "batches that grow at freezes that nobody knows": override(
        "freezing: rebatch needs to know the freezes in advance.*: set rebatch to false, or",
        "freezing.how=plasticity",
        "freezing.rebatch=true",
    ),
    "rates that anneal for longer than from one measurement to the next": override(
        "freezing: cool_down 100 is longer than the 10 steps between two measurements: lower",
        "freezing.how=plasticity",
        "freezing.probe_every=10",
    ),
    "weights short of the stages": override(
        r"stage_weights \[1.0\]: give one weight for each of the 4 stages", "model.stage_weights=[1]"
    ),
    "last stage without weight": override(
        "the last stage's weight is 0 at the end.*; give", "model.stage_weights_end=[1, 1, 1, 0]"
    ),
    "unknown target": override("model.target: .*'hog' or 'pixels'", "model.target=depth"),
    "memory budget in words": override(
        "freezing.memory_budget: write an amount of memory as 80GB",
        "freezing.rebatch=true",
        "freezing.memory_budget=much",
    ),
    "memory budget for nothing": override(
        "freezing: memory_budget is what rebatch may fill: set rebatch to true", "freezing.memory_budget=80GB"
    ),
    "memory budget that the first phase exceeds": override(
        "freezing.memory_budget 2 MB: micro-batch 8 needs .* MB per rank before the first freeze, .*; raise the",
        "freezing.rebatch=true",
        "freezing.memory_budget=2MB",
    ),
    "crops larger than the image": override("data: crop_scale = .*want 0 < smallest", "data.crop_scale=[0.5, 2]"),
    "window of nothing": override("data.window: .*greater than or equal to 1", "data.window=0"),
    "lanes that do not divide the batch": override(
        "data.lanes = 3 does not divide the global batch of 8: try", "data.lanes=3"
    ),
    "batch larger than the data": override(
        "150 samples, fewer than one global batch of 1000: lower", "train.global_batch=1000", "data.lanes=4"
    ),
    "keeping no checkpoint": override("checkpoint.keep_last: .*greater than or equal to 1", "checkpoint.keep_last=0"),
    "log line at every zeroth step": override(
        "tracking.log_every: .*greater than or equal to 1", "tracking.log_every=0"
    ),
    "budget of no time": override("train.stop_after: .*(give|as in|write)", "train.stop_after=soon"),
    "profile of a step after the last": override(
        "train.profile: step 99999 lies beyond the run: name steps from 1 to 9", "train.profile=99999"
    ),
    "picture of a step after the last": override(
        "tracking.pictures_at: step 99999 lies beyond the run: name steps from 1 to 9",
        "tracking.pictures_at=[4, 99999]",
    ),
    "picture of no step": override("tracking.pictures_at.0: .*greater than or equal to 1", "tracking.pictures_at=[0]"),
    "hang after less than nothing": override(
        "train.hang_timeout: .*greater than or equal to 0", "train.hang_timeout=-1"
    ),
    "unknown answer to a full disk": override("checkpoint.on_error: .*'stop' or 'continue'", "checkpoint.on_error=cry"),
    "fewer retries than none": override("data.retries: .*greater than or equal to 0", "data.retries=-1"),
    "command without a number of samples": override("data: path is a pipe:.*set data.samples", "--data", "pipe:cat x"),
    "cache without a size": override("data: cache is given without cache_size: set data.cache_size", "data.cache=/c"),
    "size without a cache": override("data: cache_size is given without cache: set data.cache", "data.cache_size=1GB"),
    "cache of nothing": override("data.cache_size: .*greater than or equal to", "data.cache=/c", "data.cache_size=1kB"),
    "cache behind a URL": override(
        "data: cache is s3://b/c, a URL: name a folder", "data.cache=s3://b/c", "data.cache_size=1GB"
    ),
    "cache for a command": override(
        "data: cache: nothing of a pipe: .*leave",
        "--data",
        "pipe:cat x",
        "data.samples=9",
        "data.cache=/c",
        "data.cache_size=1GB",
    ),
    "cache for files": override(
        "data.cache keeps shards that lie behind a URL.*leave", "data.cache=/c", "data.cache_size=1GB"
    ),
    "key twice": recipe_text("small.yaml, line 3: .*epochs .*twice", "train:\n  epochs: 1\n  epochs: 2\n"),
    "section that is a list": recipe_text(r"small.yaml: train must be a mapping of keys", "train: [1, 2]"),
    "section given in the file as a number": Row(
        "train.epochs=3.*train is no section .*write", ("train.epochs=3",), lambda p: p.recipe.write_text("train: 7")
    ),
    "recipe that is a list": recipe_text("small.yaml: must be a mapping of sections", "- 1\n- 2"),
    "broken YAML": recipe_text("small.yaml, line 3: not valid YAML", "train:\n  epochs: [1\n"),
    "tagged YAML": recipe_text("small.yaml, line 1: not valid YAML", "train: !!python/object/apply:os.getcwd []"),
    "recipe in another encoding": spoiled("small.yaml: .*UTF-8", lambda p: p.recipe.write_bytes(b"\xff\xfe\x00train")),
    "recipe with control characters": spoiled(
        "small.yaml.*not valid YAML", lambda p: p.recipe.write_bytes(b"train:\x00")
    ),
}
DS_CONFIGS = {
    "not JSON": spoiled("config.json, line 1: not valid JSON", lambda p: p.ds_config.write_text("{stage: 2}")),
    "a list": ds_config("config.json: must be a JSON object", [1]),
    "a key twice": spoiled(
        "config.json: .*bf16 is given twice; mend",
        lambda p: p.ds_config.write_text('{"bf16": {"enabled": true}, "bf16": {"enabled": false}}'),
    ),
    "misspelt key": ds_config(
        "unknown key zero_optimisation; did you mean zero_optimization", {"zero_optimisation": {}}
    ),
    "stage in words": ds_config("zero_optimization.stage is 'two'; give 0, 1, 2 or 3", zero("two")),
    "stage that is not there": ds_config("zero_optimization.stage is 4; give 0, 1, 2 or 3", zero(4)),
    "compiled blocks under ZeRO-3": ds_config(
        "zero_optimization.stage is 3 but the recipe's train.compile is true: .*use stage 1 or 2, or set",
        zero(3),
        "train.compile=true",
    ),
    "section that is a number": ds_config("zero_optimization must be an object", {"zero_optimization": 2}),
    "another batch size": ds_config(
        'train_batch_size is 16 but the recipe\'s global batch is 8; change one, or .*"auto"', {"train_batch_size": 16}
    ),
    "another micro-batch": ds_config(
        "train_micro_batch_size_per_gpu is 4 but the recipe's micro-batch is 2; change one",
        {"train_micro_batch_size_per_gpu": 4},
        "train.micro_batch=2",
    ),
    "batches that do not multiply up": ds_config(
        "global batch 8 is not micro-batch × accumulation × ranks = 2 × 3 × 1; change",
        {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 3},
    ),
    "accumulation of nothing": ds_config(
        "gradient_accumulation_steps is 0; give a positive", {"gradient_accumulation_steps": 0}
    ),
    "another clipping": ds_config(
        "gradient_clipping is 1.0 but the recipe's optimizer.clip_grad is 0.0; change", {"gradient_clipping": 1.0}
    ),
    "bf16 and fp16": ds_config("bf16.enabled and fp16.enabled are both true; keep one", BF16 | FP16 | zero(1)),
    "another precision": ds_config("bf16.enabled=true.*precision is fp32; change one", BF16, "train.precision=fp32"),
    "fp16 at stage 0": ds_config("fp16 with zero_optimization.stage 0: .*use stage 1, 2 or 3, or bf16", FP16),
    "precision in words": ds_config("bf16.enabled is 'yes'; give true, false", {"bf16": {"enabled": "yes"}}),
    "an optimizer": ds_config("remove optimizer: the recipe", {"optimizer": {"type": "Lamb9000"}}),
    "a scheduler": ds_config("remove scheduler: the recipe", {"scheduler": {"type": "WarmupLR"}}),
    "offload at stage 0": ds_config(
        "offload_optimizer needs stage 1, 2 or 3; stage is 0", zero(0, offload_optimizer={"device": "cpu"})
    ),
    "offload to NVMe": ds_config(
        "offload_optimizer.device is 'nvme': .*cpu and none", zero(2, offload_optimizer={"device": "nvme"})
    ),
    "offload given as a word": ds_config("offload_optimizer must be an object", zero(2, offload_optimizer="cpu")),
    "parameter offload below stage 3": ds_config(
        "remove zero_optimization.offload_param", zero(2, offload_param={"device": "cpu"})
    ),
    "ZeRO++": ds_config("remove zero_optimization.zero_quantized_weights", zero(3, zero_quantized_weights=True)),
    "pipeline": ds_config("remove pipeline: ", {"pipeline": {"stages": 2}}),
    "word for a yes or no": ds_config(
        r"config.json: wall_clock_breakdown is 'yes'; give true or false", {"wall_clock_breakdown": "yes"}
    ),
    "word for a yes or no in a section": ds_config(
        "config.json: flops_profiler.enabled is 'x'; give true or false", {"flops_profiler": {"enabled": "x"}}
    ),
    "word for a yes or no in zero_optimization": ds_config(
        "config.json: zero_optimization.contiguous_gradients is 'no'; give true or false",
        zero(2, contiguous_gradients="no"),
    ),
    "number for a yes or no": ds_config(
        "config.json: prescale_gradients is 3; give true or false", {"prescale_gradients": 3}
    ),
    "nothing for a yes or no": ds_config(
        "config.json: memory_breakdown is None; give true or false", {"memory_breakdown": None}
    ),
    "number for a type": ds_config(
        "config.json: communication_data_type is 5; give fp32, bf16 or fp16, or remove it",
        {"communication_data_type": 5},
    ),
    "type to send that is none": ds_config(
        "config.json: communication_data_type is 'fp7'; give fp32, bf16 or fp16", {"communication_data_type": "fp7"}
    ),
    "type to add up in that is none": ds_config(
        "config.json: data_types.grad_accum_dtype is 'double'; give fp32, bf16 or fp16",
        zero(2) | {"data_types": {"grad_accum_dtype": "double"}},
    ),
    "word for a factor": ds_config(
        "config.json: gradient_predivide_factor is 'x'; give a positive number", {"gradient_predivide_factor": "x"}
    ),
    "factor of nothing": ds_config(
        "config.json: gradient_predivide_factor is 0; give a positive number", {"gradient_predivide_factor": 0}
    ),
    "fraction of a step": ds_config("config.json: steps_per_print is 1.5; give an integer", {"steps_per_print": 1.5}),
    "profiler switched on by itself": ds_config(
        "config.json: flops_profiler must be an object, not True", {"flops_profiler": True}
    ),
    "an auto that nothing fills": ds_config(
        'reduce_bucket_size is "auto", which nothing fills; give', zero(2, reduce_bucket_size="auto")
    ),
}
LAUNCHERS = {
    "RANK alone": launcher(
        "RANK set but not WORLD_SIZE; use deepspeed, torchrun or srun", WORLD_SIZE=None, LOCAL_RANK=None
    ),
    "no RANK": launcher("WORLD_SIZE, LOCAL_RANK set but not RANK; use", RANK=None),
    "no LOCAL_RANK": launcher("RANK, WORLD_SIZE set but not LOCAL_RANK; use", LOCAL_RANK=None),
    "words for ranks": launcher("WORLD_SIZE.* must be integers.*'two'.*use", WORLD_SIZE="two"),
    "empty RANK": launcher("RANK.* must be integers.*use", RANK=""),
    "rank beyond the world": launcher("rank 2 is not below world size 2.*use", RANK="2"),
    "rank below zero": launcher("rank -1 is not.*use", RANK="-1"),
    "local rank beyond the machine": launcher("local rank 5 is not below world size 2; use", LOCAL_RANK="5"),
    "no MASTER_ADDR": launcher("MASTER_ADDR is not set; export it", MASTER_ADDR=None),
    "port in words": launcher("MASTER_PORT is 'auto'; give a port .* 1 .* 65535", MASTER_PORT="auto"),
    "port that no machine has": launcher("MASTER_PORT is '70000'; give a port", MASTER_PORT="70000"),
    "srun tasks that all believe to be alone": launcher(
        "WORLD_SIZE is 1 .* srun .* 8 tasks; unset RANK, WORLD_SIZE and LOCAL_RANK",
        WORLD_SIZE="1",
        SLURM_STEP_NUM_TASKS="8",
        SLURM_PROCID="3",
        SLURM_LOCALID="3",
    ),
    "srun without LOCALID": launcher(
        "SLURM_PROCID, SLURM_STEP_NUM_TASKS set but not SLURM_LOCALID",
        RANK=None,
        WORLD_SIZE=None,
        LOCAL_RANK=None,
        SLURM_STEP_NUM_TASKS="2",
        SLURM_PROCID="0",
    ),
    "world that does not divide the lanes": launcher(
        "data.lanes = 4 is not a multiple of the world size 8: .*data.lanes=8", WORLD_SIZE="8"
    ),
    "world that does not divide the batch": launcher("global batch 8 is not .*× 3; change", WORLD_SIZE="3"),
}
