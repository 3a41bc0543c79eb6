"""Assembled detectors: seeds, state, precision, and the edges of a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from longtail.losses.auxiliary import Record
from longtail.losses.base import ClassificationLoss
from longtail.losses.boxes import GIoULoss
from longtail.losses.softmax import SoftmaxCrossEntropy
from longtail.models.classifiers import CosineClassifier
from longtail.models.postprocess import Inference
from longtail.models.preprocess import ImageBatcher
from longtail.models.proposals import TopN
from longtail.models.rcnn import RCNN, faster_rcnn, mask_rcnn, proposal_network
from longtail.models.tiny import tiny32
from longtail.replay.base import FeatureReplay, ReplayRows
from longtail.sampling.random_regions import RandomRegions

C = 4
LOSSES = {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}


def detector(*, masks: bool = True, **options: Any) -> RCNN:
    torch.manual_seed(0)
    backbone = tiny32(width=8, fpn_channels=16)
    build: Any = faster_rcnn
    if masks:
        build = mask_rcnn
        options = {"mask_layers": (8,), "mask_hidden": 8, **options}
    parts: dict[str, Any] = {
        "num_classes": C,
        "embedding_size": 16,
        "region_sampler": RandomRegions(16, 0.25),
        "proposal": proposal_network(
            backbone,
            sampler=RandomRegions(16, 0.5),
            top_in_losses=TopN(60, 40),
            top_in_detect=TopN(60, 40),
        ),
        "preprocess": ImageBatcher(backbone.mean, backbone.std, short_side=64, long_side=96),
        "inference": Inference(score_threshold=0.01, detections_per_image=20),
    }
    return build(backbone, **{**parts, **options})


def batch(objects: tuple[int, ...] = (2, 1), *, dtype: torch.dtype = torch.uint8) -> tuple[list[Tensor], list[Any]]:
    generator = torch.Generator().manual_seed(1)
    images, targets = [], []
    for index, count in enumerate(objects):
        height, width = 64 + 8 * index, 90 - 10 * index
        pixels = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        images.append(pixels if dtype == torch.uint8 else pixels.to(dtype) / 255)
        corner = torch.rand(count, 2, generator=generator) * 30
        boxes = torch.cat([corner, corner + 12 + torch.rand(count, 2, generator=generator) * 18], dim=1)
        masks = torch.zeros(count, height, width, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        labels = torch.arange(count) % C
        targets.append({"boxes": boxes, "labels": labels, "masks": masks, "draw_seed": 100 + index})
    return images, targets


def finite(losses: dict[str, Tensor]) -> bool:
    return all(bool(torch.isfinite(value)) for value in losses.values())


def test_losses_and_gradients_of_a_plain_step() -> None:
    model = detector()
    losses = model(*batch())
    assert set(losses) == LOSSES
    assert all(value > 0 for value in losses.values())
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_forward_chooses_by_the_targets_not_by_the_mode() -> None:
    model = detector()
    images, targets = batch()
    for mode in (True, False):
        model.train(mode)
        assert set(model(images, targets)) == LOSSES
        assert [set(found) for found in model(images)] == [{"boxes", "scores", "labels", "masks"}] * 2


def test_equal_seeds_give_equal_losses_whatever_the_global_generator() -> None:
    model = detector().eval()
    images, targets = batch()
    first = model.losses(images, targets)
    torch.manual_seed(1234)
    again = model.losses(images, targets)
    other = model.losses(images, [{**target, "draw_seed": 7} for target in targets])
    for name, value in first.items():
        assert torch.equal(again[name], value)
    assert any(other[name] != value for name, value in first.items())


def test_draws_do_not_depend_on_the_order_of_the_batch() -> None:
    model = detector().eval()
    images, targets = batch()
    first, turned = model.losses(images, targets), model.losses(images[::-1], targets[::-1])
    for name, value in first.items():
        torch.testing.assert_close(turned[name], value, rtol=1e-4, atol=1e-6)


def test_draws_do_not_depend_on_the_neighbour() -> None:
    model = detector().eval()
    images, targets = batch((2, 1, 3))
    kept = []
    for neighbour in (1, 2):
        record = Record({"region_labels", "region_features"})
        pictures = [images[0], images[neighbour]]
        # the same padded size, so that the first picture's maps are the same
        model.losses(pictures, [targets[0], targets[neighbour]], record=record)
        count = 16
        kept.append((record["region_labels"][:count], record["region_features"][:count]))
    assert torch.equal(kept[0][0], kept[1][0])
    torch.testing.assert_close(kept[0][1], kept[1][1])


class StochasticLoss(SoftmaxCrossEntropy):
    """Drops half of the rows where it is given a generator."""

    def row_losses(self, logits, labels, *, class_mask=None, update_state=False, generator=None):  # type: ignore[no-untyped-def]
        rows = super().row_losses(logits, labels, class_mask=class_mask)
        if generator is None:
            return rows
        return rows * (torch.rand(len(rows), generator=generator) < 0.5)


def test_stochastic_losses_draw_from_the_steps_seed() -> None:
    model = detector(classification_loss=StochasticLoss(C)).eval()
    images, targets = batch()
    first = model.losses(images, targets)["loss_classifier"]
    torch.manual_seed(99)
    assert torch.equal(model.losses(images, targets)["loss_classifier"], first)
    whole = detector().eval().losses(images, targets)["loss_classifier"]
    assert 0 < first < whole


def test_without_seeds_pytorchs_own_generator_decides() -> None:
    model = detector(classification_loss=StochasticLoss(C)).eval()
    images, targets = batch()
    for target in targets:
        del target["draw_seed"]
    torch.manual_seed(5)
    first = model.losses(images, targets)
    torch.manual_seed(5)
    again = model.losses(images, targets)
    assert all(torch.equal(again[name], value) for name, value in first.items())
    assert any(model.losses(images, targets)[name] != value for name, value in first.items())


class Bank(FeatureReplay):
    """Replays the last step's first row of every step."""

    stored: Tensor
    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("stored", torch.zeros(1, 16))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def step(self, rows, targets, pool, update_state):  # type: ignore[no-untyped-def]
        if not update_state:
            return None
        assert targets[0]["input_size"] == (64, 90)
        old = self.stored.clone()
        self.stored.copy_(rows.features[:1].detach())
        self.steps += 1
        one = torch.zeros(1, dtype=torch.int64)
        return ReplayRows(old, one, rows.proposals[:1], rows.gt_boxes[:1], one - 1, one - 1, weight=torch.ones(1))


