"""Everything that a replay part may ask of the region head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from region_head_parts import (
    APART,
    CHANNELS,
    C,
    D,
    Scripted,
    ScriptedPooled,
    plain_box_rows,
    rows_like,
    run,
    stage,
)
from torch.nn import functional as F

from longtail.losses.base import BoxLoss
from longtail.losses.boxes import GIoULoss, L1Loss
from longtail.replay.base import RegionRows, ReplayRows


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


def test_stored_rows_train_the_last_layers_only() -> None:
    """Features in store carry no graph: beyond classifier and regressor the gradient differs by the mean alone."""
    plain, replayed = stage(), stage(Scripted(lambda rows: rows_like(rows, [1, 3])))
    sum(run(plain).losses.values()).backward()
    sum(run(replayed).losses.values()).backward()
    for mine, other in zip(replayed.head.parameters(), plain.head.parameters(), strict=True):
        torch.testing.assert_close(mine.grad * 34, other.grad * 32)
    assert not torch.allclose(replayed.classifier.weight.grad * 34, plain.classifier.weight.grad * 32)
