"""The region head: plain losses from their definition, then everything a replay part may ask for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from longtail.losses.auxiliary import Record
from longtail.losses.base import BoxLoss, ClassificationLoss
from longtail.losses.boxes import GIoULoss, L1Loss, SmoothL1Loss
from longtail.losses.softmax import SoftmaxCrossEntropy
from longtail.models.classifiers import Classifier, CosineClassifier, LinearClassifier
from longtail.models.matching import Matcher
from longtail.models.region_head import BoxStage, StageResult
from longtail.replay.base import FeatureReplay, RegionRows, ReplayRows
from longtail.sampling.random_regions import RandomRegions
from longtail.sampling.regions import RegionSampler
from longtail.schema.errors import UsageError

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


@pytest.mark.parametrize("options", [{}, {"class_agnostic": True}, {"box_loss": GIoULoss()}])
def test_plain_losses_follow_their_definition(options: dict[str, Any]) -> None:
    head = stage(**options, classification_weight=2.0, box_weight=3.0)
    result = run(head)
    labels = torch.cat(result.regions.labels)
    assert len(labels) == 32
    assert sum(result.regions.num_positive) >= 8
    assert set(result.losses) == {"loss_classifier", "loss_box_reg"}
    torch.testing.assert_close(result.losses["loss_classifier"], 2 * F.cross_entropy(result.logits, labels))
    torch.testing.assert_close(result.losses["loss_box_reg"], 3 * plain_box_rows(head, result).sum() / 32)


def test_regions_are_positives_then_negatives() -> None:
    result = run(stage())
    _, _, targets = inputs()
    for image, target in enumerate(targets):
        count = result.regions.num_positive[image]
        labels = result.regions.labels[image]
        assert (labels[:count] < C).all()
        assert (labels[count:] == C).all()
        assert torch.equal(labels[:count], target["labels"][result.regions.gt_index[image]])
        assert torch.equal(result.regions.gt_boxes[image], target["boxes"][result.regions.gt_index[image]])


def test_objects_are_candidates_unless_told_otherwise() -> None:
    maps, proposals, targets = inputs()
    far = [boxes[-12:] for boxes in proposals]
    with_objects = stage().losses(maps, SIZE, far, targets).regions
    without = stage(add_objects=False).losses(maps, SIZE, far, targets).regions
    assert [int(count) for count in with_objects.num_positive] == [2, 3]
    assert sum(without.num_positive) < 5


def test_rows_shown_to_parts() -> None:
    part = Scripted()
    result = run(stage(part))
    rows = part.shown[0]
    regions = result.regions
    assert torch.equal(rows.features, result.features)
    assert torch.equal(rows.labels, torch.cat(regions.labels))
    assert torch.equal(rows.proposals, torch.cat(regions.proposals))
    start = 0
    for image, count in enumerate(regions.num_positive):
        size = len(regions.labels[image])
        assert (rows.image_index[start : start + size] == image).all()
        assert torch.equal(rows.gt_index[start : start + count], regions.gt_index[image])
        assert torch.equal(rows.gt_boxes[start : start + count], regions.gt_boxes[image])
        assert (rows.gt_index[start + count : start + size] == -1).all()
        start += size
    assert part.pooled[0].shape == (5, CHANNELS, 3, 3)


def test_parts_that_add_nothing_change_no_bit() -> None:
    plain, silent = stage(), stage(Scripted(), ScriptedPooled())
    first, second = run(plain), run(silent)
    for name, value in first.losses.items():
        assert torch.equal(second.losses[name], value)
    sum(first.losses.values()).backward()
    sum(second.losses.values()).backward()
    for mine, other in zip(plain.parameters(), silent.parameters(), strict=True):
        assert torch.equal(mine.grad, other.grad)


def test_joining_rows_enter_both_means() -> None:
    """RIO and LOCE: sums over this step's rows and the replayed ones, divided by their number."""
    part = Scripted(lambda rows: rows_like(rows, [1, 3, 3]))
    head = stage(part)
    result = run(head)
    stored = rows_like(part.shown[0], [1, 3, 3])
    logits = torch.cat([result.logits, head.classifier(stored.features)])
    labels = torch.cat([*result.regions.labels, stored.labels])
    torch.testing.assert_close(result.losses["loss_classifier"], F.cross_entropy(logits, labels))
    wanted = plain_box_rows(head, result).sum()
    for k, label in enumerate(stored.labels.tolist()):
        deltas = head.regressor(stored.features[k])[4 * label : 4 * label + 4]
        target = head.box_coder.encode_single(stored.gt_boxes[k][None], stored.proposals[k][None])[0]
        wanted = wanted + (deltas - target).abs().sum()
    torch.testing.assert_close(result.losses["loss_box_reg"], wanted / (32 + 3))
    assert set(result.losses) == {"loss_classifier", "loss_box_reg"}