class ScoreState(SoftmaxCrossEntropy):
    seen: Tensor

    def __init__(self) -> None:
        super().__init__(C)
        self.register_buffer("seen", torch.zeros(()))

    def row_losses(self, logits, labels, *, class_mask=None, update_state=False, generator=None):  # type: ignore[no-untyped-def]
        if update_state:
            self.seen += len(labels)
        return super().row_losses(logits, labels, class_mask=class_mask)


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("update", [None, True, False])
def test_state_is_left_alone_when_asked(mode: bool, update: bool | None) -> None:
    model = detector(classification_loss=ScoreState(), replay=[Bank()])
    model.train(mode)
    before = {name: value.clone() for name, value in model.state_dict().items() if "body" not in name}
    model.losses(*batch(), update_state=update)
    changed = {name for name, value in before.items() if not torch.equal(model.state_dict()[name], value)}
    expected = mode if update is None else update
    wanted = {"box.classification_loss.seen", "box.replay.0.stored", "box.replay.0.steps"}
    assert changed == (wanted if expected else set())


def test_masks_never_see_replayed_rows() -> None:
    """Eval mode, so that batch norms leave the two runs comparable."""
    plain, replayed = detector().eval(), detector(replay=[Bank()]).eval()
    images, targets = batch()
    first, second = plain.losses(images, targets), replayed.losses(images, targets, update_state=True)
    assert torch.equal(first["loss_mask"], second["loss_mask"])
    assert not torch.equal(first["loss_classifier"], second["loss_classifier"])


