"""What training and evaluation ask of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from longtail.losses.auxiliary import Record
from longtail.losses.base import ClassificationLoss
from longtail.models.classifiers import Classifier
from longtail.models.postprocess import Inference
from longtail.schema.errors import UsageError


class ClassHead(Protocol):
    """What turns features into class logits: the region head of a stage, a dense head, a classifier of pictures."""

    num_classes: int
    classifier: Classifier
    classification_loss: ClassificationLoss
    adjustment: nn.Module | None


@dataclass(frozen=True)
class HeadRecord:
    """Names under which a class head records the ``logits`` (N, num_logits) and ``labels`` (N,) of a step's own rows,
    and the ``weight`` of its losses."""

    logits: str
    labels: str
    weight: float = 1.0


class TrainableModel(nn.Module, ABC):
    """A model that says its losses by name. Everything that has parameters runs inside ``forward``, so that a wrapper
    for several processes sees it."""

    def forward(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Mapping[str, Any]] | None = None,
        *,
        record: Record | None = None,
        update_state: bool | None = None,
    ) -> Any:
        """:meth:`losses` if targets are given, else :meth:`predictions`."""
        if targets is None:
            return self.predictions(images)
        return self.losses(images, targets, record=record, update_state=update_state)

    @abstractmethod
    def losses(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Mapping[str, Any]],
        *,
        record: Record | None = None,
        update_state: bool | None = None,
    ) -> dict[str, Tensor]:
        """Losses of one step by name, each a scalar.

        Args:
            images: (3, H, W) each, RGB.
            targets: one mapping per picture.
            record: gets what auxiliary losses ask for.
            update_state: whether loss and replay may change their state; None follows ``self.training``.
        """

    def observe(self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]], record: Record) -> None:
        """Fills ``record`` as :meth:`losses` does, as a teacher; nothing else changes."""
        self.losses(images, targets, record=record, update_state=False)

    @abstractmethod
    def predictions(self, images: Sequence[Tensor]) -> Any:
        """What the model is for."""

    @abstractmethod
    def class_heads(self) -> list[ClassHead]:
        """Its class heads, one for every stage of a cascade; empty for a model without classes."""

    def head_records(self) -> list[HeadRecord]:
        """Where :meth:`class_heads` leave their rows in a record of :meth:`losses`.

        Raises:
            UsageError: they leave none.
        """
        raise UsageError(
            f"{type(self).__name__} does not tell the losses of its classes; a pass `class_losses` works with Faster, "
            "Mask and Cascade R-CNN and with image classifiers"
        )


class Detector(TrainableModel):
    """A model that finds objects. ``inference`` says what becomes a detection."""

    inference: Inference

    def predictions(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """:meth:`detect`."""
        return self.detect(images)

    def score_objects(self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]]) -> list[Tensor]:
        """How well the detector knows given objects, at test size.

        Args:
            images: as for :meth:`detect`.
            targets: per image ``boxes`` (G, 4) corners in pixels of the given picture and ``labels`` (G,).

        Returns:
            Per image (G, 2) the score of the object's class and the highest of all classes, in 0..1; 0 for objects that
            it has no answer for.

        Raises:
            UsageError: it cannot.
        """
        raise UsageError(
            f"{type(self).__name__} does not score given objects; a pass `exemplar_scores` works with deformable_detr, "
            "faster_rcnn and mask_rcnn"
        )

    @abstractmethod
    def detect(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Detections per image, highest score first.

        Args:
            images: (3, H, W) each, uint8 or floating point in 0..1, RGB, of any size.

        Returns:
            Per image ``boxes`` (D, 4) corners in pixels of the given picture, ``scores`` (D,) in 0..1, ``labels`` (D,)
            in 0..C-1, and with a mask branch ``masks`` (D, m, m), probabilities in the frame of the box.
        """
