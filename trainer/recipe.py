"""What a run is: one typed recipe, read from YAML, overridable on the command line, printable and saved with the run.

Each section is declared beside the component that it configures; this module puts them together and turns every
mistake into one line that names the key and the mend.
"""

import difflib
import re
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from trainer.checkpoint.config import CheckpointConfig
from trainer.data.config import DataConfig
from trainer.engine.config import OptimizerConfig
from trainer.errors import BadInput
from trainer.evaluation.config import EvaluationConfig
from trainer.freezing.config import FreezingConfig
from trainer.model.config import ModelConfig
from trainer.section import Section
from trainer.tracking.config import TrackingConfig

_STEP_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?:in)?)?(?:(\d+)s)?")

MOST_PROFILED_STEPS = 100


def _seconds(value: Any) -> Any:
    """``3h50m`` → 13800; what is no text stays as it is."""
    if not isinstance(value, str):
        return value
    parts = _DURATION.fullmatch(value.replace(" ", ""))
    if not value or parts is None:
        raise ValueError(f"write a duration as 3h50m, 45m, 1d or a number of seconds, not {value!r}")
    return float(sum(int(part or 0) * unit for part, unit in zip(parts.groups(), (86400, 3600, 60, 1), strict=True)))


Seconds = Annotated[float, BeforeValidator(_seconds)]
"""A duration in seconds, which a recipe may also write as 1d, 3h50m, 45m or 30s."""


def _step_numbers(value: Any) -> list[int]:
    """``100-103`` → [100, 101, 102, 103]; a number stands for itself, a list may hold both, nothing is no step."""
    numbers: set[int] = set()
    for part in value if isinstance(value, list) else [] if value is None else [value]:
        found = _STEP_RANGE.fullmatch(str(part))
        if found is None:
            raise ValueError(f"write steps as 100, 100-103 or a list of both, not {part!r}")
        steps = range(int(found[1]), int(found[2] or found[1]) + 1)
        if not steps or steps[0] == 0:
            raise ValueError(f"{part} holds no step: the first is 1, and 100-103 goes up")
        numbers.update(steps[: MOST_PROFILED_STEPS + 1])
    if len(numbers) > MOST_PROFILED_STEPS:
        raise ValueError(f"name at most {MOST_PROFILED_STEPS} steps: no viewer opens a recording of more")
    return sorted(numbers)


Steps = Annotated[list[int], BeforeValidator(_step_numbers)]
"""Numbers of steps from 1, which a recipe may also write as 100-103."""


class TrainConfig(Section):
    epochs: float = Field(1600, gt=0, description="length of the run in passes over the data")
    global_batch: int = Field(2048, ge=1, description="images per optimizer step over all ranks and micro-batches")
    micro_batch: int | None = Field(
        None, ge=1, description="images per rank per forward; empty = as the ds_config says, else no accumulation"
    )
    precision: Literal["fp32", "bf16", "fp16"] | None = Field(None, description="empty = as the ds_config says")
    seed: int = Field(0, ge=0, description="of the initial weights, the order of the data, the crops and the masks")
    compile: bool = Field(
        False,
        description="torch.compile the encoder's block at the start, in a minute or so; written for GPUs, where it has "
        "not been timed yet: on a CPU it gains nothing; not with ZeRO-3",
    )
    checkpoint_activations: bool = Field(
        False,
        description="keep only the input of each live encoder block for the backward pass and run the block again "
        "there: ViT-B then keeps 0.4 times the activations and takes about a fifth more time; results keep every bit",
    )
    stop_after: Seconds | None = Field(
        None,
        gt=0,
        description="save and leave with exit code 75 so long after the process started (3h50m, 45m, seconds): before "
        "a scheduler's limit, with room for one step and one save; empty = no limit",
    )
    max_bad_steps: int = Field(
        10,
        ge=1,
        description="steps in a row with a loss or gradient that is not finite, each of which is skipped, before the "
        "run ends with exit code 1 and leaves a report in RUN/inspection",
    )
    hang_timeout: Seconds = Field(
        1800,
        ge=0,
        description="when a rank has stood still for so long (30m, seconds), all tell where each of them is, and end "
        "with exit code 1; must be longer than any pause that is no hang, a save to slow storage for instance; "
        "0 = never",
    )
    profile: Steps = Field(
        [],
        description="steps (1 = the first) to record into RUN/profile, with torch's profiler and the memory over time: "
        "a number, 100-103, or a list of both; empty = none",
    )


class Recipe(Section):
    model: ModelConfig = ModelConfig()
    freezing: FreezingConfig = FreezingConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _warmup_fits(self) -> "Recipe":
        if self.optimizer.warmup_epochs >= self.train.epochs:
            raise ValueError(
                f"optimizer.warmup_epochs ({self.optimizer.warmup_epochs:g}) must be below train.epochs "
                f"({self.train.epochs:g}): shorten the warm-up or lengthen the run"
            )
        return self

    @property
    def learning_rate(self) -> float:
        """Peak learning rate of this global batch."""
        return self.optimizer.peak_lr(self.train.global_batch)


