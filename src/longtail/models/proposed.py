"""A detector on given proposals, made independent by the network that gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from longtail.losses.auxiliary import Record
from longtail.models.base import ClassHead, Detector, HeadRecord
from longtail.models.postprocess import Inference
from longtail.models.proposals import TopN
from longtail.models.proposer import Proposer
from longtail.models.two_stage import TwoStageDetector


class ProposedDetector(Detector):
    """A detector on given proposals together with the network that gives them, for pictures without a table. It is not
    trained.

    Args:
        detector: a two-stage detector with :class:`~longtail.models.proposer.CachedProposals`.
        proposer: what it was trained on the proposals of.
        top: proposals per picture.
    """

    def __init__(self, detector: TwoStageDetector, proposer: Proposer, *, top: TopN) -> None:
        super().__init__()
        self.detector = detector
        self.proposer = proposer
        self.top = top

    @property
    def inference(self) -> Inference:
        """That of the detector."""
        return self.detector.inference

    @inference.setter
    def inference(self, value: Inference) -> None:
        self.detector.inference = value

    def losses(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Mapping[str, Any]],
        *,
        record: Record | None = None,
        update_state: bool | None = None,
    ) -> dict[str, Tensor]:
        """Those of the detector."""
        return self.detector.losses(images, targets, record=record, update_state=update_state)

    def class_heads(self) -> list[ClassHead]:
        """Those of the detector."""
        return self.detector.class_heads()

    def head_records(self) -> list[HeadRecord]:
        """Those of the detector."""
        return self.detector.head_records()

    @torch.no_grad()
    def detect(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """See :meth:`Detector.detect`."""
        proposals = [boxes for boxes, _ in self.proposer.propose(images, top=self.top)]
        return self.detector.detect(images, proposals=proposals)