def test_replayed_rows_train_the_box_of_their_own_class_only() -> None:
    part = Scripted(lambda rows: rows_like(rows, [4]))
    head = stage(part)
    run(head, objects=(0, 0)).losses["loss_box_reg"].backward()
    per_class = head.regressor.weight.grad.reshape(C, 4, D).abs().sum(dim=(1, 2))
    assert per_class[4] > 0
    assert (per_class[:4] == 0).all()


def test_separate_rows_have_a_mean_of_their_own() -> None:
    """FASA: the real loss untouched, plus loss_weight times the mean over the virtual rows."""
    labels = [0, 2]
    part = Scripted(lambda rows: rows_like(rows, labels, **APART, trains_box=False, loss_weight=0.1))
    head = stage(part, classification_weight=2.5)
    result, plain = run(head), run(stage(classification_weight=2.5))
    assert torch.equal(result.losses["loss_box_reg"], plain.losses["loss_box_reg"])
    torch.testing.assert_close(result.losses["loss_classifier"], plain.losses["loss_classifier"])
    virtual = rows_like(part.shown[0], labels)
    wanted = 2.5 * 0.1 * F.cross_entropy(head.classifier(virtual.features), virtual.labels)
    torch.testing.assert_close(result.losses["loss_replay"], wanted)
    assert "loss_replay_box" not in result.losses


def test_separate_rows_may_train_boxes_too() -> None:
    part = Scripted(lambda rows: rows_like(rows, [0, 2], **APART, loss_weight=0.5))
    head = stage(part, class_agnostic=True, box_weight=3.0)
    result = run(head)
    stored = rows_like(part.shown[0], [0, 2])
    target = head.box_coder.encode_single(stored.gt_boxes, stored.proposals)
    wanted = 3.0 * 0.5 * (head.regressor(stored.features) - target).abs().sum() / 2
    torch.testing.assert_close(result.losses["loss_replay_box"], wanted)
    assert torch.equal(
        result.losses["loss_box_reg"], run(stage(class_agnostic=True, box_weight=3.0)).losses["loss_box_reg"]
    )


def test_rows_of_weight_zero_count_nowhere() -> None:
    part = Scripted(lambda rows: rows_like(rows, [0, 2], weight=torch.zeros(2)))
    result, plain = run(stage(part)), run(stage())
    for name, value in plain.losses.items():
        torch.testing.assert_close(result.losses[name], value)


def test_row_weights_scale_rows() -> None:
    part = Scripted(lambda rows: rows_like(rows, [0, 2], weight=torch.tensor([0.5, 3.0])))
    head = stage(part)
    result = run(head)
    stored = rows_like(part.shown[0], [0, 2])
    labels = torch.cat(result.regions.labels)
    rows = F.cross_entropy(head.classifier(stored.features), stored.labels, reduction="none")
    wanted = F.cross_entropy(result.logits, labels, reduction="sum") + 0.5 * rows[0] + 3 * rows[1]
    torch.testing.assert_close(result.losses["loss_classifier"], wanted / 34)


def test_replaced_rows_leave_the_classification_loss_only() -> None:
    part = Scripted(lambda rows: rows_like(rows, [1, 1], replaces=torch.tensor([3, -1]), trains_box=False))
    head = stage(part)
    result = run(head)
    stored = rows_like(part.shown[0], [1, 1])
    own = F.cross_entropy(result.logits, torch.cat(result.regions.labels), reduction="none")
    new = F.cross_entropy(head.classifier(stored.features), stored.labels, reduction="none")
    wanted = (own.sum() - own[3] + new.sum()) / (32 - 1 + 2)
    torch.testing.assert_close(result.losses["loss_classifier"], wanted)
    assert torch.equal(result.losses["loss_box_reg"], run(stage()).losses["loss_box_reg"])


@pytest.mark.parametrize("joins", [True, False])
def test_mixed_labels(joins: bool) -> None:
    """(1 - w) L(first) + w L(second), also for w = 1, where the row still counts as one."""
    share = torch.tensor([0.25, 1.0])
    options: dict[str, Any] = {"second_labels": torch.tensor([2, 3]), "second_weight": share, "trains_box": False}
    part = Scripted(lambda rows: rows_like(rows, [1, 0], joins_normaliser=joins, updates_loss_state=joins, **options))
    head = stage(part)
    result = run(head)
    stored = rows_like(part.shown[0], [1, 0])
    logits = head.classifier(stored.features)
    first = F.cross_entropy(logits, stored.labels, reduction="none")
    second = F.cross_entropy(logits, options["second_labels"], reduction="none")
    mixed = ((1 - share) * first + share * second).sum()
    own = F.cross_entropy(result.logits, torch.cat(result.regions.labels), reduction="sum")
    if joins:
        torch.testing.assert_close(result.losses["loss_classifier"], (own + mixed) / 34)
    else:
        torch.testing.assert_close(result.losses["loss_classifier"], own / 32)
        torch.testing.assert_close(result.losses["loss_replay"], mixed / 2)
    # the state counts every row that joins once, with its first label
    assert head.classification_loss.seen.sum() == (34 if joins else 32)
    assert head.classification_loss.seen[3] == (torch.cat(result.regions.labels) == 3).sum()


