"""Balanced group softmax against loops in float64."""

import csv
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.losses import GroupSoftmaxLoss

EDGES = (10, 100, 1000)


def log_softmax(values, index):
    """``log(e^v_index / sum e^v)``."""
    top = max(values)
    return values[index] - top - math.log(math.fsum(math.exp(v - top) for v in values))


def group_of(count):
    return sum(count >= edge for edge in EDGES)


def group_terms(logits, labels, counts, mask=None):
    """[group][row] cross-entropies; the last group is foreground against background."""
    classes = len(counts)
    terms = []
    for g in range(len(EDGES) + 1):
        members = [c for c in range(classes) if group_of(counts[c]) == g]
        if not members:
            continue
        terms.append([])
        for i, y in enumerate(labels):
            stays = [c for c in members if c == y or mask is None or mask[i][c]]
            values = [logits[i][classes + g]] + [logits[i][c] for c in stays]
            terms[-1].append(-log_softmax(values, 1 + stays.index(y) if y in stays else 0))
    terms.append([-log_softmax(row[-2:], int(y == classes)) for row, y in zip(logits, labels, strict=True)])
    return terms


def problem(seed, counts, rows=12):
    loss = GroupSoftmaxLoss(torch.tensor(counts))
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, loss.num_logits, generator=generator, dtype=torch.float64) * 3
    return loss, logits, torch.randint(0, len(counts) + 1, (rows,), generator=generator)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 3000), min_size=1, max_size=8), st.booleans())
def test_without_a_draw_every_group_averages_over_all_rows(seed, counts, masked):
    loss, logits, labels = problem(seed, counts)
    mask = torch.rand(12, len(counts), generator=torch.Generator().manual_seed(seed)) < 0.5 if masked else None
    terms = group_terms(logits.tolist(), labels.tolist(), counts, None if mask is None else mask.tolist())
    expected = math.fsum(math.fsum(rows) / 12 for rows in terms)
    assert loss(logits, labels, class_mask=mask).item() == pytest.approx(expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.5, 1.5, 8.0]))
def test_what_a_group_keeps(seed, ratio):
    """Gradients say which rows a group kept: all its own, int(ratio * own) others, none if it has none of its own."""
    counts = [3, 5, 50, 70, 5000]
    loss = GroupSoftmaxLoss(torch.tensor(counts), others_ratio=ratio)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(30, loss.num_logits, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 6, (30,), generator=generator)
    labels[labels == 4] = 5  # no row for the last group
    weight = (torch.rand(30, generator=generator) < 0.8).double()
    value = loss(logits, labels, weight=weight, generator=torch.Generator().manual_seed(seed))
    value.backward()
    terms = group_terms(logits.tolist(), labels.tolist(), counts)
    counted = [i for i in range(30) if weight[i] > 0]
    expected = math.fsum(terms[-1][i] for i in counted) / max(len(counted), 1)
    for number, g in enumerate((0, 1, 3)):
        kept = (logits.grad[:, 5 + g] != 0).nonzero().flatten().tolist()
        own = [i for i in counted if labels[i] < 5 and group_of(counts[labels[i]]) == g]
        assert set(own) <= set(kept) <= set(counted)
        assert len(kept) == len(own) + min(int(ratio * len(own)), len(counted) - len(own))
        expected += math.fsum(terms[number][i] for i in kept) / max(len(kept), 1)
    assert (logits.grad[:, 5 + 3] == 0).all(), "a group without a row of its own"
    assert (logits.grad[:, 5 + 2] == 0).all(), "a group without classes has no softmax"
    assert value.item() == pytest.approx(expected)


def test_the_draw_is_uniform_over_background_and_other_classes():
    """One own row and 20 others, of which int(4 * 1) stay: each about every fifth time."""
    loss = GroupSoftmaxLoss(torch.tensor([5, 5000]), others_ratio=4.0)
    labels = torch.tensor([0] + [1] * 10 + [2] * 10)
    times = torch.zeros(21)
    for seed in range(400):
        logits = torch.zeros(21, loss.num_logits, requires_grad=True)
        loss(logits, labels, generator=torch.Generator().manual_seed(seed)).backward()
        times += logits.grad[:, 2] != 0
    assert times[0] == 400
    assert times[1:].sum() == 4 * 400
    assert times[1:].min() > 50
    assert times[1:].max() < 115


def test_by_hand():
    """One class in one group: log 2 from its group and log 2 from the background group."""
    loss = GroupSoftmaxLoss(torch.tensor([7]))
    assert loss.num_logits == 7
    assert loss(torch.zeros(3, 7), torch.tensor([0, 1, 1])).item() == pytest.approx(2 * math.log(2))


def test_groups_end_where_the_paper_says():
    found = GroupSoftmaxLoss(torch.tensor([0, 9, 10, 99, 100, 999, 1000, 10**6])).group.tolist()
    assert found == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_groups_classes_do_not_feel_other_groups():
    """A row of a frequent class never pushes down a rare one's logit against its own, only against *others*."""
    loss = GroupSoftmaxLoss(torch.tensor([5, 5000]))
    labels = torch.ones(6, dtype=torch.long)
    results = []
    for shift in (0.0, 5.0):
        logits = torch.zeros(6, loss.num_logits)
        logits[:, 1] += shift
        logits.requires_grad_()
        loss(logits, labels).backward()
        results.append(logits.grad[:, 0])
    assert torch.equal(*results)
    logits = torch.zeros(6, loss.num_logits, requires_grad=True)
    loss(logits, labels, generator=torch.Generator().manual_seed(0)).backward()
    assert (logits.grad[:, 0] == 0).all(), "no rare row in the batch, no others kept"


def test_scores_are_the_groups_probability_times_foreground():
    counts = [5, 9, 50, 2000]
    loss, logits, _ = problem(3, counts)
    z = logits.tolist()
    expected = []
    for row in z:
        foreground = math.exp(log_softmax(row[-2:], 0))
        scores = []
        for c in range(4):
            members = [k for k in range(4) if group_of(counts[k]) == group_of(counts[c])]
            values = [row[4 + group_of(counts[c])]] + [row[k] for k in members]
            scores.append(foreground * math.exp(log_softmax(values, 1 + members.index(c))))
        expected.append([*scores, 1 - foreground])
    torch.testing.assert_close(loss.scores(logits), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.real_data
@pytest.mark.parametrize(("version", "outputs"), [("v0.5", 1236), ("v1.0", 1209)])
def test_outputs_on_lvis(version: str, outputs: int, shared_data: Path) -> None:
    with (shared_data / "lvis_counts" / "lvis_counts.csv").open() as file:
        counts = [int(row["train_instances"]) for row in csv.DictReader(file) if row["version"] == version]
    loss = GroupSoftmaxLoss(torch.tensor(counts))
    assert loss.num_logits == outputs
    assert torch.bincount(loss.group).shape == (4,)


def test_refuses_nonsense():
    with pytest.raises(ValueError, match="edges must ascend"):
        GroupSoftmaxLoss(torch.tensor([1]), edges=(10, 10))
    with pytest.raises(ValueError, match="others_ratio"):
        GroupSoftmaxLoss(torch.tensor([1]), others_ratio=-1.0)
    with pytest.raises(ValueError, match="instance_counts"):
        GroupSoftmaxLoss(torch.tensor([-1]))
