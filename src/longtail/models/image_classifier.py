"""Classifiers of whole pictures, with the classifiers, losses and feature replay of the detectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtail.losses.auxiliary import Record
from longtail.losses.base import ClassificationLoss
from longtail.losses.cells import full_precision
from longtail.losses.softmax import SoftmaxCrossEntropy
from longtail.models.base import ClassHead, HeadRecord, TrainableModel
from longtail.models.classifiers import Classifier, LinearClassifier
from longtail.models.preprocess import IMAGENET_MEAN, IMAGENET_STD, step_generator
from longtail.models.replay_losses import BoxRows, all_rows, classification_losses, region_normalisers
from longtail.replay.base import FeatureReplay, RegionRows, ReplayRows, number_parts
from longtail.schema.errors import UsageError


class PictureHead(nn.Module):
    """Turns features of pictures into class logits.

    No picture is background: what the loss has besides the class logits is held at values that rule background out
    (:attr:`~longtail.losses.ClassificationLoss.no_background`), so that the classifier has C outputs and the loss is
    that of the C classes alone.

    Args:
        num_classes: C.
        feature_size: D.
        classification_loss: seam 6; None = softmax cross-entropy.
        classifier: (in_features, num_logits) -> classifier (seam 4).
        replay: parts that add rows (seam 5), of level ``"embedded"``.

    Raises:
        UsageError: a loss, classifier or replay part that does not go with whole pictures, with what does.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        feature_size: int,
        classification_loss: ClassificationLoss | None = None,
        classifier: Callable[[int, int], Classifier] = LinearClassifier,
        replay: Iterable[FeatureReplay] = (),
    ) -> None:
        super().__init__()
        loss = SoftmaxCrossEntropy(num_classes) if classification_loss is None else classification_loss
        if loss.no_background is None:
            raise UsageError(
                f"{type(loss).__name__} needs rows of background, which pictures are not; use a loss with one logit "
                "per class, with one for the background besides, or with objectness, such as softmax, sigmoid, seesaw "
                "or ldam"
            )
        layer = classifier(feature_size, num_classes)
        if layer.level != "embedded":
            raise UsageError(f"the classifier {layer.name!r} takes pooled regions; use one of level 'embedded'")
        if layer.name not in loss.classifiers:
            raise UsageError(
                f"{type(loss).__name__} does not work with the classifier {layer.name!r}; it works with: "
                f"{', '.join(sorted(loss.classifiers))}"
            )
        if loss.bias_prior is not None:
            layer.initialise(loss.bias_prior)
        self.num_classes = num_classes
        self.classification_loss = loss
        self.classifier = layer
        self.replay = nn.ModuleList(replay)
        number_parts(self.replay)
        if any(part.level != "embedded" for part in self.replay):
            raise UsageError("pictures have no pooled regions; use replay parts of level 'embedded'")
        self.adjustment: nn.Module | None = None
        self.extra: Tensor
        self.register_buffer("extra", torch.tensor(loss.no_background), persistent=False)

    def padded(self, logits: Tensor) -> Tensor:
        """(N, C) -> (N, ``num_logits``), without background."""
        logits = full_precision(logits)
        return torch.cat([logits, self.extra.to(logits.dtype).expand(logits.shape[0], -1)], dim=1)

    def losses(
        self,
        features: Tensor,
        labels: Tensor,
        frames: Tensor,
        *,
        targets: Sequence[Mapping[str, Any]],
        generator: torch.Generator | None,
        record: Record | None,
        update_state: bool,
    ) -> dict[str, Tensor]:
        """``loss_classifier``, and ``loss_replay`` if replayed rows have a mean of their own.

        Args:
            features: (N, D).
            labels: (N,) in 0..C-1.
            frames: (N, 4), the pictures' frames, which stand for the boxes of replay parts.
            targets, generator, record, update_state: as for :meth:`ImageClassifier.losses`.
        """
        index = torch.arange(labels.shape[0], device=labels.device)
        rows = RegionRows(features, labels, frames, frames, torch.zeros_like(index), index)

        def pool(boxes: Sequence[Tensor]) -> Tensor:
            raise UsageError("pictures have no pooled regions; use replay parts of level 'embedded'")

        steps = {i: part.step(rows, targets, pool, update_state) for i, part in enumerate(self.replay)}  # type: ignore[operator]
        replayed: dict[int, ReplayRows] = {i: extra for i, extra in steps.items() if extra is not None}
        together = torch.cat([features, *(extra.features for extra in replayed.values())])
        logits = self.padded(self.classifier(together))
        if self.replay:
            everything = all_rows(rows, list(replayed.values()), together)
            for part in self.replay:
                part.after_logits(everything, logits, update_state)  # type: ignore[operator]
        if update_state:
            self.classifier.observe(features.detach(), labels, self.num_classes)
        no_boxes = BoxRows(labels[:0], frames[:0], frames[:0], None, 1.0)
        normalisers = region_normalisers(
            self.classification_loss, labels, replayed, no_boxes, {}, parts=len(self.replay)
        )
        mean, separate = classification_losses(
            self.classification_loss,
            logits,
            labels,
            replayed,
            normalisers,
            update_state=update_state,
            generator=generator,
        )
        if record is not None:
            record.keep("region_features", features)
            record.keep("region_logits", logits[: labels.shape[0]])
            record.keep("region_labels", labels)
        return {"loss_classifier": mean} if separate is None else {"loss_classifier": mean, "loss_replay": separate}

    def scores(self, features: Tensor) -> Tensor:
        """(N, C) scores of the classes."""
        logits = self.padded(self.classifier.detection_logits(features, self.num_classes))
        if self.adjustment is not None:
            logits = self.adjustment(logits)
        return self.classification_loss.scores(logits)[:, : self.num_classes]