@pytest.mark.parametrize("may_update", [True, False])
def test_rows_that_may_not_move_the_losss_state(may_update: bool) -> None:
    part = Scripted(lambda rows: rows_like(rows, [4, 4], updates_loss_state=may_update))
    head, free = stage(part), stage(Scripted(lambda rows: rows_like(rows, [4, 4])))
    result, reference = run(head), run(free)
    assert head.classification_loss.seen.sum() == 32 + 2 * may_update
    for name, value in reference.losses.items():
        torch.testing.assert_close(result.losses[name], value)


def test_rows_with_a_mean_of_their_own_never_move_the_losss_state() -> None:
    """Only some processes may have such rows, and state that is summed over all of them would wait for ever."""
    head = stage(Scripted(lambda rows: rows_like(rows, [4, 4], **APART)))
    run(head)
    assert head.classification_loss.seen.sum() == 32


def test_stacked_parts_see_this_steps_rows_only_and_follow_each_other() -> None:
    parts = (
        Scripted(lambda rows: rows_like(rows, [0])),
        ScriptedPooled(lambda rows: rows_like(rows, [1, 1])),
        Scripted(lambda rows: rows_like(rows, [2], **APART)),
        ScriptedPooled(),
    )
    head = stage(*parts)
    result = run(head)
    assert [len(part.shown[0].labels) for part in parts] == [32] * 4
    assert parts[0].shown[0].features.shape == (32, D)
    assert parts[1].shown[0].features.shape == (32, CHANNELS, 3, 3)
    for part in parts:
        rows, logits, _ = part.after[0]
        # pooled rows pass through the box head and so come before those added behind it
        assert rows.labels[32:].tolist() == [1, 1, 0, 2]
        assert rows.image_index[32:].tolist() == [-1] * 4
        assert logits.shape == (36, C + 1)
        torch.testing.assert_close(logits[:32], result.logits)
        torch.testing.assert_close(logits, head.classifier(rows.features))
    stored = rows_like(parts[1].shown[0], [1, 1])
    torch.testing.assert_close(parts[0].after[0][0].features[32:34], head.head(stored.features))
    torch.testing.assert_close(parts[0].after[0][0].features[:32], result.features)


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("update", [None, True, False])
def test_state_changes_as_asked_or_as_the_mode_says(mode: bool, update: bool | None) -> None:
    part = Scripted()
    head = stage(part).train(mode)
    run(head, update_state=update)
    expected = mode if update is None else update
    assert part.updates == [expected]
    assert part.after[0][2] is expected
    assert bool(head.classification_loss.seen.any()) is expected


@pytest.mark.parametrize("box_loss", [L1Loss(), GIoULoss()])
def test_stored_background_rows_train_no_box_and_spoil_no_gradient(box_loss: BoxLoss) -> None:
    def background(rows: RegionRows) -> ReplayRows:
        return rows_like(rows, [C, 1], gt_boxes=torch.tensor([[float("nan")] * 4, [10.0, 12, 40, 44]]))

    with_background = stage(Scripted(background), box_loss=box_loss)
    losses = run(with_background).losses
    sum(losses.values()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in with_background.parameters())


def test_stored_rows_in_the_space_of_boxes() -> None:
    part = Scripted(lambda rows: rows_like(rows, [1, 3]))
    head = stage(part, box_loss=GIoULoss())
    result = run(head)
    stored = rows_like(part.shown[0], [1, 3])
    deltas = head.regressor(stored.features).reshape(2, C, 4)[[0, 1], [1, 3]]
    extra = GIoULoss().row_losses(head.box_coder.decode_single(deltas, stored.proposals), stored.gt_boxes)
    wanted = (plain_box_rows(head, result).sum() + extra.sum()) / 34
    torch.testing.assert_close(result.losses["loss_box_reg"], wanted)


