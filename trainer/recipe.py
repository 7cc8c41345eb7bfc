"""What a run is: one typed recipe, read from YAML, overridable on the command line, printable and saved with the run.

Each section is declared beside the component that it configures; this module puts them together and turns every
mistake into one line that names the key and the mend.
"""

import difflib
import typing
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from trainer.checkpoint.config import CheckpointConfig
from trainer.data.config import DataConfig
from trainer.engine.config import OptimizerConfig
from trainer.errors import BadInput
from trainer.evaluation.config import EvaluationConfig
from trainer.freezing.config import FreezingConfig
from trainer.model.config import EncoderConfig, ModelConfig
from trainer.run_config import RunConfig
from trainer.section import Section
from trainer.tracking.config import LogConfig, TrackingConfig

FINETUNE = "finetune"
"""The section by which a recipe for fine-tuning is told from one for pre-training."""


class TrainConfig(RunConfig):
    epochs: float = Field(1600, gt=0, description="length of the run in passes over the data")
    global_batch: int = Field(2048, ge=1, description="images per optimizer step over all ranks and micro-batches")
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


class AnyRecipe(Section):
    """The sections that every kind of run has."""

    model: EncoderConfig
    optimizer: OptimizerConfig
    data: DataConfig
    train: RunConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: LogConfig

    @classmethod
    def refuse_another_kind(cls, sections: dict[str, Any], source: str) -> None:
        """Raises `BadInput` for a recipe that is meant for another command."""

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
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

    def total_steps(self, steps_per_epoch: int) -> int:
        return max(1, round(self.train.epochs * steps_per_epoch))


class Recipe(AnyRecipe):
    """A pre-training."""

    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    tracking: TrackingConfig = TrackingConfig()
    freezing: FreezingConfig = FreezingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @classmethod
    def refuse_another_kind(cls, sections: dict[str, Any], source: str) -> None:
        if FINETUNE in sections:
            raise BadInput(
                f"{source}: has a section {FINETUNE}, so it is a recipe for launch/finetune.py: give that command, or "
                "a recipe for pre-training"
            )


R = TypeVar("R", bound=AnyRecipe)


def load_recipe(name: str, overrides: list[str], shipped: Path) -> Recipe:
    """`load_kind` for pre-training."""
    return load_kind(Recipe, name, overrides, shipped)


def load_kind(kind: type[R], name: str, overrides: list[str], shipped: Path) -> R:
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
    kind.refuse_another_kind(tree, f"recipe {path}")  # before an override makes a section
    for override in overrides:
        _apply(tree, override)
    return parse_kind(kind, tree, f"recipe {path}")


def parse_recipe(tree: dict[str, Any], source: str) -> Recipe:
    """`parse_kind` for pre-training."""
    return parse_kind(Recipe, tree, source)


def parse_kind(kind: type[R], tree: dict[str, Any], source: str) -> R:
    """Validate a nested dict. Raises `BadInput`, one line, first mistake first."""
    kind.refuse_another_kind(tree, source)
    _refuse_unknown_keys(tree, kind, source)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        given = "" if first["type"] == "value_error" else f" (given: {first['input']!r})"
        message = first["msg"].removeprefix("Value error, ")
        more = len(error.errors()) - 1
        raise BadInput(
            f"{source}: {key + ': ' if key else ''}{message}{given}" + (f" (and {more} more)" if more else "")
        ) from None


def dump_recipe(recipe: AnyRecipe) -> str:
    """The whole recipe as YAML, defaults included: what RUN/recipe.yaml holds and `load_recipe` reads back."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def describe_recipe(kind: type[AnyRecipe] = Recipe) -> str:
    """Every key with its type, default and meaning, for `--help-recipe`."""
    lines = []
    for section, info in kind.model_fields.items():
        lines.append(f"{section}:")
        for key, field in _section_class(info.annotation).model_fields.items():
            of = getattr(field.annotation, "__name__", None) if not typing.get_args(field.annotation) else None
            of = of or str(field.annotation).replace("typing.", "").replace("NoneType", "None")
            lines.append(f"  {key}: {field.get_default()!r}  [{of}]")
            lines.append(f"      {field.description}")
    return "\n".join(lines)


def differing_keys(then: AnyRecipe, now: AnyRecipe) -> dict[str, tuple[Any, Any]]:
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
