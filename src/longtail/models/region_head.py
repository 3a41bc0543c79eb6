"""The region head: one stage of matching, pooling, replay, classification and box regression."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import MultiScaleRoIAlign

from longtail.losses.auxiliary import Record
from longtail.losses.base import BoxLoss, ClassificationLoss
from longtail.losses.cells import full_precision
from longtail.losses.state import shared_normalisers
from longtail.models.calibrated import SAMPLED_CLASS, CalibratedHead, sample_bi_level
from longtail.models.classifiers import Classifier
from longtail.models.matching import Matcher
from longtail.models.proposals import Maps, box_loss_between
from longtail.models.regions import Regions
from longtail.models.replay_losses import (
    BoxRows,
    all_rows,
    box_rows,
    classification_losses,
    joining_box_rows,
    region_normalisers,
)
from longtail.replay.base import FeatureReplay, ReplayRows, number_parts
from longtail.sampling.regions import RegionSampler
from longtail.schema.errors import UsageError

Size = tuple[int, int]


@dataclass(frozen=True)
class StageResult:
    """What one stage leaves: its ``losses``, its ``regions``, and of these regions, without replayed rows, the
    ``features`` (N, D) at level ``"embedded"`` and the ``logits`` (N, num_logits)."""

    losses: dict[str, Tensor]
    regions: Regions
    features: Tensor
    logits: Tensor


class BoxStage(nn.Module):
    """Classifies regions and moves their boxes; one stage of a cascade, or the only one.

    Losses: ``loss_classifier`` and ``loss_box_reg``, both means over this step's regions and the replayed rows that
    join them; ``loss_replay`` and ``loss_replay_box``, only in steps that have replayed rows with a mean of their own.
    With several processes every sum is divided by this process's share of the rows of all of them.

    Args:
        num_classes: C.
        pool: RoIAlign, (N, K, h, w).
        head: pooled features -> (N, D).
        classifier: (N, D) -> (N, ``classification_loss.num_logits``).
        regressor: (N, D) -> (N, 4 C), or (N, 4) if ``class_agnostic``.
        classification_loss, box_loss: seams 6 and 7.
        matcher, sampler: candidates with objects, and which of them are learnt from (seam 2).
        replay: parts that add rows (seam 5).
        class_agnostic: one box per region instead of one per class.
        box_weights: factors of the encoded dx, dy, dw, dh.
        classification_weight, box_weight: factors of the losses.
        add_objects: whether the objects' own boxes are among the candidates.

    Raises:
        UsageError: the classifier cannot be used with the loss or the replay, or the loss not on regions.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        pool: MultiScaleRoIAlign,
        head: nn.Module,
        classifier: Classifier,
        regressor: nn.Linear,
        classification_loss: ClassificationLoss,
        box_loss: BoxLoss,
        matcher: Matcher,
        sampler: RegionSampler,
        replay: Iterable[FeatureReplay] = (),
        class_agnostic: bool = False,
        box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0),
        classification_weight: float = 1.0,
        box_weight: float = 1.0,
        add_objects: bool = True,
    ) -> None:
        super().__init__()
        check_region_loss(classification_loss, classifier, num_classes)
        self.num_classes = num_classes
        self.pool = pool
        self.head = head
        self.classifier = classifier
        self.regressor = regressor
        self.classification_loss = classification_loss
        self.box_loss = box_loss
        self.matcher = matcher
        self.sampler = sampler
        self.replay = nn.ModuleList(replay)
        number_parts(self.replay)
        if classifier.level == "pooled" and any(part.level == "embedded" for part in self.replay):
            raise UsageError(
                f"the classifier {classifier.name!r} takes pooled features, a replay part adds embedded ones; use a "
                "replay part of level 'pooled' or a classifier of level 'embedded'"
            )
        self.class_agnostic = class_agnostic
        self.box_coder = BoxCoder(box_weights)
        self.classification_weight = classification_weight
        self.box_weight = box_weight
        self.add_objects = add_objects
        self.calibrated: CalibratedHead | None = None  # scores the tail, and is then all that trains
        self.adjustment: nn.Module | None = None  # of the logits, when detecting; see longtail.models.adjustment

    def predict(self, maps: Maps, size: Size, proposals: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Scores (N, C + 1) and box deltas (N, 4 C) or (N, 4) of the proposals of all images, in their order.

        Args:
            maps: feature maps.
            size: (height, width) of the padded batch in pixels.
            proposals: (n, 4) per image, corners in pixels of the batch.
        """
        pooled = self.pool(maps, list(proposals), [size])
        features = self.head(pooled)
        own = self._classified(pooled, features)
        logits = full_precision(self.classifier.detection_logits(own, self.num_classes))
        if self.adjustment is not None:
            logits = self.adjustment(logits)
        scores = self.classification_loss.scores(logits)
        if self.calibrated is not None:
            own = self.classification_loss.scores(self.calibrated.detection_logits(pooled))
            scores = self.calibrated.combine(scores, own)
        return scores, full_precision(self.regressor(features))

    def losses(
        self,
        maps: Maps,
        size: Size,
        proposals: Sequence[Tensor],
        targets: Sequence[Mapping[str, Any]],
        *,
        generators: Sequence[torch.Generator | None] | None = None,
        step_generator: torch.Generator | None = None,
        record: Record | None = None,
        update_state: bool | None = None,
    ) -> StageResult:
        """One training step of this stage.

        Args:
            maps, size, proposals: as for :meth:`predict`.
            targets: per image ``boxes`` (G, 4) in pixels of the batch and ``labels`` (G,) in 0..C-1.
            generators: source of the region sampler's draws, one per image.
            step_generator: source of a stochastic loss's draws.
            record: gets ``"region_features"``, ``"region_logits"`` and ``"region_labels"`` of this step's regions, and
                ``"shared_region_logits"`` of given features.
            update_state: whether loss and replay may change their state; None follows ``self.training``.
        """
        update = self.training if update_state is None else update_state
        if self.calibrated is not None:
            return self._calibration(
                self.calibrated, maps, size, proposals, targets, generators, step_generator, update
            )
        regions = self.sample(maps, size, proposals, targets, generators)
        pooled = self.pool(maps, regions.proposals, [size])
        count = pooled.shape[0]

        def pool(boxes: Sequence[Tensor]) -> Tensor:
            features: Tensor = self.pool(maps, list(boxes), [size])
            return features

        replayed = self._replay("pooled", regions, pooled, targets, pool, update)
        pooled = _append(pooled, [rows.features for rows in replayed.values()])
        features = self.head(pooled)
        at_end = self._replay("embedded", regions, features[:count], targets, pool, update)
        features = _append(features, [rows.features for rows in at_end.values()])
        replayed |= at_end

        logits = self._logits(pooled, features)
        if self.replay:
            rows = all_rows(regions.rows(features[:count]), list(replayed.values()), features)
            for part in self.replay:
                part.after_logits(rows, logits, update)  # type: ignore[operator]
        labels = torch.cat(regions.labels)
        box, separate_box = self._box_rows(regions, replayed)
        normalisers = region_normalisers(
            self.classification_loss, labels, replayed, box, separate_box, parts=len(self.replay)
        )
        if update:
            self.classifier.observe(self._classified(pooled, features)[:count].detach(), labels, self.num_classes)
        classification, separate = classification_losses(
            self.classification_loss,
            logits,
            labels,
            replayed,
            normalisers,
            update_state=update,
            generator=step_generator,
        )
        losses = {"loss_classifier": classification * self.classification_weight}

        counts = [len(own) for own in regions.labels]
        own_features, *extra = torch.split(features, [count, *(rows.labels.shape[0] for rows in replayed.values())])
        by_part = dict(zip(replayed, extra, strict=True))
        positive = regions.positives(torch.split(own_features, counts))
        joining = [by_part[part] for part, rows in replayed.items() if rows.trains_box and rows.joins_normaliser]
        losses["loss_box_reg"] = self.box_weight * self._box_loss(
            torch.cat([*positive, *joining]), box, normalisers.box, update
        )
        if separate_box:
            terms = [
                # not every process has these rows, so they change no state
                replayed[part].loss_weight * self._box_loss(by_part[part], rows, normalisers.separate_box[part], False)
                for part, rows in separate_box.items()
            ]
            losses["loss_replay_box"] = torch.stack(terms).sum() * self.box_weight
        if separate is not None:
            losses["loss_replay"] = separate * self.classification_weight
        if record is not None:
            record.keep("region_features", features[:count])
            record.keep("region_logits", logits[:count])
            record.keep("region_labels", labels)
            if "region_features" in record.given:
                record.keep("shared_region_logits", full_precision(self.classifier(record.given["region_features"])))
        return StageResult(losses, regions, features[:count], logits[:count])

    def _calibration(
        self,
        calibrated: CalibratedHead,
        maps: Maps,
        size: Size,
        proposals: Sequence[Tensor],
        targets: Sequence[Mapping[str, Any]],
        generators: Sequence[torch.Generator | None] | None,
        step_generator: torch.Generator | None,
        update: bool,
    ) -> StageResult:
        """``loss_calibrated`` alone: of regions sampled by class where the targets say for which class they were
        drawn, otherwise of those of the region sampler."""
        if SAMPLED_CLASS in targets[0]:
            regions = sample_bi_level(
                self.matcher, proposals, targets, step_generator, self.num_classes, self.add_objects
            )
        else:
            regions = self.sample(maps, size, proposals, targets, generators)
        pooled = self.pool(maps, regions.proposals, [size])
        features = calibrated.head(pooled)
        logits = full_precision(calibrated.classifier(features))
        labels = torch.cat(regions.labels)
        count = self.classification_loss.normaliser_count(labels, None)
        (normaliser,) = shared_normalisers([count], device=labels.device)
        loss = self.classification_loss(
            logits, labels, normaliser=normaliser, update_state=update, generator=step_generator
        )
        return StageResult({"loss_calibrated": loss * self.classification_weight}, regions, features, logits)

    @torch.no_grad()
    def sample(
        self,
        maps: Maps,
        size: Size,
        proposals: Sequence[Tensor],
        targets: Sequence[Mapping[str, Any]],
        generators: Sequence[torch.Generator | None] | None = None,
    ) -> Regions:
        """Match the proposals, and the objects themselves, with the objects and choose what is learnt from."""
        regions = Regions([], [], [], [], [])
        for image, target in enumerate(targets):
            gt_labels = target["labels"]
            gt_boxes = target["boxes"].to(proposals[image].dtype)
            candidates = torch.cat((proposals[image], gt_boxes)) if self.add_objects else proposals[image]
            iou, matched = self.matcher(gt_boxes, candidates)
            loss_of = None
            if self.sampler.needs_loss:
                loss_of = _CandidateLoss(self, maps, size, image, candidates, matched, gt_labels)
            generator = None if generators is None else generators[image]
            positive, negative = self.sampler(iou, matched, gt_labels, generator, loss_of)
            regions.add(candidates, len(proposals[image]), matched, target, positive, negative, self.num_classes)
        return regions

    def _logits(self, pooled: Tensor, features: Tensor) -> Tensor:
        return full_precision(self.classifier(self._classified(pooled, features)))

    def _classified(self, pooled: Tensor, features: Tensor) -> Tensor:
        """What the classifier takes of the two."""
        return pooled if self.classifier.level == "pooled" else features

    def _replay(
        self,
        level: str,
        regions: Regions,
        features: Tensor,
        targets: Sequence[Mapping[str, Any]],
        pool: Any,
        update_state: bool,
    ) -> dict[int, ReplayRows]:
        """Rows by part, of the parts of one level; each part is shown this step's own regions only."""
        parts = {index: part for index, part in enumerate(self.replay) if part.level == level}
        if not parts:
            return {}
        rows = regions.rows(features)
        added = {i: part.step(rows, targets, pool, update_state) for i, part in parts.items()}  # type: ignore[operator]
        return {index: extra for index, extra in added.items() if extra is not None}

    def _box_rows(self, regions: Regions, replayed: Mapping[int, ReplayRows]) -> tuple[BoxRows, dict[int, BoxRows]]:
        """Rows of the box regressor: this step's positives with the replayed rows that join them, averaged over all of
        this step's regions; and by replay part, those with a mean of their own."""
        positives = BoxRows(
            labels=torch.cat(regions.positives(regions.labels)),
            proposals=torch.cat(regions.positives(regions.proposals)),
            gt_boxes=torch.cat(regions.gt_boxes),
            weight=None,
            count=float(sum(len(labels) for labels in regions.labels)),
        )
        training = {part: rows for part, rows in replayed.items() if rows.trains_box}
        joining = [rows for rows in training.values() if rows.joins_normaliser]
        separate = {
            part: box_rows(rows, self.num_classes) for part, rows in training.items() if not rows.joins_normaliser
        }
        return joining_box_rows(positives, joining, self.num_classes), separate

    def _box_loss(self, features: Tensor, rows: BoxRows, normaliser: Tensor | float, update_state: bool) -> Tensor:
        deltas = full_precision(self.regressor(features))
        if not self.class_agnostic:
            index = torch.arange(rows.labels.shape[0], device=deltas.device)
            deltas = deltas.reshape(-1, self.num_classes, 4)[index, rows.labels]
        return box_loss_between(
            self.box_loss,
            self.box_coder,
            deltas,
            rows.proposals,
            rows.gt_boxes,
            weight=rows.weight,
            normaliser=normaliser,
            update_state=update_state,
        )


class _CandidateLoss:
    """The classification loss of candidates of one image, without gradient, for hard example mining."""

    def __init__(
        self,
        stage: BoxStage,
        maps: Maps,
        size: Size,
        image: int,
        candidates: Tensor,
        matched: Tensor,
        gt_labels: Tensor,
    ) -> None:
        self.stage = stage
        self.maps = {name: feature[image : image + 1] for name, feature in maps.items()}
        self.size = size
        self.candidates = candidates
        self.labels = matched.new_full(matched.shape, stage.num_classes)
        if gt_labels.shape[0]:
            self.labels = torch.where(matched >= 0, gt_labels[matched.clamp(min=0)], stage.num_classes)

    @torch.no_grad()
    def __call__(self, indices: Tensor) -> Tensor:
        stage = self.stage
        pooled = stage.pool(self.maps, [self.candidates[indices]], [self.size])
        logits = stage._logits(pooled, stage.head(pooled))
        return stage.classification_loss.per_sample(logits, self.labels[indices])


def check_region_loss(loss: ClassificationLoss, classifier: Classifier, num_classes: int) -> None:
    """Refuse combinations that would train without error and mean nothing."""
    loss_name = type(loss).__name__
    if "roi" not in loss.heads:
        raise UsageError(f"{loss_name} is a loss for {', '.join(sorted(loss.heads))} heads, not for regions ('roi')")
    if classifier.name not in loss.classifiers:
        allowed = ", ".join(sorted(loss.classifiers))
        raise UsageError(f"{loss_name} cannot be used with the classifier {classifier.name!r}; it can with: {allowed}")
    if loss.num_classes != num_classes:
        raise UsageError(f"{loss_name} was built for {loss.num_classes} classes, the detector has {num_classes}")


def _append(features: Tensor, extra: Sequence[Tensor]) -> Tensor:
    return torch.cat([features, *(values.to(features.dtype) for values in extra)]) if extra else features