def test_hard_example_samplers_get_the_classification_loss() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    class Watching(RegionSampler):
        needs_loss = True

        def __call__(self, iou, matched_gt, gt_labels, generator, loss_of=None):  # type: ignore[no-untyped-def]
            positive, negative = torch.where(matched_gt >= 0)[0], torch.where(matched_gt == -1)[0]
            losses = loss_of(torch.cat([positive, negative]))
            assert not losses.requires_grad
            seen.append((losses, loss_of(negative[:0])))
            return positive, negative

    head = stage(sampler=Watching(512, 1.0))
    result = run(head, objects=(2, 0, 3))
    for losses, nothing in seen:
        assert nothing.shape == (0,)
        assert losses.shape[0] > 0
    rows = F.cross_entropy(result.logits, torch.cat(result.regions.labels), reduction="none")
    torch.testing.assert_close(torch.cat([losses for losses, _ in seen]), rows)


@pytest.mark.parametrize("proposals", ["none", "some"])
def test_batch_without_objects(proposals: str) -> None:
    head = stage()
    maps, boxes, targets = inputs((0, 0))
    if proposals == "none":
        boxes = [box[:0] for box in boxes]
    result = head.losses(maps, SIZE, boxes, targets, generators=seeds())
    assert result.losses["loss_box_reg"] == 0
    assert torch.isfinite(result.losses["loss_classifier"])
    sum(result.losses.values()).backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_no_proposals_leave_the_objects_themselves() -> None:
    maps, boxes, targets = inputs((2, 0))
    result = stage().losses(maps, SIZE, [box[:0] for box in boxes], targets)
    assert result.regions.num_positive == [2, 0]
    assert [len(labels) for labels in result.regions.labels] == [2, 0]


def test_record_holds_this_steps_rows() -> None:
    record = Record({"region_features", "region_logits", "region_labels"})
    result = run(stage(Scripted(lambda rows: rows_like(rows, [1]))), record=record)
    assert torch.equal(record["region_features"], result.features)
    assert torch.equal(record["region_logits"], result.logits)
    assert torch.equal(record["region_labels"], torch.cat(result.regions.labels))


def test_prediction_has_one_row_per_proposal() -> None:
    head = stage()
    maps, proposals, _ = inputs()
    scores, deltas = head.predict(maps, SIZE, proposals)
    count = sum(len(boxes) for boxes in proposals)
    assert scores.shape == (count, C + 1)
    assert deltas.shape == (count, 4 * C)
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(count))


class PooledClassifier(Classifier):
    name = "linear"
    level = "pooled"

    def __init__(self, in_features: int, num_logits: int) -> None:
        super().__init__(in_features, num_logits)
        self.layer = nn.Linear(CHANNELS * 9, num_logits)

    def initialise(self, bias_prior: float | None = None) -> None:
        self.layer.reset_parameters()

    def forward(self, features: Tensor) -> Tensor:
        return self.layer(features.flatten(1))


def test_classifiers_on_pooled_features() -> None:
    part = ScriptedPooled(lambda rows: rows_like(rows, [1]))
    head = stage(part, classifier=PooledClassifier(D, C + 1))
    run(head)
    pooled = torch.cat([part.shown[0].features, rows_like(part.shown[0], [1]).features])
    torch.testing.assert_close(part.after[0][1], head.classifier(pooled))
    maps, proposals, _ = inputs()
    assert head.predict(maps, SIZE, proposals)[0].shape[1] == C + 1
    with pytest.raises(UsageError, match="takes pooled features"):
        stage(Scripted(), classifier=PooledClassifier(D, C + 1))


class DenseOnly(SoftmaxCrossEntropy):
    heads = frozenset({"dense"})


class LinearOnly(SoftmaxCrossEntropy):
    classifiers = frozenset({"linear"})


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (DenseOnly(C), "is a loss for dense heads"),
        (LinearOnly(C), "cannot be used with the classifier 'cosine'; it can with: linear"),
        (SoftmaxCrossEntropy(C + 1), "built for 6 classes, the detector has 5"),
    ],
)
def test_combinations_without_meaning_are_refused(loss: ClassificationLoss, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        stage(classification_loss=loss, classifier=CosineClassifier(D, loss.num_logits))


def test_stored_rows_train_the_last_layers_only() -> None:
    """Features in store carry no graph: beyond classifier and regressor the gradient differs by the mean alone."""
    plain, replayed = stage(), stage(Scripted(lambda rows: rows_like(rows, [1, 3])))
    sum(run(plain).losses.values()).backward()
    sum(run(replayed).losses.values()).backward()
    for mine, other in zip(replayed.head.parameters(), plain.head.parameters(), strict=True):
        torch.testing.assert_close(mine.grad * 34, other.grad * 32)
    assert not torch.allclose(replayed.classifier.weight.grad * 34, plain.classifier.weight.grad * 32)


def test_smooth_l1_of_one_ninth_is_torchvisions_box_loss() -> None:
    head = stage(box_loss=SmoothL1Loss(beta=1 / 9))
    result = run(head)
    torch.testing.assert_close(result.losses["loss_box_reg"], plain_box_rows(head, result).sum() / 32)
