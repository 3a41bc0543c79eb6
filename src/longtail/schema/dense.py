"""Detectors that look at no proposals: RetinaNet, and the region proposal network by itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from longtail.schema.detector import DetectorPart, Inference, MatcherSpec, ModelPart, Proposals
from longtail.schema.features import FPN, BackboneSpec, NeckSpec, ResNet
from longtail.schema.parts import Part, named


class IoUAssign(MatcherSpec):
    """Anchors belong to the object they overlap most, by thresholds on the IoU."""

    type: Literal["iou"] = "iou"
    low: float = Field(0.4, ge=0, le=1, description="IoU below which a candidate is negative.")
    low_quality: bool = Field(True, description="Whether the best candidate of every object is positive regardless.")


class ATSS(Part):
    """Anchors near an object's centre, by thresholds from the object's own candidates (Zhang et al., CVPR 2020)."""

    type: Literal["atss"] = "atss"
    top: int = Field(9, ge=1, description="Nearest anchors of every level that are candidates.")


AssignSpec = Annotated[IoUAssign | ATSS, Field(discriminator="type"), BeforeValidator(named)]


class Dense(Part):
    """The head that looks at all anchors."""

    finest_stage: int = Field(
        2, ge=1, le=4, description="First stage of a ResNet that enters the pyramid: 1 = stride 4, 2 = stride 8."
    )
    extra_levels: Literal["none", "p5", "c5"] = Field(
        "c5", description="Two more levels by convolutions, on the pyramid's (`p5`) or the backbone's (`c5`) last map."
    )
    anchor_sizes: tuple[float, ...] = Field(
        (32, 64, 128, 256, 512), description="Side of the smallest anchor per level, in pixels."
    )
    scales: int = Field(3, ge=1, description="Anchor sizes per level, in equal ratios up to twice the smallest.")
    aspect_ratios: tuple[float, ...] = Field((0.5, 1.0, 2.0), description="Height over width of the anchors.")
    layers: int = Field(4, ge=0, description="Convolutions in front of the classifier and of the box regressor.")
    norm: Literal["none", "group"] = Field("none", description="What follows each of them.")
    assign: AssignSpec = IoUAssign()
    quality: Literal["none", "iou"] = Field(
        "none", description="`iou`: one more output learns the IoU of the box; scores are the geometric mean of both."
    )
    quality_weight: float = Field(1.0, ge=0, description="Factor on its loss.")
    box_weights: tuple[float, float, float, float] = Field(
        (1.0, 1.0, 1.0, 1.0), description="Factors of the encoded dx, dy, dw, dh."
    )
    top_per_level: int = Field(1000, ge=1, description="Best (anchor, class) pairs of a level that enter the NMS.")


class RetinaNet(DetectorPart):
    """A one-stage detector."""

    type: Literal["retinanet"] = "retinanet"
    dense: Dense = Dense()


class RegionProposalNetwork(ModelPart):
    """The region proposal network by itself: boxes without classes, measured by their recall."""

    type: Literal["region_proposal_network"] = "region_proposal_network"
    backbone: BackboneSpec = ResNet()
    neck: NeckSpec = FPN()
    proposals: Proposals = Proposals()

    @property
    def inference(self) -> Inference:
        """All proposals are detections."""
        return Inference(score_threshold=0.0, detections_per_image=self.proposals.after_nms[1])
