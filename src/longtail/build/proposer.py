"""From the schema's model to the proposal network that trains alone."""

from __future__ import annotations

from longtail.build.detector import backbone, batcher, proposals
from longtail.data import ClassStatistics
from longtail.models.proposer import Proposer
from longtail.schema import detector as specs
from longtail.schema.recipe import Images


def build_proposer(
    model: specs.RCNN | specs.CascadeRCNN,
    images: Images,
    statistics: ClassStatistics,
    *,
    pretrained: bool,
    trust: bool = False,
) -> Proposer:
    """The proposal network of a two-stage detector alone, on a plain feature pyramid of the neck's width and norm, so
    that detectors that differ in neck and heads can share its proposals; arguments as for
    :func:`~longtail.build.detector.build_rcnn`."""
    neck = specs.FPN(channels=model.neck.channels, norm=model.neck.norm)
    pyramid = backbone(model.backbone, neck, pretrained=pretrained, trust=trust)
    network = proposals(model.proposals, pyramid, statistics)
    return Proposer(preprocess=batcher(model, pyramid, images), backbone=pyramid, rpn=network)
