"""Bucketed re-weighting: loops from the specification, its numbers on LVIS, background rules."""

import csv
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.losses import BucketedReweightingLoss, LGRCrossEntropy, SigmoidCrossEntropy
from longtail.losses.bucketed_reweighting import bucket_weights, frequency_buckets

COUNTS = torch.tensor([1, 3, 10, 40, 200, 1000])


def buckets_loop(counts, number):
    seen = [math.log(f) for f in counts if f > 0]
    if not seen or min(seen) == max(seen):
        return [number - 1] * len(counts)
    low, high = min(seen), max(seen)
    found = []
    for f in counts:
        if f == 0:
            found.append(0)
        else:
            found.append(min(math.floor(number * (math.log(f) - low) / (high - low)), number - 1))
    return found


def weights_loop(counts, number, a, tau):
    buckets = buckets_loop(counts, number)
    if number == 1 or len(set(buckets)) == 1:
        return [1.0] * len(counts)
    return [1 / (1 + math.exp(-(s / (number - 1) - a) / tau)) for s in buckets]


def loss_loop(logits, labels, weights, background_logit, on_background, lgr):
    total = 0.0
    classes = len(weights)
    b = math.exp(1 / 0.8) - 1
    for z, y in zip(logits.tolist(), labels.tolist(), strict=True):
        for i in range(classes + background_logit):
            s = 1 / (1 + math.exp(-z[i]))
            right = s if i == y else 1 - s
            if i in (y, classes) or (y == classes and not on_background):
                weight = 1.0
            else:
                weight = weights[i]
            if lgr:
                weight *= 0.8 * math.log(b * (1 - right) + 1) / (1 - right)
            total -= weight * math.log(right)
    return total / len(labels)


@pytest.mark.parametrize("background_logit", [True, False])
@pytest.mark.parametrize("on_background", [True, False])
@pytest.mark.parametrize("lgr", [True, False])
@pytest.mark.parametrize(("number", "a", "tau"), [(10, 0.5, 0.025), (4, 0.4, 0.3)])
def test_equals_the_loops(background_logit, on_background, lgr, number, a, tau):
    loss = BucketedReweightingLoss(6, COUNTS, num_buckets=number, a=a, tau=tau, background_logit=background_logit,
                                   on_background=on_background, lgr=lgr)  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(15, loss.num_logits, generator=generator, dtype=torch.float64) * 2
    labels = torch.randint(0, 7, (15,), generator=generator)
    weights = weights_loop(COUNTS.tolist(), number, a, tau)
    wanted = loss_loop(logits, labels, weights, background_logit, on_background, lgr)
    assert loss(logits, labels).item() == pytest.approx(wanted, rel=1e-6)


@given(counts=st.lists(st.integers(0, 5000), min_size=1, max_size=12), number=st.integers(1, 15))
@settings(max_examples=100, deadline=None)
def test_buckets_and_weights_equal_the_loops(counts, number):
    bucket = frequency_buckets(torch.tensor(counts), number)
    assert bucket.tolist() == buckets_loop(counts, number)
    weights = bucket_weights(bucket, number, a=0.5, tau=0.025)
    assert weights.tolist() == pytest.approx(weights_loop(counts, number, 0.5, 0.025))
    assert ((weights >= 0) & (weights <= 1)).all()


@pytest.mark.parametrize(
    ("number", "tau", "wanted"),
    [
        (10, 0.025, [0, 0, 0, 0.0013, 0.0978, 0.9022, 0.9987, 1, 1, 1]),
        (10, 0.05, [0.00005, 0.0004, 0.0039, 0.0345, 0.2477, 0.7523, 0.9656, 0.9962, 0.9996, 0.99995]),
        (10, 0.01, [0, 0, 0, 0, 0.0039, 0.9962, 1, 1, 1, 1]),
        (5, 0.025, [0, 0.00005, 0.5, 0.99995, 1]),
    ],
)
def test_weights_by_bucket_of_the_specification(number, tau, wanted):
    found = bucket_weights(torch.arange(number), number, a=0.5, tau=tau)
    assert found.tolist() == pytest.approx(wanted, abs=6e-5)


def test_the_middle_one_of_fifteen_buckets_weighs_one_half():
    assert bucket_weights(torch.arange(15), 15, a=0.5, tau=0.025)[7] == 0.5


