"""A study: rows of a table, each a recipe with changes or a quoted figure, over several seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from longtail.schema.errors import UsageError
from longtail.schema.explain import explain, nearest
from longtail.schema.parts import Part


class Row(Part):
    """One row: a recipe that is run, or figures from a paper with the reason why they are only quoted."""

    label: str = Field(min_length=1, description="What the row is called in the table; unique.")
    recipe: str | None = Field(None, description="A shipped recipe's name, or a file beside the study.")
    overrides: tuple[str, ...] = Field((), description="Changes to the recipe, as on the command line.")
    baseline: str | None = Field(None, description="The row it is compared with; none = the study's.")
    control: str | None = Field(None, description="A second one: the same stages and length without the method.")
    quoted: dict[str, float] = Field({}, description="Figures of the paper x 100, by metric.")
    reason: str = Field("", description="Why the row is not run.")
    remark: str = Field("", description="Shown below the table.")

    @model_validator(mode="after")
    def _run_or_quoted(self) -> Self:
        if self.recipe is None and not (self.quoted and self.reason):
            raise ValueError(f"row {self.label!r} needs a recipe, or quoted figures and the reason why it is not run")
        return self


class StudyData(Part):
    """What the rows are trained on, unless the command line says otherwise. Paths start from the study's folder."""

    generated: Literal["smoke", "tiny", "small"] | None = Field(None, description="A generated set.")
    train: str | None = Field(None, description="Training annotations.")
    images: str | None = Field(None, description="Their pictures.")
    val: str | None = Field(None, description="Validation annotations.")
    val_images: str | None = Field(None, description="Their pictures; none = as `images`.")


class Study(Part):
    """A table or a figure of a paper, or one of your own."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", description="Name of the study.")
    summary: str = Field("", description="One line on what it shows.")
    paper: str = Field("", description="The table it stands for.")
    data: StudyData = StudyData()
    seeds: int = Field(3, ge=1, description="Runs per row, with seeds 0, 1, ...")
    overrides: tuple[str, ...] = Field((), description="Changes to every row's recipe.")
    metrics: tuple[str, ...] = Field(("AP", "APr", "APc", "APf"), min_length=1, description="Columns.")
    baseline: str = Field(description="Label of the row that others are compared with.")
    rows: tuple[Row, ...] = Field(min_length=1, description="Rows, in order.")

    @model_validator(mode="after")
    def _labels(self) -> Self:
        labels = [row.label for row in self.rows]
        if len(set(labels)) != len(labels):
            raise ValueError(f"labels of rows must differ, got {labels}")
        run = [row.label for row in self.rows if row.recipe is not None]
        for wanted in (self.baseline, *(name for row in self.rows for name in (row.baseline, row.control))):
            if wanted is not None and wanted not in run:
                raise ValueError(f"there is no row {wanted!r} with a recipe to compare with; {nearest(wanted, run)}")
        return self


def load_study(path: Path) -> Study:
    """Reads a study file.

    Raises:
        UsageError: there is none, or it is not a study; names the key.
    """
    if not path.is_file():
        raise UsageError(f"there is no study file {path}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} must hold a mapping, got {type(content).__name__}")
    try:
        return Study.model_validate({"name": path.stem, **content})
    except ValidationError as error:
        raise UsageError(f"{path}: {explain(error, Study)}") from None