def load_recipe(name: str, overrides: list[str], shipped: Path) -> Recipe:
    """Read a recipe by shipped name or file path and apply ``section.key=value`` overrides.

    Raises `BadInput` for a missing file, bad YAML, an unknown key (with the nearest valid one) or a bad value."""
    path = _recipe_path(name, shipped)
    try:
        tree = _EachKeyOnce(path.read_text(encoding="utf-8")).get_single_data() or {}
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise BadInput(f"recipe {path}{line}: not valid YAML ({problem})") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"recipe {path}: not UTF-8 text ({error.reason}): save it as UTF-8") from None
    except OSError as error:
        raise BadInput(f"recipe {path}: cannot be read ({error.strerror}): give another file, or mend that") from None
    if not isinstance(tree, dict):
        raise BadInput(f"recipe {path}: must be a mapping of sections (model:, train:, …)")
    for override in overrides:
        _apply(tree, override)
    return parse_recipe(tree, source=f"recipe {path}")


def parse_recipe(tree: dict[str, Any], source: str) -> Recipe:
    """Validate a nested dict. Raises `BadInput`, one line, first mistake first."""
    _refuse_unknown_keys(tree, Recipe, source)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        given = "" if first["type"] == "value_error" else f" (given: {first['input']!r})"
        message = first["msg"].removeprefix("Value error, ")
        more = len(error.errors()) - 1
        raise BadInput(
            f"{source}: {key + ': ' if key else ''}{message}{given}" + (f" (and {more} more)" if more else "")
        ) from None


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe as YAML, defaults included: what RUN/recipe.yaml holds and `load_recipe` reads back."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def describe_recipe() -> str:
    """Every key with its type, default and meaning, for `--help-recipe`."""
    lines = []
    for section, info in Recipe.model_fields.items():
        lines.append(f"{section}:")
        for key, field in _section_class(info.annotation).model_fields.items():
            kind = getattr(field.annotation, "__name__", None) if not typing.get_args(field.annotation) else None
            kind = kind or str(field.annotation).replace("typing.", "").replace("NoneType", "None")
            lines.append(f"  {key}: {field.get_default()!r}  [{kind}]")
            lines.append(f"      {field.description}")
    return "\n".join(lines)


def differing_keys(then: Recipe, now: Recipe) -> dict[str, tuple[Any, Any]]:
    """``section.key`` → (then, now) wherever two recipes differ."""
    a, b = then.model_dump(mode="json"), now.model_dump(mode="json")
    return {f"{s}.{k}": (a[s][k], b[s][k]) for s in a for k in a[s] if a[s][k] != b[s][k]}


class _EachKeyOnce(yaml.SafeLoader):
    """YAML lets a key come twice, and PyYAML takes the last: half a recipe would go unread."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        names = [key.value for key in keys]
        for place, key in enumerate(keys):
            if key.value in names[:place]:
                problem = f"{key.value} is given twice"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


def _recipe_path(name: str, shipped: Path) -> Path:
    if name.endswith((".yaml", ".yml")) or "/" in name:
        return Path(name)
    names = sorted(file.stem for file in shipped.glob("*.yaml"))
    if name not in names:
        raise BadInput(f"recipe {name!r} is not shipped{_nearest(name, names)}; shipped: {', '.join(names)}")
    return shipped / f"{name}.yaml"


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    section, dot, field = key.partition(".")
    if not (equals and dot and section and field):
        raise BadInput(f"override {override!r}: write section.key=value, for instance train.epochs=100")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        raise BadInput(f"override {override!r}: the value is not valid YAML; close its brackets and quotes") from None
    if tree.get(section) is None:
        tree[section] = {}
    if not isinstance(tree[section], dict):
        raise BadInput(
            f"override {override!r}: {section} is no section in the recipe file; write it there as a mapping of keys"
        )
    tree[section][field] = parsed


def _refuse_unknown_keys(tree: dict[str, Any], model: type[BaseModel], source: str) -> None:
    for section, content in tree.items():
        if section not in model.model_fields:
            raise BadInput(f"{source}: unknown section {section!r}{_nearest(str(section), list(model.model_fields))}")
        if content is not None and not isinstance(content, dict):
            raise BadInput(f"{source}: {section} must be a mapping of keys to values (given: {content!r})")
        fields = list(_section_class(model.model_fields[section].annotation).model_fields)
        for key in content or {}:
            if key not in fields:
                raise BadInput(f"{source}: unknown key {section}.{key}{_nearest(str(key), fields)}")
    for section in [name for name, content in tree.items() if content is None]:  # `model:` with nothing under it
        del tree[section]


def _section_class(annotation: Any) -> type[BaseModel]:
    assert isinstance(annotation, type)
    assert issubclass(annotation, BaseModel)
    return annotation


def _nearest(name: str, valid: list[str]) -> str:
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; valid: {', '.join(valid)}"
