"""Base class of every recipe section: typed, immutable, closed to unknown keys."""

from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, field_serializer

from trainer.data.urls import redact


def steps_between(every_steps: int, every_epochs: float, steps_per_epoch: int) -> int:
    """An interval that a recipe gives in steps, or else in epochs; 0 if in neither."""
    if every_steps:
        return every_steps
    return max(1, round(every_epochs * steps_per_epoch)) if every_epochs else 0


class Section(BaseModel):
    """A part of the recipe. Declared beside the component that it configures; `trainer.recipe` puts them together.

    Each field carries its documentation in ``Field(description=…)``: that text is what `--help-recipe` prints."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @field_serializer("*", mode="wrap", when_used="json")
    def _without_secrets(self, value: Any, serialize: SerializerFunctionWrapHandler) -> Any:
        """What is printed and saved with the run and its checkpoints: whichever key a URL stands in, its password and
        its query are cut out."""
        shown = serialize(value)
        return redact(shown) if isinstance(shown, str) else shown
