"""From the schema's model and stage to Cascade R-CNN."""

from __future__ import annotations

from typing import Any

from longtail.build.detector import head, mask_arguments, two_stage_arguments
from longtail.build.features import backbone
from longtail.build.replay import check_stages, draw_in_stages
from longtail.build.samplers import region_sampler
from longtail.data import ClassStatistics
from longtail.models.cascade import CascadeRCNN, CascadeStage, cascade_rcnn
from longtail.models.matching import Matcher
from longtail.schema import StageSpec
from longtail.schema import detector as specs
from longtail.schema.recipe import Images


def build_cascade(
    model: specs.CascadeRCNN,
    images: Images,
    stage: StageSpec,
    statistics: ClassStatistics,
    *,
    pretrained: bool,
    trust: bool = False,
) -> CascadeRCNN:
    """Cascade R-CNN, with masks or without; as :func:`~longtail.build.detector.build_rcnn`."""
    check_stages(stage, len(model.regions.stages))
    pyramid = backbone(model.backbone, model.neck, pretrained=pretrained, trust=trust)
    regions = model.regions
    arguments: dict[str, Any] = two_stage_arguments(model, pyramid, images, stage, statistics)
    detector = cascade_rcnn(
        pyramid,
        stages=[CascadeStage(one.iou, one.loss_weight, one.box_weights) for one in regions.stages],
        region_samplers=[region_sampler(stage.region_sampler, negative_iou=one.iou) for one in regions.stages],
        matchers=[Matcher(one.iou, one.iou, centre_in_gt=regions.centre_in_gt) for one in regions.stages],
        box_head=head(regions, pyramid),
        with_masks=model.has_masks,
        **arguments,
        **mask_arguments(model, pyramid, stage),
    )
    draw_in_stages(stage.replay, [list(head.replay) for head in detector.stages])  # type: ignore[arg-type]
    return detector
