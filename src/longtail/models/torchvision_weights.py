"""Weights of torchvision's R-CNN detectors and RetinaNet for our detectors.

Names of ``fasterrcnn_resnet50_fpn`` and ``maskrcnn_resnet50_fpn``, torchvision's on the left:

====================================================  ========================================  ====================
``backbone.*``, ``rpn.*``                             the same
``roi_heads.box_head.*``                              ``box.head.*``
``roi_heads.box_predictor.cls_score.{weight,bias}``   ``box.classifier.{weight,bias}``          background from first
                                                                                                row to last
``roi_heads.box_predictor.bbox_pred.{weight,bias}``   ``box.regressor.{weight,bias}``           four rows of the
                                                                                                background dropped
``roi_heads.mask_head.*``                             ``mask.head.*``
``roi_heads.mask_predictor.conv5_mask.*``             ``mask.predictor.conv5_mask.*``
``roi_heads.mask_predictor.mask_fcn_logits.*``        ``mask.predictor.mask_fcn_logits.*``      map of the background
                                                                                                dropped
====================================================  ========================================  ====================
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from longtail.schema.errors import DataError

_PREFIXES = {
    "backbone.": "backbone.",
    "rpn.": "rpn.",
    "roi_heads.box_head.": "box.head.",
    "roi_heads.box_predictor.cls_score.": "box.classifier.",
    "roi_heads.box_predictor.bbox_pred.": "box.regressor.",
    "roi_heads.mask_head.": "mask.head.",
    "roi_heads.mask_predictor.": "mask.predictor.",
}

RETINANET_CLASSIFIER = "head.classification_head.cls_logits."
_DENSE_PREFIXES = {
    "backbone.": "backbone.",
    "head.classification_head.conv.": "head.class_tower.",
    RETINANET_CLASSIFIER: "head.classifier.",
    "head.regression_head.conv.": "head.box_tower.",
    "head.regression_head.bbox_reg.": "head.regressor.",
}


def from_torchvision(state_dict: Mapping[str, Tensor], num_classes: int) -> dict[str, Tensor]:
    """State dict for :func:`~longtail.models.faster_rcnn` or :func:`~longtail.models.mask_rcnn` with the default parts
    and ``num_classes`` foreground classes.

    Args:
        state_dict: of torchvision's model with ``num_classes + 1`` outputs, background first.
        num_classes: C; class c of ours is torchvision's label c + 1.

    Raises:
        DataError: an entry has no counterpart, or the number of classes differs.
    """
    converted = {}
    for name, value in state_dict.items():
        prefix = next((known for known in _PREFIXES if name.startswith(known)), None)
        if prefix is None:
            raise DataError(
                f"the entry {name!r} belongs to no part of a Faster or Mask R-CNN; give the state dict of "
                "torchvision's fasterrcnn_resnet50_fpn or maskrcnn_resnet50_fpn"
            )
        new_name = _PREFIXES[prefix] + name.removeprefix(prefix)
        if new_name.startswith("box.classifier."):
            _check_rows(name, value, num_classes + 1)
            value = torch.cat([value[1:], value[:1]])
        elif new_name.startswith("box.regressor."):
            _check_rows(name, value, 4 * (num_classes + 1))
            value = value[4:]
        elif new_name.startswith("mask.predictor.mask_fcn_logits."):
            _check_rows(name, value, num_classes + 1)
            value = value[1:]
        converted[new_name] = value.clone()
    return converted


def retinanet_from_torchvision(state_dict: Mapping[str, Tensor], num_classes: int) -> dict[str, Tensor]:
    """State dict of torchvision's ``retinanet_resnet50_fpn`` for :func:`~longtail.models.retinanet`.

    ``head.classification_head.{conv,cls_logits}`` become ``head.class_tower`` and ``head.classifier``,
    ``head.regression_head.{conv,bbox_reg}`` become ``head.box_tower`` and ``head.regressor``. The first of its classes,
    which stands for the background and is never learnt, is dropped.

    Args:
        state_dict: of torchvision's model with ``num_classes + 1`` classes.
        num_classes: C; class c of ours is torchvision's label c + 1.

    Raises:
        DataError: an entry has no counterpart, or the number of classes differs.
    """
    anchors = state_dict["head.regression_head.bbox_reg.bias"].shape[0] // 4
    converted = {}
    for name, value in state_dict.items():
        prefix = next((known for known in _DENSE_PREFIXES if name.startswith(known)), None)
        if prefix is None:
            raise DataError(
                f"the entry {name!r} belongs to no part of a RetinaNet; give the state dict of torchvision's "
                "retinanet_resnet50_fpn"
            )
        if prefix == RETINANET_CLASSIFIER:
            _check_rows(name, value, anchors * (num_classes + 1))
            value = value.reshape(anchors, num_classes + 1, *value.shape[1:])[:, 1:]
        converted[_DENSE_PREFIXES[prefix] + name.removeprefix(prefix)] = value.clone()
    return converted


def retinanet_classes(state_dict: Mapping[str, Tensor]) -> int | None:
    """Number of foreground classes of torchvision's RetinaNet; None if these are not its weights."""
    if f"{RETINANET_CLASSIFIER}bias" not in state_dict or "head.regression_head.bbox_reg.bias" not in state_dict:
        return None
    anchors = state_dict["head.regression_head.bbox_reg.bias"].shape[0] // 4
    return state_dict[f"{RETINANET_CLASSIFIER}bias"].shape[0] // anchors - 1


def _check_rows(name: str, value: Tensor, wanted: int) -> None:
    if value.shape[0] != wanted:
        raise DataError(
            f"{name!r} has {value.shape[0]} rows and should have {wanted}; load it into a detector with its own number "
            "of classes and re-map that by class name"
        )
