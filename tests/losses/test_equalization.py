"""EQL, both forms, against loops in float64."""

import csv
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.losses import EqualizationLoss, SigmoidCrossEntropy, SoftmaxCrossEntropy

quick = settings(max_examples=30, deadline=None)
frequencies = st.lists(st.sampled_from([0.0, 0.001, 0.00176, 0.00177, 0.01, 1.0]), min_size=1, max_size=6)


def cell_weight(label, c, classes, tail):
    """``1 - E T (1 - Y)``."""
    is_object, is_tail, is_label = label < classes, tail[c], label == c
    return 1 - int(is_object) * int(is_tail) * (1 - int(is_label))


def sigmoid_oracle(logits, labels, tail, mask=None):
    rows = []
    for i, y in enumerate(labels):
        value = 0.0
        for c, z in enumerate(logits[i]):
            p = 1 / (1 + math.exp(-z))
            cell = -math.log(p) if c == y else -math.log(1 - p)
            if mask is None or mask[i][c] or c == y:
                value += cell_weight(y, c, len(tail), tail) * cell
        rows.append(value)
    return rows


def softmax_oracle(logits, labels, tail, mask=None):
    rows = []
    for i, y in enumerate(labels):
        z = logits[i]
        total = math.exp(z[-1])
        for c in range(len(tail)):
            if mask is None or mask[i][c] or c == y:
                total += cell_weight(y, c, len(tail), tail) * math.exp(z[c])
        rows.append(-math.log(math.exp(z[y]) / total))
    return rows


@quick
@given(st.integers(0, 10_000), frequencies, st.sampled_from(["sigmoid", "softmax"]), st.booleans())
def test_agrees_with_loops(seed, frequency, form, masked):
    classes = len(frequency)
    loss = EqualizationLoss(torch.tensor(frequency, dtype=torch.float64), form=form)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(7, loss.num_logits, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(0, classes + 1, (7,), generator=generator)
    mask = torch.rand(7, classes, generator=generator) < 0.5 if masked else None
    oracle = sigmoid_oracle if form == "sigmoid" else softmax_oracle
    tail = [f < 0.00177 for f in frequency]
    expected = oracle(logits.tolist(), labels.tolist(), tail, None if mask is None else mask.tolist())
    torch.testing.assert_close(
        loss.row_losses(logits, labels, class_mask=mask), torch.tensor(expected, dtype=torch.float64)
    )
    assert loss(logits, labels, class_mask=mask).item() == pytest.approx(math.fsum(expected) / 7)


def test_by_hand():
    """Class 0 is rare. At logit 0 every cell costs log 2: an object of class 1 pays for classes 1 and 2 only."""
    loss = EqualizationLoss(torch.tensor([0.001, 0.5, 0.5]))
    rows = loss.row_losses(torch.zeros(3, 3), torch.tensor([1, 0, 3]))
    assert rows.tolist() == pytest.approx([2 * math.log(2), 3 * math.log(2), 3 * math.log(2)])
    softmax = EqualizationLoss(torch.tensor([0.001, 0.5, 0.5]), form="softmax")
    rows = softmax.row_losses(torch.zeros(3, 4), torch.tensor([1, 0, 3]))
    assert rows.tolist() == pytest.approx([math.log(3), math.log(4), math.log(4)])


def test_rare_classes_get_no_gradient_from_other_objects():
    logits = torch.randn(4, 3, requires_grad=True)
    EqualizationLoss(torch.tensor([0.001, 0.5, 0.5]))(logits, torch.tensor([1, 2, 0, 3])).backward()
    assert (logits.grad[:2, 0] == 0).all()
    assert logits.grad[2, 0] < 0, "but from their own"
    assert logits.grad[3, 0] > 0, "and from the background"


@pytest.mark.parametrize(("form", "plain"), [("sigmoid", SigmoidCrossEntropy), ("softmax", SoftmaxCrossEntropy)])
def test_without_a_rare_class_it_is_cross_entropy(form, plain):
    loss = EqualizationLoss(torch.rand(5), threshold=0, form=form)
    logits, labels = torch.randn(9, loss.num_logits), torch.randint(0, 6, (9,))
    torch.testing.assert_close(loss(logits, labels), plain(5)(logits, labels))


def test_thresholds_of_lvis(shared_data: Path):
    """0.00177 is exactly the rare and common classes of v0.5; the authors' value for v1 takes 17 more."""
    with (shared_data / "lvis_counts" / "lvis_counts.csv").open() as file:
        table = list(csv.DictReader(file))

    def tail(version, images, threshold):
        rows = [row for row in table if row["version"] == version]
        counts = torch.tensor([int(row["train_images"]) for row in rows], dtype=torch.float64)
        found = EqualizationLoss(counts / images, threshold=threshold).tail
        return int(found.sum()), found.tolist() == [row["frequency"] != "f" for row in rows]

    assert tail("v0.5", 56_740, 0.00177) == (915, True)
    assert tail("v0.5", 56_740, 0.00176) == (912, False)
    assert tail("v1.0", 99_388, 0.0011) == (815, False)
    assert tail("v1.0", 99_388, 0.0010062) == (798, True)


def test_what_each_form_needs():
    sigmoid, softmax = (EqualizationLoss(torch.rand(7), form=form) for form in ("sigmoid", "softmax"))
    assert (sigmoid.num_logits, softmax.num_logits) == (7, 8)
    assert sigmoid.bias_prior == pytest.approx(-math.log(999))
    assert softmax.bias_prior is None


@pytest.mark.parametrize(
    ("frequency", "wrong", "said"),
    [([0.5, -0.1], {}, "image_frequency"), ([1.5], {}, "image_frequency"), ([0.5], {"threshold": -1.0}, "threshold"),
     ([0.5], {"form": "tanh"}, "form"), ([0.5], {"prior": 0.0}, "prior"), ([], {}, "num_classes")],
)  # fmt: skip
def test_refuses_nonsense(frequency, wrong, said):
    with pytest.raises(ValueError, match=said):
        EqualizationLoss(torch.tensor(frequency), **wrong)
