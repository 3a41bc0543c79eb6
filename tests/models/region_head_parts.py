"""A small region head, its inputs, and scripted parts for the tests of both of its sides."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from longtail.losses.boxes import L1Loss
from longtail.losses.softmax import SoftmaxCrossEntropy
from longtail.models.classifiers import LinearClassifier
from longtail.models.matching import Matcher
from longtail.models.region_head import BoxStage, StageResult
from longtail.replay.base import FeatureReplay, RegionRows, ReplayRows
from longtail.sampling.random_regions import RandomRegions

C, D, CHANNELS, SIZE = 5, 12, 4, (64, 64)
APART: dict[str, Any] = {"joins_normaliser": False, "updates_loss_state": False}
MakeRows = Callable[[RegionRows], ReplayRows | None]


class CountingLoss(SoftmaxCrossEntropy):
    """Cross-entropy that counts the rows it was allowed to count."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__(C)
        self.register_buffer("seen", torch.zeros(C + 1))

    def row_losses(self, logits, labels, *, class_mask=None, update_state=False, generator=None):  # type: ignore[no-untyped-def]
        if update_state:
            self.seen += torch.bincount(labels, minlength=C + 1)
        return super().row_losses(logits, labels, class_mask=class_mask)


class Scripted(FeatureReplay):
    """A part that returns what it is told to and remembers what it was shown."""

    level: ClassVar[Any] = "embedded"

    def __init__(self, make: MakeRows = lambda rows: None) -> None:
        super().__init__()
        self.make = make
        self.shown: list[RegionRows] = []
        self.after: list[tuple[RegionRows, Tensor, bool]] = []
        self.updates: list[bool] = []
        self.pooled: list[Tensor] = []

    def step(self, rows, targets, pool, update_state):  # type: ignore[no-untyped-def]
        self.shown.append(rows)
        self.updates.append(update_state)
        self.pooled.append(pool([target["boxes"] for target in targets]))
        return self.make(rows)

    def after_logits(self, rows: RegionRows, logits: Tensor, update_state: bool) -> None:
        self.after.append((rows, logits, update_state))


class ScriptedPooled(Scripted):
    level: ClassVar[Any] = "pooled"


def rows_like(rows: RegionRows, labels: Sequence[int], **options: Any) -> ReplayRows:
    """Stored rows with the given labels: fixed random features, proposals beside their objects."""
    generator = torch.Generator().manual_seed(7)
    count = len(labels)
    gt_boxes = torch.tensor([[10.0, 12, 40, 44]]).repeat(count, 1) + torch.rand(count, 4, generator=generator) * 4
    fields: dict[str, Any] = {
        "features": torch.rand(count, *rows.features.shape[1:], generator=generator),
        "labels": torch.tensor(labels),
        "proposals": gt_boxes + torch.rand(count, 4, generator=generator) * 3,
        "gt_boxes": gt_boxes,
        "gt_index": torch.full((count,), -1),
        "image_index": torch.full((count,), -1),
        "weight": torch.ones(count),
    }
    return ReplayRows(**{**fields, **options})


def stage(*replay: FeatureReplay, **options: Any) -> BoxStage:
    torch.manual_seed(0)
    agnostic = options.get("class_agnostic", False)
    parts: dict[str, Any] = {
        "num_classes": C,
        "pool": MultiScaleRoIAlign(["0", "1"], 3, 2),
        "head": TwoMLPHead(CHANNELS * 9, D),
        "classifier": LinearClassifier(D, C + 1),
        "regressor": nn.Linear(D, 4 if agnostic else 4 * C),
        "classification_loss": CountingLoss(),
        "box_loss": L1Loss(),
        "matcher": Matcher(0.5, 0.5),
        "sampler": RandomRegions(16, 0.5),
        "replay": replay,
    }
    return BoxStage(**{**parts, **options})


def inputs(objects: Sequence[int] = (2, 3)) -> tuple[dict[str, Tensor], list[Tensor], list[dict[str, Any]]]:
    generator = torch.Generator().manual_seed(4)
    batch = len(objects)
    maps = OrderedDict(
        (str(i), torch.rand(batch, CHANNELS, 16 // 2**i, 16 // 2**i, generator=generator)) for i in (0, 1)
    )
    proposals, targets = [], []
    for index, count in enumerate(objects):
        corner = torch.rand(count, 2, generator=generator) * 30
        boxes = torch.cat([corner, corner + 15 + torch.rand(count, 2, generator=generator) * 15], dim=1)
        far = torch.rand(12, 2, generator=generator) * 40
        near = boxes.repeat(3, 1) + torch.randn(3 * count, 4, generator=generator) * 2
        proposals.append(torch.cat([near, torch.cat([far, far + 10], dim=1)]))
        targets.append({"boxes": boxes, "labels": (torch.arange(count) + index) % C})
    return maps, proposals, targets


def seeds(count: int = 2) -> list[torch.Generator | None]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def run(head: BoxStage, objects: Sequence[int] = (2, 3), **options: Any) -> StageResult:
    maps, proposals, targets = inputs(objects)
    return head.losses(maps, SIZE, proposals, targets, generators=seeds(len(objects)), **options)


def plain_box_rows(head: BoxStage, result: StageResult) -> Tensor:
    """Row losses of this step's positives, one by one."""
    rows = []
    start = 0
    for image, count in enumerate(result.regions.num_positive):
        for k in range(count):
            label = int(result.regions.labels[image][k])
            deltas = head.regressor(result.features[start + k])
            if not head.class_agnostic:
                deltas = deltas[4 * label : 4 * label + 4]
            proposal, gt = result.regions.proposals[image][k][None], result.regions.gt_boxes[image][k][None]
            if head.box_loss.space == "boxes":
                rows.append(head.box_loss.row_losses(head.box_coder.decode_single(deltas[None], proposal), gt)[0])
            else:
                rows.append(head.box_loss.row_losses(deltas[None], head.box_coder.encode_single(gt, proposal))[0])
        start += len(result.regions.labels[image])
    return torch.stack(rows)
