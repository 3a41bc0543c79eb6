"""The mask branch: its loss from the definition, its predictions, and what happens without positives."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.ops import MultiScaleRoIAlign

from longtail.models.mask_head import MaskBranch, project_masks
from longtail.models.mask_predictors import OrdinaryMaskPredictor
from longtail.models.regions import Regions

C, CHANNELS, SIZE = 3, 4, (48, 48)


def branch(*, agnostic: bool = False, **options: Any) -> MaskBranch:
    torch.manual_seed(0)
    return MaskBranch(
        pool=MultiScaleRoIAlign(["0"], 6, 2),
        head=MaskRCNNHeads(CHANNELS, (8,), 1),
        predictor=OrdinaryMaskPredictor(8, 8, 1 if agnostic else C),
        class_agnostic=agnostic,
        **options,
    )


def maps_of(batch: int) -> OrderedDict[str, Tensor]:
    return OrderedDict([("0", torch.rand(batch, CHANNELS, 12, 12, generator=torch.Generator().manual_seed(1)))])


def regions() -> tuple[Regions, list[dict[str, Tensor]]]:
    """Two positives and a negative in the first image, a negative in the second, which has no objects."""
    boxes = torch.tensor([[4.0, 4, 30, 28], [10.0, 12, 40, 44], [0.0, 0, 9, 9]])
    masks = torch.zeros(2, 48, 48, dtype=torch.uint8)
    masks[0, 6:25, 5:20] = 1
    masks[1, 15:40, 18:41] = 1
    return (
        Regions(
            proposals=[boxes, boxes[2:]],
            labels=[torch.tensor([2, 0, C]), torch.tensor([C])],
            gt_index=[torch.tensor([1, 0]), torch.zeros(0, dtype=torch.int64)],
            gt_boxes=[boxes[:2], boxes[:0]],
            num_positive=[2, 0],
        ),
        [{"masks": masks}, {"masks": torch.zeros(0, 48, 48, dtype=torch.uint8)}],
    )


@pytest.mark.parametrize("agnostic", [False, True])
def test_loss_is_the_mean_over_the_positives_own_maps(agnostic: bool) -> None:
    masks = branch(agnostic=agnostic, weight=2.0)
    chosen, targets = regions()
    loss = masks.losses(maps_of(2), SIZE, chosen, targets)["loss_mask"]
    pooled = masks.pool(maps_of(2), [chosen.proposals[0][:2], chosen.proposals[0][:0]], [SIZE])
    logits = masks.predictor(masks.head(pooled))
    channel = [0, 0] if agnostic else [2, 0]
    wanted = project_masks_on_boxes(targets[0]["masks"], chosen.proposals[0][:2], torch.tensor([1, 0]), 12)
    rows = [F.binary_cross_entropy_with_logits(logits[k, channel[k]], wanted[k]) for k in (0, 1)]
    torch.testing.assert_close(loss, 2 * (rows[0] + rows[1]) / 2)


def test_without_positives_the_loss_is_zero_and_reaches_every_parameter() -> None:
    masks = branch()
    chosen, targets = regions()
    none = Regions(
        proposals=[chosen.proposals[0][2:], chosen.proposals[1]],
        labels=[chosen.labels[1], chosen.labels[1]],
        gt_index=[chosen.gt_index[1]] * 2,
        gt_boxes=[chosen.gt_boxes[1]] * 2,
        num_positive=[0, 0],
    )
    loss = masks.losses(maps_of(2), SIZE, none, targets)["loss_mask"]
    assert loss == 0
    loss.backward()
    assert all(parameter.grad is not None for parameter in masks.parameters())


def test_projection_is_torchvisions() -> None:
    generator = torch.Generator().manual_seed(2)
    masks = (torch.rand(3, 20, 24, generator=generator) > 0.5).byte()
    boxes = torch.tensor([[1.0, 2, 15, 17], [3.5, 0, 9.25, 19], [0.0, 0, 24, 20], [20.0, 18, 30, 30]])
    index = torch.tensor([2, 0, 1, 1])
    assert torch.equal(project_masks(masks, index, boxes, 7), project_masks_on_boxes(masks, boxes, index, 7))


@pytest.mark.parametrize("agnostic", [False, True])
def test_predictions_do_not_depend_on_the_chunk(agnostic: bool) -> None:
    boxes = [torch.tensor([[4.0, 4, 30, 28], [10.0, 12, 40, 44], [0.0, 0, 9, 9]]), torch.tensor([[5.0, 5, 20, 20]])]
    labels = [torch.tensor([2, 0, 1]), torch.tensor([1])]
    with torch.no_grad():
        whole = branch(agnostic=agnostic).predict(maps_of(2), SIZE, boxes, labels)
        pieces = branch(agnostic=agnostic, chunk=2).predict(maps_of(2), SIZE, boxes, labels)
        masks = branch(agnostic=agnostic)
        logits = masks.predictor(masks.head(masks.pool(maps_of(2), boxes, [SIZE])))
    assert [part.shape for part in whole] == [(3, 12, 12), (1, 12, 12)]
    for mine, other in zip(pieces, whole, strict=True):
        torch.testing.assert_close(mine, other)
    for row, label in enumerate(torch.cat(labels).tolist()):
        torch.testing.assert_close(torch.cat(whole)[row], logits[row, 0 if agnostic else label].sigmoid())


def test_no_detections_give_empty_masks() -> None:
    with torch.no_grad():
        found = branch().predict(maps_of(2), SIZE, [torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.int64)] * 2)
    assert [part.shape for part in found] == [(0, 12, 12)] * 2
