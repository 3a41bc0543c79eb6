"""What a run learns from and is measured on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longtail.data import AnnotationTable, ClassStatistics
from longtail.data.proposals import ProposalTable


@dataclass(frozen=True)
class KeptProposals:
    """Tables of a run: of the training pictures, and of the validation pictures or None."""

    train: ProposalTable
    val: ProposalTable | None


@dataclass(frozen=True)
class TrainingData:
    """What a run learns from and is measured on.

    Attributes:
        table, images: training annotations and their pictures' folder; None = the folders the table names.
        statistics: of the training annotations.
        val_table, val_images: the same for validation, its labels in the training classes' order; or None.
        proposals: of both, for a stage on cached proposals.
        holdout: training annotations that are kept from training, or None; ``table`` and ``statistics`` are without
            them, their pictures are in ``images``, too.
        chosen: which of the table's objects have a loss, for a stage that ignores the others; None = all. In such a
            stage, and in others on chosen objects, ``table`` is a part of the training annotations, and
            ``statistics`` are of all.
    """

    table: AnnotationTable
    images: Path | None
    statistics: ClassStatistics
    val_table: AnnotationTable | None
    val_images: Path | None
    proposals: KeptProposals | None = None
    holdout: AnnotationTable | None = None
    chosen: NDArray[np.bool_] | None = None