def test_buckets_of_lvis(shared_data):
    """Section 7: sizes by image counts; what is below one half."""
    file = shared_data / "lvis_counts" / "lvis_counts.csv"
    if not file.is_file():
        pytest.skip("no counts of LVIS beside the checkout")
    with file.open(encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row["version"] == "v1.0"]
    images = torch.tensor([int(row["train_images"]) for row in rows])
    instances = torch.tensor([int(row["train_instances"]) for row in rows])
    group = [row["frequency"] for row in rows]
    loss = BucketedReweightingLoss(1203, images)
    assert torch.bincount(loss.bucket).tolist() == [117, 71, 125, 155, 169, 149, 107, 83, 69, 158]
    assert torch.equal(loss.bucket, frequency_buckets(images / 100_170, 10)), "fractions give the same as counts"
    low = (loss.class_weight < 0.5).tolist()
    assert [sum(g == name and s for g, s in zip(group, low, strict=True)) for name in "rcf"] == [337, 300, 0]
    assert group.count("c") == 461
    assert images[loss.bucket == 4].max() < 44.5 < images[loss.bucket == 5].min()
    low = (BucketedReweightingLoss(1203, instances).class_weight < 0.5).tolist()
    assert sum(g == "f" and s for g, s in zip(group, low, strict=True)) == 32
    assert sum(g == "r" and not s for g, s in zip(group, low, strict=True)) == 2


def test_background_rows_have_unit_weights_and_the_label_always():
    logits = torch.zeros(7, 7, dtype=torch.float64, requires_grad=True)
    BucketedReweightingLoss(6, COUNTS)(logits, torch.arange(7), normaliser=1.0).backward()
    gradient = logits.grad
    assert (gradient[6].abs() == 0.5).all()
    assert (gradient.diagonal() == -0.5).all()
    assert (gradient[:, 6].abs() == 0.5).all()
    assert (gradient[1:6, 0] < 1e-8).all(), "objects of other classes hardly push the rarest class down"
    literal = torch.zeros(1, 7, dtype=torch.float64, requires_grad=True)
    BucketedReweightingLoss(6, COUNTS, on_background=True)(literal, torch.tensor([6])).backward()
    assert literal.grad[0, 0] < 1e-8
    assert literal.grad[0, 6] == -0.5


def test_one_bucket_or_equal_counts_are_plain_losses():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(9, 7, generator=generator), torch.randint(0, 7, (9,), generator=generator)
    plain = SigmoidCrossEntropy(6, background_logit=True)(logits, labels)
    torch.testing.assert_close(BucketedReweightingLoss(6, COUNTS, num_buckets=1)(logits, labels), plain)
    torch.testing.assert_close(BucketedReweightingLoss(6, torch.full((6,), 5))(logits, labels), plain)
    both = BucketedReweightingLoss(6, torch.full((6,), 5), lgr=True)(logits, labels)
    torch.testing.assert_close(both, LGRCrossEntropy(6, form="sigmoid", background_logit=True)(logits, labels))


def test_classes_without_images_are_lowest_and_named():
    loss = BucketedReweightingLoss(4, torch.tensor([0, 5, 50, 500]))
    assert loss.bucket.tolist() == [0, 0, 5, 9]
    assert loss.unseen.tolist() == [True, False, False, False]
    assert BucketedReweightingLoss(2, torch.zeros(2)).class_weight.tolist() == [1, 1]
    equal = BucketedReweightingLoss(3, torch.tensor([7, 7, 0]))
    assert equal.class_weight.tolist() == [1, 1, 1]
    assert equal.unseen.tolist() == [False, False, True]


def test_it_says_which_classes_it_acts_on():
    loss = BucketedReweightingLoss(4, torch.tensor([0, 5, 50, 500]))
    assert loss.acts_on() == "2 of 4 classes weigh less than one half as negatives; 1 have no images"


@pytest.mark.parametrize(
    ("counts", "options", "match"),
    [
        (COUNTS[:5], {}, "shape"),
        (COUNTS, {"tau": 0}, "tau"),
        (COUNTS, {"num_buckets": 0}, "num_buckets"),
        (-COUNTS, {}, "counts"),
        (COUNTS, {"prior": 0}, "prior"),
        (COUNTS, {"lgr_alpha": 0}, "alpha"),
    ],
)
def test_nonsense_is_refused(counts, options, match):
    with pytest.raises(ValueError, match=match):
        BucketedReweightingLoss(6, counts, **options)
