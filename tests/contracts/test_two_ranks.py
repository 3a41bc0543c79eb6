"""Two processes with different data: sums and gathers are right, and what should be shared is equal on both.

One session for everything, since starting two processes is the slow part. This file is also what each of them runs.
"""

import copy
import dataclasses
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from contract_parts import BOX_LOSSES, LOSSES, REPLAYS, build, logits_and_labels, region_rows, step_inputs
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from longtail.losses import (
    EqualizationLossV2,
    EqualizedFocalLoss,
    GHMRegression,
    MeanScore,
    SeesawLoss,
    SmoothL1Loss,
    SoftmaxCrossEntropy,
)
from longtail.losses.mean_score import observations
from longtail.losses.state import from_first, gather_on_first, gather_rows, shared_normalisers, sum_over_ranks
from longtail.models import DeconfoundedClassifier, DenseHead, Matcher
from longtail.models.replay_losses import BoxRows, region_normalisers
from longtail.replay import RegionRows, VirtualFeatures
from longtail.training.averages import mean_losses
from longtail.training.checkpoint import per_rank_names


def test_two_ranks(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(tmp_path / "meeting_point")],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=120)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)


def equal_on_both(tensors, name):
    """Fails if a buffer differs between the ranks."""
    mine = {key: value.clone() for key, value in tensors.items()}
    both = [None, None]
    dist.all_gather_object(both, mine)
    for key in mine:
        assert torch.equal(both[0][key], both[1][key]), f"{key} of {name} differs between the ranks"


def shared_buffers(part):
    """Buffers by name without those that a module declares as each rank's own."""
    own = per_rank_names(part)
    return {name: value for name, value in part.named_buffers() if name not in own}


def sums_and_gathers(rank):
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.int64):
        mine = torch.tensor([1, 2, 3], dtype=dtype) * (rank + 1)
        total = sum_over_ranks(mine)
        assert total.dtype == dtype
        assert total.tolist() == [3, 6, 9]
        assert mine.tolist() == [rank + 1, 2 * rank + 2, 3 * rank + 3], "the input was changed"
        assert sum_over_ranks(mine, sync=False).tolist() == mine.tolist()
        assert from_first(mine).tolist() == [1, 2, 3] and from_first(mine).dtype == dtype
        assert from_first(mine, sync=False).tolist() == mine.tolist() == [rank + 1, 2 * rank + 2, 3 * rank + 3]
    assert from_first(torch.tensor([rank == 0, rank == 1])).tolist() == [True, False]
    assert sum_over_ranks(torch.ones(2, 4)[:, ::2]).tolist() == [[2, 2], [2, 2]]
    assert sum_over_ranks(torch.tensor(2.5, requires_grad=True)).requires_grad is False

    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool):
        for lengths in ((2, 3), (0, 2), (3, 0), (0, 0), (1, 1)):
            parts = [(torch.arange(n * 2).reshape(n, 2) % 3).to(dtype) for n in lengths]
            assert torch.equal(gather_rows(parts[rank]), torch.cat(parts))
            assert torch.equal(gather_rows(parts[rank], sync=False), parts[rank])
            assert torch.equal(gather_on_first(parts[rank]), parts[0][:0] if rank else torch.cat(parts))
    assert gather_rows(torch.full((rank + 1,), rank)).tolist() == [0, 1, 1]


def divisors_and_means(rank):
    counts = [(3, 4), (0, torch.tensor(5)), (0, 0), (torch.tensor(1), torch.tensor(1))]
    found = shared_normalisers([both[rank] for both in counts], device=torch.device("cpu"))
    assert [float(value) for value in found] == [3.5, 2.5, 0.5, 1.0]

    own = [{"a": torch.tensor(2.0), "b": torch.tensor(4.0)}, {"c": torch.tensor(8.0), "a": torch.tensor(6.0)}]
    assert list(mean_losses(own[rank], 2).items()) == [("a", 2.0), ("b", 1.0), ("c", 2.0)]
    assert mean_losses({}, 1) == {}
    broken = mean_losses({"a": torch.tensor(float("nan") if rank else 1.0)}, 1)
    assert broken["a"] != broken["a"], "what is broken in one process is seen by all"


def losses(rank):
    for case in LOSSES:
        loss = build(case.values[0])
        for step, rows in enumerate([(12, 20), (8, 0), (0, 5)]):  # a rank may have nothing to learn from
            logits, labels = logits_and_labels(loss, rows[rank], seed=10 * step + rank)
            loss(logits, labels, update_state=True).backward()
        equal_on_both(shared_buffers(loss), case.id)


