"""Detections in columns, the protocols they are measured by, and results that say how they came about."""

from longtail.evaluation.best_per_class import BestPerClass
from longtail.evaluation.detections import DetectionTable
from longtail.evaluation.dispatch import PROTOCOLS, evaluate
from longtail.evaluation.errors import ErrorAnalysis, analyse_errors
from longtail.evaluation.pascal_voc import voc
from longtail.evaluation.protocols import bins, coco, fixed, lvis, pool, proposals
from longtail.evaluation.result import ClassResult, EvaluationResult, format_table

__all__ = [
    "PROTOCOLS",
    "BestPerClass",
    "ClassResult",
    "DetectionTable",
    "ErrorAnalysis",
    "EvaluationResult",
    "analyse_errors",
    "bins",
    "coco",
    "evaluate",
    "fixed",
    "format_table",
    "lvis",
    "pool",
    "proposals",
    "voc",
]
