"""Base class of every recipe section: typed, immutable, closed to unknown keys."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the recipe. Declared beside the component that it configures; `trainer.recipe` puts them together.

    Each field carries its documentation in ``Field(description=…)``: that text is what `--help-recipe` prints."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)
