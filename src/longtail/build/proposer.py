"""From the schema's model to the proposal network that trains alone."""

from __future__ import annotations

from longtail.build.detector import batcher, proposals
from longtail.build.features import backbone
from longtail.data import ClassStatistics
from longtail.models.proposals import TopN
from longtail.models.proposer import ProposalDetector, Proposer
from longtail.schema import StageSpec, UsageError, dense, features
from longtail.schema import detector as specs
from longtail.schema import samplers as sampler_specs
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
    neck = features.FPN(channels=model.neck.channels, norm=model.neck.norm)
    pyramid = backbone(model.backbone, neck, pretrained=pretrained, trust=trust)
    network = proposals(model.proposals, pyramid, statistics)
    return Proposer(preprocess=batcher(model, pyramid, images), backbone=pyramid, rpn=network)


def build_proposal_detector(
    model: dense.RegionProposalNetwork,
    images: Images,
    stage: StageSpec,
    statistics: ClassStatistics,
    *,
    pretrained: bool,
    trust: bool = False,
) -> ProposalDetector:
    """The proposal network as a detector of its own, on the neck of the recipe; its sampler, matcher and box loss are
    those of ``model.proposals``.

    Raises:
        UsageError: the stage asks for what needs regions.
        LongtailError: pretrained weights that cannot be had.
    """
    if stage.replay or not isinstance(stage.region_sampler, sampler_specs.Random):
        raise UsageError(
            f"stage {stage.name!r}: a region_proposal_network has no region head for a region sampler or feature "
            "replay; set its own sampler, model.proposals.region_sampler"
        )
    pyramid = backbone(model.backbone, model.neck, pretrained=pretrained, trust=trust)
    network = proposals(model.proposals, pyramid, statistics)
    network.top_in_losses = TopN(1, 1)  # nobody looks at the proposals of a training step
    return ProposalDetector(
        preprocess=batcher(model, pyramid, images),
        backbone=pyramid,
        rpn=network,
    )