class ImageClassifier(TrainableModel):
    """Says which class a picture belongs to.

    Args:
        backbone: (B, 3, H, W), normalised -> (B, D).
        head: (B, D) -> classes.
        size: (height, width) in pixels that pictures have in the network; others are resized.
        mean, std: input normalisation per channel (RGB), for values in 0..1.
        classification_weight: factor of the loss.
        channels_last: memory layout.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: PictureHead,
        *,
        size: tuple[int, int],
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        classification_weight: float = 1.0,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.size = size
        self.classification_weight = classification_weight
        self.channels_last = channels_last
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def class_heads(self) -> list[ClassHead]:
        """The head."""
        return [self.head]

    def head_records(self) -> list[HeadRecord]:
        """The head's; a picture is a row."""
        return [HeadRecord("region_logits", "region_labels")]

    def losses(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Mapping[str, Any]],
        *,
        record: Record | None = None,
        update_state: bool | None = None,
    ) -> dict[str, Tensor]:
        """Losses of one step, see :meth:`PictureHead.losses`.

        Args:
            images: (3, H, W) each, uint8 or floating point in 0..1, RGB.
            targets: per picture ``labels``, exactly one, in 0..C-1; and ``draw_seed``, the source of draws.
            record: gets ``"region_features"`` (B, D), ``"region_logits"`` and ``"region_labels"`` (B,).
            update_state: whether loss and replay may change their state; None follows ``self.training``.

        Raises:
            UsageError: a picture with another number of labels.
        """
        update = self.training if update_state is None else update_state
        if any(len(target["labels"]) != 1 for target in targets):
            raise UsageError(
                "a picture that is classified has exactly one label; give a folder of pictures by class, or "
                "annotations with one object per picture"
            )
        features = self.backbone(self.batch(images))
        labels = torch.cat([target["labels"] for target in targets])
        frame = features.new_tensor([0.0, 0.0, self.size[1], self.size[0]])
        losses = self.head.losses(
            features,
            labels,
            frame.expand(labels.shape[0], 4),
            targets=targets,
            generator=step_generator(targets, features.device),
            record=record,
            update_state=update,
        )
        return {name: value * self.classification_weight for name, value in losses.items()}

    @torch.no_grad()
    def classify(self, images: Sequence[Tensor]) -> Tensor:
        """Scores (B, C) in 0..1 of pictures (3, H, W) of any size."""
        return self.head.scores(self.backbone(self.batch(images)))

    def predictions(self, images: Sequence[Tensor]) -> Tensor:
        """:meth:`classify`."""
        return self.classify(images)

    def batch(self, images: Sequence[Tensor]) -> Tensor:
        """(B, 3, height, width), normalised."""
        rows = []
        for image in images:
            values = image if image.is_floating_point() else image.to(self.mean.dtype) / 255
            if values.shape[-2:] != self.size:
                values = F.interpolate(values[None], self.size, mode="bilinear", antialias=True, align_corners=False)[0]
            rows.append(values)
        stacked = (torch.stack(rows) - self.mean) / self.std
        return stacked.contiguous(memory_format=torch.channels_last) if self.channels_last else stacked
