"""Deformable DETR (Zhu et al., ICLR 2021) on the encoder and decoder of transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import box_convert, clip_boxes_to_image

from longtail.losses.auxiliary import Record
from longtail.losses.base import ClassificationLoss
from longtail.losses.cells import full_precision
from longtail.losses.focal import FocalLoss
from longtail.losses.sigmoid import prior_logit
from longtail.models.backbones import PyramidBackbone
from longtail.models.base import ClassHead, Detector
from longtail.models.classifiers import Classifier, LinearClassifier
from longtail.models.object_scores import query_scores
from longtail.models.postprocess import Inference, select_queries
from longtail.models.preprocess import IMAGENET_MEAN, IMAGENET_STD, ImageBatcher, resize_boxes, step_generator
from longtail.models.query_losses import Objects, QueryCriterion, QueryOutputs
from longtail.models.query_transformer import (
    BoxHead,
    MaskedMaps,
    ProposalClassifier,
    Start,
    inverse_sigmoid,
    query_transformer,
    without_pyramid,
)
from longtail.schema.errors import UsageError

OBJECTNESS_PRIOR = 0.01


@dataclass
class QueryHead:
    """What turns the last decoder layer's queries into class logits. The modules are the detector's own."""

    num_classes: int
    classifier: Classifier
    classification_loss: ClassificationLoss
    adjustment: nn.Module | None = None


class DeformableDETR(Detector):
    """A detector that predicts a set: every query becomes one object or none. Made by :func:`deformable_detr`.

    Its parameters are called as in transformers: ``transformer.input_proj`` (the projections of the backbone's maps),
    ``transformer.encoder``, ``transformer.decoder``, ``class_embed.<layer>`` and ``bbox_embed.<layer>``; with two
    stages the last entry of both is the head of the encoder's proposals. It has no masks.

    Args:
        preprocess: pictures -> batch.
        backbone: batch (B, 3, H, W) -> {name: map}.
        transformer: encoder and decoder, without a backbone of their own.
        class_embed: classifiers of the decoder's layers, then that of the proposals, of which channel 0 counts.
        bbox_embed: box heads, likewise.
        criterion: the losses.
        inference: what becomes a detection; an NMS threshold of 1 means that there is none.
        num_queries: queries, or proposals that become queries.
    """

    def __init__(
        self,
        *,
        preprocess: ImageBatcher,
        backbone: nn.Module,
        transformer: Any,
        class_embed: nn.ModuleList,
        bbox_embed: nn.ModuleList,
        criterion: QueryCriterion,
        inference: Inference,
        num_queries: int,
    ) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.backbone = backbone
        self.transformer = transformer
        self.class_embed = class_embed
        self.bbox_embed = bbox_embed
        self.criterion = criterion
        self.inference = inference
        self.num_queries = num_queries
        self.num_classes = criterion.num_classes
        last: Any = class_embed[transformer.config.decoder_layers - 1]
        self.head = QueryHead(self.num_classes, last, criterion.classification_loss)

    def class_heads(self) -> list[ClassHead]:
        """Its own: the classifiers of the layers before the last one only serve the training."""
        return [self.head]

    def losses(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Mapping[str, Any]],
        *,
        record: Record | None = None,
        update_state: bool | None = None,
    ) -> dict[str, Tensor]:
        """Losses of one step, see :class:`~longtail.models.query_losses.QueryCriterion`.

        Args:
            images: (3, H, W) each, uint8 or floating point in 0..1, RGB, at training size.
            targets: per image ``boxes`` (G, 4) corners in pixels, ``labels`` (G,) in 0..C-1, ``draw_seed`` for losses
                that draw, and ``class_mask`` (C,) bool if only some classes are known of the picture.
            record: gets what :meth:`observe` says, and ``"query_labels"`` (B, Q) of the last layer.
            update_state: whether the loss may change its state; None follows ``self.training``.
        """
        update = self.training if update_state is None else update_state
        outputs, features, scaled = self._observed(images, targets, record)
        losses, labels = self.criterion(
            outputs, scaled, generator=step_generator(scaled, features[0].device), update_state=update
        )
        if record is not None:
            record.keep("query_labels", labels.reshape(len(images), -1))
        if update:
            self.head.classifier.observe(features[-1].flatten(0, 1).detach(), labels, self.num_classes)
        return dict(losses)

    def observe(self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]], record: Record) -> None:
        """Keeps ``"maps"`` (projected, {level: (B, d, h, w)}), ``"image_sizes"`` and ``"batch_size"`` (height, width)
        without and with padding, ``"query_features"`` and ``"query_logits"`` (L, B, Q, d) and (L, B, Q, K) of the
        decoder's layers, ``"shared_query_logits"`` of given features, and ``"object_queries"`` (L, G), for every object
        of the batch the row of its query among the B * Q, -1 without one. No loss is computed."""
        if "query_labels" in record.wanted:
            self.losses(images, targets, record=record, update_state=False)
        else:
            self._observed(images, targets, record)

    def _observed(
        self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]], record: Record | None
    ) -> tuple[QueryOutputs, list[Tensor], list[dict[str, Any]]]:
        """What all layers say, the decoder's states, and the targets in pixels of the batch."""
        batch, scaled = self.preprocess(images, targets, resize=self.preprocess.resize_in_losses)
        assert scaled is not None
        outputs, features = self.outputs(batch.tensors, batch.image_sizes, record=record)
        if record is not None:
            record.keep("image_sizes", batch.image_sizes)
            record.keep("batch_size", (batch.tensors.shape[-2], batch.tensors.shape[-1]))
            if "object_queries" in record.wanted:
                record.keep("object_queries", self.criterion.object_queries(outputs, Objects.of(scaled)))
            if "query_features" in record.given:
                given = record.given["query_features"].unbind()
                shared = [self._classified(layer, states) for layer, states in enumerate(given)]
                record.keep("shared_query_logits", torch.stack(shared))
        return outputs, features, scaled

    @torch.no_grad()
    def score_objects(self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]]) -> list[Tensor]:
        """See :meth:`Detector.score_objects`: scores of the queries of the last layer that are matched one to one."""
        batch, scaled = self.preprocess(images, targets, resize=True)
        assert scaled is not None
        outputs, _ = self.outputs(batch.tensors, batch.image_sizes)
        return query_scores(self.criterion, outputs, Objects.of(scaled))

    def outputs(
        self, batch: Tensor, image_sizes: Sequence[tuple[int, int]], *, record: Record | None = None
    ) -> tuple[QueryOutputs, list[Tensor]]:
        """What all layers say of a batch, and the decoder's states (B, Q, d) per layer.

        Args:
            batch: (B, 3, H, W), normalised and padded.
            image_sizes: (height, width) of every picture without padding.
            record: see :meth:`losses`.
        """
        found, config = self._run(batch, image_sizes, record), self._config
        states = list(found.intermediate_hidden_states.unbind(dim=1))
        # the first layer refines the queries' own reference, every other one what the layer before it has made of it
        references = [found.init_reference_points, *found.intermediate_reference_points.unbind(dim=1)]
        logits, boxes = [], []
        for layer, state in enumerate(states):
            logits.append(self._classified(layer, state))
            offset = self.bbox_embed[layer](state)
            reference = inverse_sigmoid(references[layer])
            missing = offset.shape[-1] - reference.shape[-1]  # a learned reference is a point without a size
            boxes.append((offset + F.pad(reference, (0, missing))).sigmoid())
        if record is not None:
            record.keep("query_features", torch.stack(states))
            record.keep("query_logits", torch.stack(logits))
        if not config.two_stage:
            return QueryOutputs(logits, boxes), states
        proposed = QueryOutputs(
            logits, boxes, found.enc_outputs_class[..., 0], found.enc_outputs_coord_logits.sigmoid()
        )
        return proposed, states

    def _classified(self, layer: int, state: Tensor) -> Tensor:
        """Class logits (B, Q, K) of a layer's queries (B, Q, d): classifiers take rows (N, d)."""
        logits: Tensor = self.class_embed[layer](state.flatten(0, 1))
        return logits.reshape(*state.shape[:2], -1)

    @property
    def _config(self) -> Any:
        return self.transformer.config

    def _run(self, batch: Tensor, image_sizes: Sequence[tuple[int, int]], record: Record | None) -> Any:
        """Backbone, projections, encoder and decoder."""
        height, width = batch.shape[-2:]
        sizes = torch.tensor(image_sizes, device=batch.device)
        rows, columns = torch.arange(height, device=batch.device), torch.arange(width, device=batch.device)
        inside = (rows[None, :, None] < sizes[:, 0, None, None]) & (columns[None, None, :] < sizes[:, 1, None, None])
        projected: dict[str, Tensor] = {}
        hooks = []
        if record is not None and "maps" in record.wanted:
            levels: Any = self.transformer.input_proj
            for index, level in enumerate(levels):
                hooks.append(level.register_forward_hook(_keep_in(projected, str(index))))
        if self._config.two_stage:
            # pictures with fewer places than queries have as many queries as places
            self._config.two_stage_num_proposals = min(self.num_queries, self._places(height, width))
        try:
            found = self.transformer(batch, pixel_mask=inside.long())
        finally:
            for hook in hooks:
                hook.remove()
        if record is not None and hooks:
            record.keep("maps", projected)
        return found

    def _places(self, height: int, width: int) -> int:
        """Places on all maps of a picture."""
        strides: Any = self.backbone.strides
        count = 0
        for level in range(self._config.num_feature_levels):
            if level < len(strides):
                rows, columns = -(-height // strides[level]), -(-width // strides[level])
            else:
                rows, columns = -(-rows // 2), -(-columns // 2)
            count += rows * columns
        return count

    @torch.no_grad()
    def detect(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """See :meth:`Detector.detect`: the best (query, class) pairs."""
        batch, _ = self.preprocess(images, resize=True)
        outputs, states = self.outputs(batch.tensors, batch.image_sizes)
        logits = full_precision(self.head.classifier.detection_logits(states[-1].flatten(0, 1), self.num_classes))
        if self.head.adjustment is not None:
            logits = self.head.adjustment(logits)
        scores = self.head.classification_loss.scores(logits)[:, : self.num_classes]
        scores = scores.reshape(len(images), -1, self.num_classes)
        detections = []
        for own_scores, boxes, image, size in zip(scores, outputs.boxes[-1], images, batch.image_sizes, strict=True):
            height, width = size
            corners = box_convert(full_precision(boxes), "cxcywh", "xyxy")
            corners = clip_boxes_to_image(corners * corners.new_tensor([width, height, width, height]), size)
            found = select_queries(own_scores, corners, self.inference)
            original = (image.shape[-2], image.shape[-1])
            detections.append(found | {"boxes": resize_boxes(found["boxes"], size, original)})
        return detections


def _keep_in(projected: dict[str, Tensor], name: str) -> Callable[..., None]:
    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        projected[name] = output

    return keep


def deformable_detr(
    backbone: PyramidBackbone,
    *,
    num_classes: int,
    classification_loss: ClassificationLoss | None = None,
    classifier: Callable[[int, int], Classifier] = LinearClassifier,
    classification_weight: float = 2.0,
    proposal_weight: float = 2.0,
    l1_weight: float = 5.0,
    giou_weight: float = 2.0,
    repeats: int = 1,
    finest_stride: int = 8,
    levels: int = 4,
    channels: int = 256,
    hidden: int = 1024,
    heads: int = 8,
    points: int = 4,
    encoder_layers: int = 6,
    decoder_layers: int = 6,
    dropout: float = 0.1,
    start: Start = "xavier",
    num_queries: int = 300,
    box_refine: bool = True,
    two_stage: bool = True,
    preprocess: ImageBatcher | None = None,
    inference: Inference | None = None,
) -> DeformableDETR:
    """Deformable DETR, by default with refined boxes and two stages, as published.

    Args:
        backbone: its body is used, and its pyramid put away: the transformer mixes the levels itself.
        num_classes: C, foreground classes.
        classification_loss: one for queries; None = sigmoid focal loss. Its ``bias_prior`` is the initial bias.
        classifier: (in_features, num_logits) -> classifier, one per decoder layer.
        classification_weight, proposal_weight, l1_weight, giou_weight, repeats: see
            :class:`~longtail.models.query_losses.QueryCriterion`.
        finest_stride: maps of the backbone with smaller strides, in pixels, are not used.
        levels: maps the transformer sees; those the backbone lacks are made by convolutions of stride 2.
        channels: d, width of the transformer, at least 64, a multiple of 32 and of ``heads``.
        hidden: width of its feed-forward layers.
        heads, points: of the deformable attention.
        encoder_layers, decoder_layers, dropout: of the transformer.
        start: its initial matrices: xavier-uniform as in the released code, or ``"normal"``, N(0, 0.02), transformers'.
        num_queries: at most so many objects are found.
        box_refine: whether every layer moves the boxes of the one before it.
        two_stage: whether the queries are the best places of the encoder instead of learned.
        preprocess: None = the backbone's normalisation, short side 800, long side at most 1333 pixels.
        inference: None = LVIS's settings, the 300 best pairs without a threshold or non-maximum suppression.

    Raises:
        UsageError: transformers is not installed, sizes that do not fit, a loss that is not for queries, or
            a classifier that does not go with it.
    """
    # a group norm of 32 groups has nothing to normalise on a map of one place if each has one channel
    if channels < 64 or channels % 32 or channels % heads:
        raise UsageError(f"set channels to 64 or more, a multiple of 32 and of heads ({heads}); got {channels}")
    loss = FocalLoss(num_classes) if classification_loss is None else classification_loss
    criterion = QueryCriterion(
        num_classes,
        loss,
        classification_weight=classification_weight,
        proposal_weight=proposal_weight,
        l1_weight=l1_weight,
        giou_weight=giou_weight,
        repeats=repeats,
    )
    maps, map_channels = without_pyramid(backbone, finest_stride=finest_stride)
    transformer = query_transformer(
        map_channels,
        levels=levels,
        channels=channels,
        hidden=hidden,
        heads=heads,
        points=points,
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        dropout=dropout,
        start=start,
        num_queries=num_queries,
        box_refine=box_refine,
        two_stage=two_stage,
    )
    transformer.backbone = MaskedMaps(maps)
    layers = [classifier(channels, loss.num_logits) for _ in range(decoder_layers)]
    for layer in layers:
        if layer.name not in loss.classifiers or layer.level != "embedded":
            raise UsageError(
                f"the classifier {layer.name!r} does not work on queries with {type(loss).__name__}; this loss works "
                f"with: {', '.join(sorted(loss.classifiers))}"
            )
        if loss.bias_prior is not None:
            layer.initialise(loss.bias_prior)
    if two_stage:
        # as many channels as the others have, so that the weights fit transformers' own class
        proposal = ProposalClassifier(channels, loss.num_logits)
        proposal.initialise(prior_logit(OBJECTNESS_PRIOR))
        layers.append(proposal)
    class_embed = nn.ModuleList(layers)
    box_heads = [BoxHead(channels) for _ in layers]
    bbox_embed = nn.ModuleList(box_heads)
    if not two_stage:
        # boxes start small around the learned points; refinement then moves what the first layer has said
        for head in box_heads[:1] if box_refine else box_heads:
            head.start_small()
    # plain lists: the transformer uses the heads, but they are not its own
    if box_refine or two_stage:
        transformer.decoder.bbox_embed = list(bbox_embed)
    if two_stage:
        transformer.decoder.class_embed = list(class_embed)
    if preprocess is None:
        preprocess = ImageBatcher(getattr(maps, "mean", IMAGENET_MEAN), getattr(maps, "std", IMAGENET_STD))
    return DeformableDETR(
        preprocess=preprocess,
        backbone=maps,
        transformer=transformer,
        class_embed=class_embed,
        bbox_embed=bbox_embed,
        criterion=criterion,
        inference=Inference(score_threshold=0.0, nms_threshold=1.0) if inference is None else inference,
        num_queries=num_queries,
    )