def state_is_that_of_all_rows(rank):
    """Two processes with half of the rows each keep what one keeps of all, given the same divisor; if they are not to,
    they keep their own."""
    for cls, options in ((SeesawLoss, {}), (EqualizationLossV2, {}), (EqualizedFocalLoss, {})):
        shared, alone = cls(5, **options), cls(5, sync=False, **options)
        logits, labels = logits_and_labels(shared, 24)
        own = slice(rank * 12, rank * 12 + 12)
        shared(logits[own], labels[own], normaliser=6.0, update_state=True)
        alone(logits, labels, normaliser=6.0, update_state=True)
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(shared.state_dict()[name], value)
        apart = cls(5, sync=False, **options)
        apart(logits[own], labels[own], normaliser=6.0, update_state=True)
        both = [None, None]
        dist.all_gather_object(both, apart.state_dict())
        assert any(not torch.equal(both[0][name], both[1][name]) for name in both[0])
        assert set(apart.state_dict()) == per_rank_names(apart)


def box_losses(rank):
    for case in BOX_LOSSES:
        loss = build(case.values[0])
        for step, rows in enumerate([(3, 5), (2, 0), (0, 4)]):
            generator = torch.Generator().manual_seed(10 * step + rank)
            boxes = torch.rand(2, rows[rank], 4, generator=generator).cumsum(dim=2)
            loss(*boxes, update_state=True)
        equal_on_both(shared_buffers(loss), case.id)


def replays(rank):
    for case in REPLAYS:
        part = build(case.values[0])
        targets, pool = step_inputs(part.level)
        for step, rows in enumerate([(12, 20), (8, 0), (0, 5)]):
            regions = region_rows(rows[rank], part.level, seed=10 * step + rank)
            part.step(regions, targets, pool, True)
            part.after_logits(regions, torch.zeros(rows[rank], 6), True)
        equal_on_both(shared_buffers(part), case.id)


def mean_scores(rank):
    """Two processes with half of the rows each keep the scores that one keeps of all; one may have no rows."""
    for counts in ((12, 18), (9, 0), (0, 0)):
        shared = MeanScore(5)
        rows = region_rows(sum(counts), "embedded", seed=counts[0])
        objects = torch.arange(sum(counts)) // 2
        rows = dataclasses.replace(rows, gt_index=objects, image_index=torch.zeros_like(objects), labels=objects % 6)
        logits = torch.randn(sum(counts), 6, generator=torch.Generator().manual_seed(1))
        first = counts[0] - counts[0] % 2  # no object is cut in two
        own = slice(0, first) if rank == 0 else slice(first, None)
        fields = {field.name: getattr(rows, field.name) for field in dataclasses.fields(rows)}
        shared.after_logits(RegionRows(**{name: value[own] for name, value in fields.items()}), logits[own], True)
        equal_on_both(dict(shared.named_buffers()), "MeanScore")
        label, count, total = observations(rows, logits.softmax(1)[range(len(objects)), rows.labels].double(), 5)
        number = torch.zeros(6).double().index_add_(0, label, count)[:5]
        mean = torch.zeros(6).double().index_add_(0, label, total)[:5] / number.clamp(min=1)
        expected = torch.cat([0.9**number * 0.01 + (1 - 0.9**number) * mean, torch.tensor([0.01])]).float()
        torch.testing.assert_close(shared.value, expected)
        assert (shared.value != 0.01).any() == bool(sum(counts))


def virtual_features(rank):
    """After a round both draw with the same probabilities, but not the same features; apart, each has its own."""
    for sync in (True, False):
        part = VirtualFeatures(5, 8, torch.ones(5), scale=1e9, sync=sync)
        targets, pool = step_inputs("embedded")
        regions = region_rows(24, "embedded", seed=rank)
        drawn = part.step(regions, [{**targets[0], "draw_seed": rank}], pool, True)
        if sync and rank == 1:  # as rounding might; a round makes both equal again
            part.moments.mean.mul_(1 + 1e-6)
            part.moments.seen[0] = ~part.moments.seen[0]
            part.prob.mul_(0.99)
        for worse in (1.0, 2.0):
            part.prob.mul_(0.5)
            part.adapt(sum_over_ranks(torch.ones(6) * worse), torch.ones(6))
        follower = copy.deepcopy(part)
        if sync:
            follower.moments.mean.add_(rank)
        follower.follow(part)
        for each in (part, follower):
            equal_on_both(shared_buffers(each), f"VirtualFeatures(sync={sync})")
        both = [None, None]
        dist.all_gather_object(both, (part.moments.mean, drawn.features))
        assert torch.equal(both[0][0], both[1][0]) == sync
        assert not torch.equal(both[0][1], both[1][1])
        dist.all_gather_object(both, part.prob)
        assert not sync or torch.equal(*both)
        assert per_rank_names(part) == (set() if sync else {"prob", *(f"moments.{n}" for n in part.moments.per_rank)})


