"""RetinaNet, assembled from parts that plug into the seams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import clip_boxes_to_image

from longtail.losses.auxiliary import Record
from longtail.losses.base import BoxLoss, ClassificationLoss
from longtail.losses.boxes import SmoothL1Loss
from longtail.losses.cells import full_precision
from longtail.losses.focal import FocalLoss
from longtail.models.atss import ATSSMatcher
from longtail.models.base import ClassHead, Detector
from longtail.models.dense_head import DenseHead, DenseOutputs, Quality
from longtail.models.dense_layers import TowerNorm
from longtail.models.matching import Matcher
from longtail.models.postprocess import MIN_SIDE, Inference, nms_per_class
from longtail.models.preprocess import ImageBatcher, resize_boxes, step_generator
from longtail.models.proposals import make_anchors
from longtail.models.rcnn import image_batcher
from longtail.models.two_stage import height_width

Found = tuple[Tensor, Tensor, Tensor]


class RetinaNet(Detector):
    """A detector that classifies and moves all anchors at once (Lin et al., ICCV 2017). Losses: those of
    :class:`~longtail.models.dense_head.DenseHead`.

    Args:
        preprocess: pictures -> batch.
        backbone: batch (B, 3, H, W) -> {name: map}, every one of which has anchors.
        head: maps -> classes and boxes.
        inference: what becomes a detection; its ``pre_nms_cap`` plays no part.
        top_per_level: so many best (anchor, class) pairs of every level enter non-maximum suppression; published 1000.
    """

    def __init__(
        self,
        *,
        preprocess: ImageBatcher,
        backbone: nn.Module,
        head: DenseHead,
        inference: Inference | None = None,
        top_per_level: int = 1000,
    ) -> None:
        super().__init__()
        if top_per_level < 1:
            raise ValueError(f"top_per_level must be at least 1, got {top_per_level}")
        self.preprocess = preprocess
        self.backbone = backbone
        self.head = head
        self.inference = Inference() if inference is None else inference
        self.top_per_level = top_per_level

    def losses(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Mapping[str, Any]],
        *,
        record: Record | None = None,
        update_state: bool | None = None,
    ) -> dict[str, Tensor]:
        """Losses of one step.

        Args:
            images: (3, H, W) each, uint8 or floating point in 0..1, RGB, at training size.
            targets: per image ``boxes`` (G, 4) corners in pixels, each of positive size, ``labels`` (G,) in 0..C-1,
                ``draw_seed``, which decides all random draws (without it a loss does not subsample), and if wanted
                ``class_mask`` (C,) bool, False = the class takes no part in this image.
            record: gets ``"maps"``, ``"image_sizes"`` and ``"batch_size"`` (height, width) without and with padding,
                ``"dense_logits"`` by level and ``"dense_labels"``.
            update_state: whether losses may change their state; None follows ``self.training``.
        """
        update = self.training if update_state is None else update_state
        batch, scaled = self.preprocess(images, targets, resize=self.preprocess.resize_in_losses)
        maps = self.backbone(batch.tensors)
        if record is not None:
            record.keep("maps", maps)
            record.keep("image_sizes", batch.image_sizes)
            record.keep("batch_size", height_width(batch.tensors))
        generator = step_generator(scaled, batch.tensors.device)
        return self.head.losses(batch, maps, scaled, generator=generator, record=record, update_state=update)

    @torch.no_grad()
    def detect(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """See :meth:`Detector.detect`."""
        batch, _ = self.preprocess(images, resize=True)
        maps = self.backbone(batch.tensors)
        outputs = self.head(maps)
        anchors = make_anchors(self.head.anchor_generator, batch, maps)
        detections = []
        for index, (image, size) in enumerate(zip(images, batch.image_sizes, strict=True)):
            boxes, scores, labels = self._select(outputs, anchors, index, size)
            boxes = resize_boxes(boxes, size, height_width(image))
            detections.append({"boxes": boxes, "scores": scores, "labels": labels})
        return detections

    def class_heads(self) -> list[ClassHead]:
        """The dense head."""
        return [self.head]

    def _select(self, outputs: DenseOutputs, anchors: Tensor, image: int, size: tuple[int, int]) -> Found:
        """Boxes (D, 4), scores and labels (D,) of one image, in its pixels in the batch."""
        per_level = [level.shape[1] for level in outputs.logits]
        found: list[Found] = []
        for level, own in enumerate(torch.split(anchors, per_level)):
            quality = None if outputs.quality is None else outputs.quality[level][image]
            flat = self.head.scores(outputs.logits[level][image], quality).flatten()
            chosen = torch.where(flat > self.inference.score_threshold)[0]
            score, order = flat[chosen].topk(min(self.top_per_level, chosen.shape[0]))
            chosen = chosen[order]
            anchor, label = chosen // self.head.num_classes, chosen % self.head.num_classes
            deltas = full_precision(outputs.deltas[level][image])[anchor]
            boxes = clip_boxes_to_image(self.head.box_coder.decode_single(deltas, own[anchor]), size)
            large = torch.where(((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIDE).all(dim=1))[0]
            found.append((boxes[large], score[large], label[large]))
        boxes, scores, labels = (torch.cat(columns) for columns in zip(*found, strict=True))
        kept = nms_per_class(boxes, scores, labels, self.inference.nms_threshold)[: self.inference.detections_per_image]
        return boxes[kept], scores[kept], labels[kept]


def retinanet(
    backbone: nn.Module,
    *,
    num_classes: int,
    classification_loss: ClassificationLoss | None = None,
    box_loss: BoxLoss | None = None,
    matcher: Matcher | ATSSMatcher | None = None,
    anchor_sizes: Sequence[Sequence[float]] | None = None,
    anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    layers: int = 4,
    norm: TowerNorm = "none",
    quality: Quality = "none",
    box_weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
    classification_weight: float = 1.0,
    box_weight: float = 1.0,
    quality_weight: float = 1.0,
    preprocess: ImageBatcher | None = None,
    inference: Inference | None = None,
    top_per_level: int = 1000,
) -> RetinaNet:
    """RetinaNet on a feature pyramid. What is not given is as published, except ``inference``.

    Args:
        backbone: batch (B, 3, H, W) -> {name: map}, with the attribute ``out_channels``; ``strides``, ``mean`` and
            ``std`` are used where it has them. Published: levels of strides 8 to 128
            (``resnet_fpn(..., returned_layers=(2, 3, 4), extra_level="p6p7")``).
        num_classes: C, foreground classes.
        classification_loss: one that declares ``"dense"``; None = focal loss. The classifier's initial bias is its
            ``bias_prior``.
        box_loss: None = smooth L1 with beta 1/9.
        matcher: None = IoU 0.5 and 0.4 with low-quality matches;
            :class:`~longtail.models.atss.ATSSMatcher` = adaptive training sample selection.
        anchor_sizes: square roots of the anchors' areas in pixels on every map; None = 4 times the stride, and that
            times the first and second power of the cube root of 2.
        anchor_ratios: heights divided by widths.
        layers, norm, quality, box_weights, classification_weight, box_weight, quality_weight: see
            :class:`~longtail.models.dense_head.DenseHead`.
        preprocess: None = the backbone's normalisation, short side 800, long side at most 1333 pixels.
        inference: None = LVIS's settings.
        top_per_level: see :class:`RetinaNet`.
    """
    strides: Sequence[int] = getattr(backbone, "strides", (8, 16, 32, 64, 128))
    if anchor_sizes is None:
        anchor_sizes = octaves([4.0 * stride for stride in strides], 3)
    sizes = tuple(tuple(level) for level in anchor_sizes)
    channels: Any = backbone.out_channels
    head = DenseHead(
        num_classes=num_classes,
        channels=channels,
        anchor_generator=AnchorGenerator(sizes, (tuple(anchor_ratios),) * len(sizes)),
        classification_loss=FocalLoss(num_classes) if classification_loss is None else classification_loss,
        box_loss=SmoothL1Loss(beta=1 / 9) if box_loss is None else box_loss,
        matcher=Matcher(0.5, 0.4, low_quality=True) if matcher is None else matcher,
        layers=layers,
        norm=norm,
        quality=quality,
        box_weights=box_weights,
        classification_weight=classification_weight,
        box_weight=box_weight,
        quality_weight=quality_weight,
    )
    return RetinaNet(
        preprocess=image_batcher(backbone) if preprocess is None else preprocess,
        backbone=backbone,
        head=head,
        inference=inference,
        top_per_level=top_per_level,
    )


def octaves(sizes: Sequence[float], scales: int) -> list[tuple[float, ...]]:
    """For every level, ``scales`` anchor sizes in equal ratios from its own size up to, not including, its double."""
    return [tuple(size * 2 ** (step / scales) for step in range(scales)) for size in sizes]
