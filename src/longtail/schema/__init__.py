"""Recipes: their schema, loading and dumping. Needs no torch."""

from longtail.schema.errors import DataError, LongtailError, UsageError
from longtail.schema.load import change_recipe, dump_recipe, load_recipe, recipe_names, scale_names
from longtail.schema.recipe import Recipe
from longtail.schema.stage import StageSpec

__all__ = [
    "DataError",
    "LongtailError",
    "Recipe",
    "StageSpec",
    "UsageError",
    "change_recipe",
    "dump_recipe",
    "load_recipe",
    "recipe_names",
    "scale_names",
]
