"""What every exported box loss must do (seam 7)."""

import copy
import inspect
import pickle

import pytest
import torch
from contract_parts import BOX_LOSSES, build

every_loss = pytest.mark.parametrize("case", BOX_LOSSES)

# Weights from detached values that depend on which boxes count: see its own test file.
CROWD_WEIGHTS = frozenset({"GHMRegression"})

# Losses that weigh offsets by functions of *detached* errors: finite differences see a gradient that they leave out on
# purpose, so each has a gradient oracle in its own test file instead.
DETACHED_WEIGHTS = frozenset({"LGRL1Loss"})


def boxes(loss, rows, seed=0, dtype=torch.float32):
    """Predicted (wants a gradient) and target values in the loss's space."""
    generator = torch.Generator().manual_seed(seed)
    if loss.space == "deltas":
        predicted, target = (torch.randn(rows, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    else:
        corner = torch.rand(2, rows, 2, generator=generator, dtype=torch.float64) * 8
        size = torch.rand(2, rows, 2, generator=generator, dtype=torch.float64) * 10 + 1
        predicted, target = torch.cat([corner, corner + size], dim=2)
    return predicted.to(dtype).requires_grad_(), target.to(dtype)


def test_every_public_box_loss_is_in_the_suite():
    names = {case.values[0][0].__name__ for case in BOX_LOSSES}
    assert {"SmoothL1Loss", "L1Loss", "GIoULoss"} <= names


@every_loss
def test_states_and_documents_itself(case):
    assert build(case).space in ("deltas", "boxes")
    text = inspect.cleandoc(case[0].__doc__)
    assert "Shapes:" in text
    assert "(P, 4)" in text


@every_loss
def test_no_boxes(case):
    loss = build(case)
    predicted, target = boxes(loss, 0)
    value = loss(predicted, target)
    value.backward()
    assert value.item() == 0
    assert predicted.grad.shape == (0, 4)


@every_loss
def test_perfect_boxes_cost_nothing(case):
    loss = build(case)
    _, target = boxes(loss, 9)
    torch.testing.assert_close(loss(target.clone(), target), torch.zeros(()), atol=1e-6, rtol=0)


@every_loss
@pytest.mark.parametrize("size", [1e-4, 1e4])
def test_extreme_values(case, size):
    loss = build(case)
    predicted, target = boxes(loss, 20)
    far = (predicted.detach() * size).requires_grad_()
    value = loss(far, target) + loss(target, far)
    value.backward()
    assert value.isfinite()
    assert far.grad.isfinite().all()


@every_loss
def test_boxes_without_area(case):
    loss = build(case)
    point = torch.zeros(3, 4, requires_grad=True)
    value = loss(point, torch.zeros(3, 4))
    value.backward()
    assert value.isfinite()
    assert point.grad.isfinite().all()


@every_loss
def test_bfloat16_is_computed_in_float32(case):
    loss = build(case)
    predicted, target = boxes(loss, 20, dtype=torch.bfloat16)
    value = loss(predicted, target)
    value.backward()
    torch.testing.assert_close(value, loss(predicted.detach().float(), target.float()))
    assert predicted.grad.isfinite().all()


@every_loss
def test_gradient_agrees_with_finite_differences(case):
    if case[0].__name__ in CROWD_WEIGHTS:
        pytest.skip("its weights are detached and depend on which boxes count; see its own test file")
    if case[0].__name__ in DETACHED_WEIGHTS:
        pytest.skip("its weights are detached on purpose; see the gradient oracle in its own test file")
    loss = build(case)
    predicted, target = boxes(loss, 8, dtype=torch.float64)
    weight = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: loss(p, target, weight), (predicted,))


@every_loss
def test_rows_weights_and_normalisers(case):
    if case[0].__name__ in CROWD_WEIGHTS:
        pytest.skip("its weights are detached and depend on which boxes count; see its own test file")
    loss = build(case)
    predicted, target = boxes(loss, 5)
    rows = loss.row_losses(predicted, target)
    assert rows.shape == (5,)
    assert (rows >= 0).all()
    torch.testing.assert_close(loss(predicted, target), rows.sum() / 5)
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0])
    torch.testing.assert_close(loss(predicted, target, weight, 512), (rows * weight).sum() / 512)
    torch.testing.assert_close(loss(predicted, target, weight, torch.tensor(512.0)), (rows * weight).sum() / 512)


@every_loss
def test_ignored_boxes_count_for_nothing(case):
    loss = build(case)
    predicted, target = boxes(loss, 4)
    weight = torch.tensor([1.0, 0.0, 1.0, 1.0])
    spoilt = predicted.detach().clone()
    spoilt[1] = float("inf")
    value = loss(spoilt, target, weight, 1.0)
    kept = weight > 0
    torch.testing.assert_close(value, loss(predicted[kept], target[kept], None, 1.0))


@every_loss
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda part: pickle.loads(pickle.dumps(part))])
def test_can_be_copied_pickled_and_saved(case, duplicate):
    loss = build(case)
    predicted, target = boxes(loss, 5)
    value = loss(predicted, target)
    twin = duplicate(loss)
    twin.load_state_dict(loss.state_dict())
    assert torch.equal(twin(predicted, target), loss(predicted, target))
    assert torch.equal(value, build(case)(predicted, target))


@every_loss
def test_never_waits_for_the_device(case):
    """Tensors without data: whatever would read a value on the host fails."""
    loss = build(case).to("meta")
    predicted = torch.empty(7, 4, device="meta", requires_grad=True)
    loss(predicted, torch.empty(7, 4, device="meta"), torch.empty(7, device="meta")).backward()
    assert predicted.grad.shape == (7, 4)
