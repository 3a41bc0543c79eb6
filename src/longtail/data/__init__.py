"""Annotations, pictures, checks, and generated sets. Importing this needs no torch."""

from longtail.data.formats import read_annotations
from longtail.data.join import join_tables
from longtail.data.shapes import make_shapes
from longtail.data.statistics import ClassStatistics
from longtail.data.table import AnnotationTable, Classes, match_categories

__all__ = [
    "AnnotationTable",
    "ClassStatistics",
    "Classes",
    "join_tables",
    "make_shapes",
    "match_categories",
    "read_annotations",
]
