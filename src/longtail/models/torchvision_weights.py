"""Weights of torchvision's ``fasterrcnn_resnet50_fpn`` and ``maskrcnn_resnet50_fpn`` for our detectors.

Names, torchvision's on the left:

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


def _check_rows(name: str, value: Tensor, wanted: int) -> None:
    if value.shape[0] != wanted:
        raise DataError(
            f"{name!r} has {value.shape[0]} rows and should have {wanted}; load it into a detector with its own number "
            "of classes and re-map that by class name"
        )