def rows_with_a_mean_of_their_own(rank):
    """Shared, they are divided by the half of all processes' rows; otherwise by this process's, at least 1."""
    loss = SoftmaxCrossEntropy(5)
    for sync in (True, False):
        part = VirtualFeatures(5, 8, torch.ones(5), scale=1e9, sync=sync)
        targets, pool = step_inputs("embedded")
        regions = region_rows(24, "embedded", seed=rank)
        part.step(regions, targets, pool, True)
        part.prob.copy_(torch.arange(5) < (1, 4)[rank])
        part.moments.seen.fill_(True)
        for replayed in (part.step(regions, targets, pool, True), None):
            own = {} if replayed is None else {0: replayed}
            box = BoxRows(regions.labels[:0], regions.proposals[:0], regions.proposals[:0], None, 1.0)
            found = region_normalisers(loss, regions.labels, own, box, {}, parts=1)
            assert float(found.classification) == 24
            if own:
                assert float(found.separate[0]) == (2.5 if sync else (1, 4)[rank])


def classifiers(rank):
    """The deconfounded classifier's mean is that of all processes' objects together; one may have none."""
    classifier = DeconfoundedClassifier(4, 6, momentum=0.5)
    expected = torch.zeros(4)
    for counts in ((2, 6), (3, 0), (0, 0)):  # labels 0 .. 4 are classes, 5 is the background
        parts = [torch.arange(4.0 * n).reshape(n, 4) + r for r, n in enumerate(counts)]
        labels = [torch.arange(n) for n in counts]
        classifier.observe(parts[rank], labels[rank], 5)
        objects = torch.cat([x[y < 5] for x, y in zip(parts, labels, strict=True)])
        if len(objects):
            expected = 0.5 * expected + objects.mean(dim=0)
        torch.testing.assert_close(classifier.mean, expected)
    equal_on_both(dict(classifier.named_buffers()), "DeconfoundedClassifier")


def dense_heads(rank):
    """Two processes with one picture each have the mean gradient of one process with both, although the second picture
    has no object; and keep the same state."""
    draw = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 8, 16, 16, generator=draw)
    some = {"boxes": torch.tensor([[4.0, 4, 30, 40], [20, 10, 60, 50]]), "labels": torch.tensor([0, 3])}
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    for case in LOSSES:
        for box_loss in (SmoothL1Loss(), GHMRegression()):
            loss = build(case.values[0])
            if "dense" not in loss.heads or not case.values[0][1].get("sync", True):
                continue
            torch.manual_seed(0)
            head = DenseHead(
                num_classes=5, channels=8, anchor_generator=AnchorGenerator(((16.0,),), ((0.5, 1.0, 2.0),)),
                classification_loss=loss, box_loss=box_loss, matcher=Matcher(0.5, 0.4, low_quality=True), layers=1,
                quality="iou",
            )  # fmt: skip
            alone = copy.deepcopy(head)
            for module in alone.modules():
                if hasattr(module, "sync"):
                    module.sync = False
            images = ImageList(torch.zeros(1, 3, 64, 64), [(64, 64)])
            losses = head.losses(images, {"0": maps[rank : rank + 1]}, [(some, none)[rank]], update_state=True)
            sum(losses.values()).backward()
            with without_processes():
                both = ImageList(torch.zeros(2, 3, 64, 64), [(64, 64)] * 2)
                together = alone.losses(both, {"0": maps}, [some, none], update_state=True)
                sum(together.values()).backward()
            expected = dict(alone.named_parameters())
            for name, parameter in head.named_parameters():
                mean = sum_over_ranks(parameter.grad) / 2
                torch.testing.assert_close(mean, expected[name].grad, rtol=1e-4, atol=1e-6, msg=f"{name} of {case.id}")
            for name, value in sum_of(losses).items():
                torch.testing.assert_close(value / 2, together[name].detach(), rtol=1e-4, atol=1e-6, msg=case.id)
            kept = dict(alone.named_buffers())
            for name, value in head.named_buffers():
                # gradients are averaged over processes, so each one's own are twice as large; only their ratio counts
                value = value / 2 if ".gradients." in name else value
                torch.testing.assert_close(value, kept[name], rtol=1e-5, atol=1e-7, msg=f"{name} of {case.id}")


def sum_of(losses):
    return {name: sum_over_ranks(value) for name, value in losses.items()}


@contextmanager
def without_processes():
    """As if there were one process."""
    known = dist.is_initialized
    dist.is_initialized = lambda: False
    try:
        yield
    finally:
        dist.is_initialized = known


if __name__ == "__main__":
    this_rank = int(sys.argv[1])
    dist.init_process_group("gloo", init_method=Path(sys.argv[2]).as_uri(), rank=this_rank, world_size=2)
    sums_and_gathers(this_rank)
    divisors_and_means(this_rank)
    losses(this_rank)
    box_losses(this_rank)
    state_is_that_of_all_rows(this_rank)
    replays(this_rank)
    mean_scores(this_rank)
    virtual_features(this_rank)
    rows_with_a_mean_of_their_own(this_rank)
    classifiers(this_rank)
    dense_heads(this_rank)
    dist.barrier()
    dist.destroy_process_group()