@pytest.mark.parametrize("masks", [False, True])
def test_batch_without_objects(masks: bool) -> None:
    model = detector(masks=masks)
    losses = model.losses(*batch((0, 0)))
    assert finite(losses)
    assert losses["loss_box_reg"] == losses["loss_rpn_box_reg"] == 0
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_no_proposals() -> None:
    model = detector()
    model.rpn.top_in_losses = model.rpn.top_in_detect = TopN(0, 0)
    assert finite(model.losses(*batch()))
    assert finite(model.losses(*batch((0, 0))))
    for found in model.detect(batch()[0]):
        assert found["boxes"].shape == (0, 4)
        assert found["masks"].shape == (0, 28, 28)


@pytest.mark.parametrize(
    "options",
    [
        {"class_agnostic_box": True, "class_agnostic_mask": True},
        {"box_loss": GIoULoss()},
        {"classifier": CosineClassifier, "mask_predictor": "normalised"},
    ],
)
def test_other_parts(options: dict[str, Any]) -> None:
    model = detector(**options)
    losses = model.losses(*batch())
    assert finite(losses)
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert len(model.detect(batch()[0])) == 2


def test_bfloat16_autocast() -> None:
    model = detector(replay=[Bank()])
    images, targets = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(2):
            losses = model.losses(images, targets)
        found = model.eval().detect(images)
    assert finite(losses)
    assert all(value.dtype == torch.float32 for value in losses.values())
    sum(losses.values()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    assert found[0]["boxes"].dtype == found[0]["scores"].dtype == torch.float32


def test_detections_are_in_the_frame_of_the_given_picture() -> None:
    """A picture twice as large is scaled to the same input and gives the same boxes, twice as large."""
    model = detector().eval()
    small = torch.rand(3, 32, 45)
    large = small.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    model.preprocess.short_side, model.preprocess.long_side = 64, 96
    for image in (small, large):
        found = model.detect([image])[0]
        limit = torch.tensor([image.shape[2], image.shape[1]] * 2)
        assert (found["boxes"] >= 0).all()
        assert (found["boxes"] <= limit + 1e-3).all()
        assert (found["boxes"].max(dim=0).values > limit * 0.6).all()
        assert found["masks"].shape == (len(found["boxes"]), 28, 28)
        assert (found["scores"][:-1] >= found["scores"][1:]).all()
        assert found["labels"].max() < C


def test_resizing_in_losses_is_resizing_in_the_loader() -> None:
    model = detector().eval()
    images, targets = batch((2,), dtype=torch.float32)
    model.preprocess.short_side, model.preprocess.long_side = 96, 200
    scaled, moved = model.preprocess(images, targets, resize=True)
    mean, std = model.preprocess.mean, model.preprocess.std
    height, width = scaled.image_sizes[0]
    by_hand = model.losses([scaled.tensors[0, :, :height, :width] * std + mean], moved)
    model.preprocess.resize_in_losses = True
    inside = model.losses(images, targets)
    assert height == 96
    for name, value in inside.items():
        torch.testing.assert_close(by_hand[name], value, rtol=1e-4, atol=1e-5)


def test_record_of_a_step() -> None:
    record = Record({"maps", "region_labels"})
    detector().losses(*batch(), record=record)
    assert list(record["maps"]) == ["0", "1", "2"]
    assert len(record["region_labels"]) == 32


class PriorLoss(SoftmaxCrossEntropy):
    bias_prior = -3.0


def test_classifier_starts_from_the_losss_prior() -> None:
    model = detector(classification_loss=PriorLoss(C))
    assert (model.box.classifier.bias == -3).all()
    loss: ClassificationLoss = SoftmaxCrossEntropy(C)
    assert not (detector(classification_loss=loss).box.classifier.bias == -3).any()


def test_defaults_fit_the_backbone() -> None:
    backbone = tiny32(width=8, fpn_channels=16)
    model = faster_rcnn(backbone, num_classes=C, embedding_size=16)
    assert model.rpn.anchor_generator.sizes == ((32,), (64,), (128,))
    torch.testing.assert_close(model.preprocess.mean.flatten(), torch.tensor([0.5, 0.5, 0.5]))
    assert model.box.pool.featmap_names == ["0", "1", "2"]
    assert isinstance(model.box.regressor, nn.Linear)
    assert model.box.regressor.out_features == 4 * C
    with pytest.raises(ValueError, match="'ordinary' or 'normalised'"):
        mask_rcnn(backbone, num_classes=C, mask_predictor="other")  # type: ignore[arg-type]
