"""Seesaw loss against loops in float64, over several steps; its gradient with the factors held fixed."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.losses import ObjectnessSoftmax, SeesawLoss


def log_softmax(values, index):
    top = max(values)
    return values[index] - top - math.log(math.fsum(math.exp(v - top) for v in values))


def oracle(logits, labels, counts, p, q, eps, mask):
    """Row losses with the counts as they are, the batch included."""
    classes, rows = len(counts), []
    for i, y in enumerate(labels):
        value = -log_softmax(logits[i][classes:], int(y == classes))
        if y < classes:
            stays = [c for c in range(classes) if c == y or mask[i][c]]
            z = [logits[i][c] for c in stays]
            share = [math.exp(log_softmax(z, k)) for k in range(len(z))]
            own = stays.index(y)
            changed = []
            for k, c in enumerate(stays):
                mitigation = min(1.0, max(counts[c], 1) / max(counts[y], 1)) ** p
                compensation = max(1.0, share[k] / max(share[own], eps)) ** q
                changed.append(z[k] + (0.0 if k == own else math.log(mitigation * compensation)))
            value -= log_softmax(changed, own)
        rows.append(value)
    return rows


def problem(seed, classes, rows):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes + 2, generator=generator, dtype=torch.float64) * 3
    labels = (torch.rand(rows, generator=generator) ** 2 * (classes + 1)).long()
    weight = torch.randint(0, 3, (rows,), generator=generator).double() / 2
    return logits, labels, weight, torch.rand(rows, classes, generator=generator) < 0.7


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(1, 5), st.sampled_from([0.0, 0.8, 2.0]), st.sampled_from([0.0, 1.0, 2.0]),
    st.sampled_from([0.01, 0.2]),
)  # fmt: skip
def test_three_steps_agree_with_loops(seed, classes, p, q, eps):
    loss = SeesawLoss(classes, p=p, q=q, eps=eps)
    counts = [0] * classes
    for step in range(3):
        logits, labels, weight, mask = problem(seed + step, classes, 8)
        if step != 1:
            for y, w in zip(labels.tolist(), weight.tolist(), strict=True):
                if w > 0 and y < classes:
                    counts[y] += 1
        rows = oracle(logits.tolist(), labels.tolist(), counts, p, q, eps, mask.tolist())
        found = loss(logits, labels, weight=weight, class_mask=mask, update_state=step != 1)
        total = math.fsum(r * w for r, w in zip(rows, weight.tolist(), strict=True))
        assert found.item() == pytest.approx(total / max(int((weight > 0).sum()), 1)), "all rows are in the divisor"
        assert loss.counts.tolist() == counts
        torch.testing.assert_close(
            loss.row_losses(logits, labels, class_mask=mask), torch.tensor(rows, dtype=torch.float64)
        )


def test_by_hand():
    """After 4 objects of class 0 and 1 of class 1, an object of class 0 at logit 0 pushes class 1 with 4^-0.8; scores
    are equal, so nothing is compensated. Objectness at logit 0 costs log 2."""
    loss = SeesawLoss(2)
    labels = torch.tensor([0, 0, 0, 0, 1, 2])
    loss(torch.zeros(6, 4), labels, update_state=True)
    rows = loss.row_losses(torch.zeros(6, 4, dtype=torch.float64), labels)
    frequent, rare, background = math.log(1 + 0.25**0.8), math.log(2), 0.0
    assert rows.tolist() == pytest.approx([r + math.log(2) for r in [frequent] * 4 + [rare, background]])


def test_the_batch_is_counted_before_its_loss():
    loss = SeesawLoss(2)
    logits, labels = torch.zeros(4, 4, dtype=torch.float64), torch.tensor([0, 0, 0, 1])
    counted_first = loss(logits, labels, update_state=True)
    torch.testing.assert_close(counted_first, loss(logits, labels, update_state=False))
    assert counted_first < SeesawLoss(2)(logits, labels, update_state=False)


def test_compensation_brings_back_what_is_mistaken():
    """An object of the frequent class scored as the rare one pushes the rare class harder than without compensation."""
    logits = torch.tensor([[0.0, 4.0, 0.0, 0.0]])
    gradient = {}
    for q in (0.0, 2.0):
        loss = SeesawLoss(2, q=q)
        loss.counts += torch.tensor([1000, 1])
        own = logits.clone().requires_grad_()
        loss(own, torch.tensor([0]), update_state=False).backward()
        gradient[q] = own.grad[0, 1].item()
    assert gradient[2.0] > 2 * gradient[0.0] > 0


def test_gradient_holds_the_factors_fixed():
    """``softmax(z + log factor) - one hot`` on the class logits, divided by all rows."""
    loss = SeesawLoss(4)
    loss(*problem(0, 4, 30)[:2], update_state=True)
    logits, labels, _, _ = problem(1, 4, 10)
    logits.requires_grad_()
    loss(logits, labels, update_state=False).backward()
    counts = loss.counts.clamp(min=1).double()
    for i, y in enumerate(labels.tolist()):
        z = logits[i, :4].detach()
        expected = torch.zeros(4, dtype=torch.float64)
        if y < 4:
            share = z.softmax(dim=0)
            factor = (counts / counts[y]).clamp(max=1) ** 0.8 * (share / share[y].clamp(min=0.01)).clamp(min=1) ** 2
            factor[y] = 1
            expected = (z + factor.log()).softmax(dim=0)
            expected[y] -= 1
        torch.testing.assert_close(logits.grad[i, :4], expected / 10)


def test_p_and_q_zero_is_objectness_softmax():
    loss, plain = SeesawLoss(5, p=0, q=0), ObjectnessSoftmax(5)
    logits, labels, weight, mask = problem(4, 5, 20)
    loss(logits, labels, update_state=True)
    torch.testing.assert_close(
        loss(logits, labels, weight=weight, class_mask=mask), plain(logits, labels, weight=weight, class_mask=mask)
    )
    assert torch.equal(loss.scores(logits), plain.scores(logits))


def test_counting_does_not_stop():
    loss = SeesawLoss(1)
    loss.counts += 2**24
    loss(torch.zeros(1, 3), torch.tensor([0]), update_state=True)
    assert loss.counts.item() == 2**24 + 1


def test_state_of_one_process_is_declared():
    assert SeesawLoss(2).per_rank == frozenset()
    assert SeesawLoss(2, sync=False).per_rank == {"counts"}


@pytest.mark.parametrize("wrong", [{"p": -1.0}, {"q": -1.0}, {"eps": 0.0}])
def test_refuses_nonsense(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SeesawLoss(3, **wrong)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=6))
def test_the_share_of_mitigated_cells_is_that_of_a_loop(counts):
    loss = SeesawLoss(len(counts))
    loss.counts.copy_(torch.tensor(counts))
    mitigated = cells = 0
    for i, rows in enumerate(counts):
        for _ in range(rows):
            others = [max(n, 1) for j, n in enumerate(counts) if j != i]
            mitigated += sum(other < rows for other in others)
            cells += len(others)
    assert loss.running_shares()["mitigated_cells"].item() == pytest.approx(mitigated / max(cells, 1), rel=1e-12)


def test_without_mitigation_there_is_no_share():
    assert SeesawLoss(3, p=0.0).running_shares() == SeesawLoss(1).running_shares() == {}
