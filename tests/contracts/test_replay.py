"""What every exported replay part must do (seam 5)."""

import copy
import dataclasses
import inspect
import pickle

import pytest
import torch
from contract_parts import REPLAYS, build, copies, region_rows, same, step_inputs

from longtail.replay import RegionRows, ReplayRows

every_part = pytest.mark.parametrize("case", REPLAYS)


def step(part, rows, update_state=True):
    """One training step as the region head makes it, with the loss's logits left out."""
    targets, pool = step_inputs(part.level)
    return part.step(rows, targets, pool, update_state)


def steps(part, count=4, dtype=torch.float32):
    """The last of several steps that gave rows, after all of them."""
    found = None
    for seed in range(count):
        torch.manual_seed(seed)
        found = step(part, region_rows(30, part.level, seed=seed, dtype=dtype)) or found
    return found


def tensors(rows):
    """Fields that are tensors, by name."""
    values = {field.name: getattr(rows, field.name) for field in dataclasses.fields(rows)}
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


def test_every_public_part_is_in_the_suite():
    assert "ObjectMemory" in {case.values[0][0].__name__ for case in REPLAYS}


@every_part
def test_states_and_documents_itself(case):
    part = build(case)
    assert part.level in ("pooled", "embedded")
    assert part.per_rank <= dict(part.named_buffers()).keys()
    assert not list(part.parameters())
    text = inspect.cleandoc(case[0].__doc__)
    assert "Shapes:" in text
    assert "(N, " in text


@every_part
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_fit_the_head(case, dtype):
    part = build(case)
    extra = steps(part, dtype=dtype)
    assert isinstance(extra, ReplayRows), "four steps with every class present gave nothing"
    count = extra.labels.shape[0]
    assert count > 0
    assert all(value.shape[0] == count for value in tensors(extra).values())
    assert extra.features.shape[1:] == region_rows(1, part.level).features.shape[1:]
    assert extra.features.dtype == dtype
    assert extra.labels.dtype == torch.long
    assert ((extra.labels >= 0) & (extra.labels < 5)).all()  # never background
    assert extra.proposals.shape == extra.gt_boxes.shape == (count, 4)
    assert (extra.weight >= 0).all()
    assert extra.loss_weight >= 0


@every_part
def test_rows_carry_no_graph_unless_they_replace_rows_of_this_step(case):
    extra = steps(build(case))
    with_graph = {name for name, value in tensors(extra).items() if value.requires_grad}
    assert with_graph == (set() if extra.replaces is None else {"features"})


@every_part
def test_no_rows_and_background_only(case):
    part = build(case)
    rows = region_rows(30, part.level)
    nothing = RegionRows(**{name: value[:0] for name, value in tensors(rows).items()})
    background = dataclasses.replace(rows, labels=torch.full_like(rows.labels, 5))
    for given in (nothing, background):
        extra = step(part, given)
        assert extra is None or isinstance(extra, ReplayRows)


@every_part
def test_nothing_happens_without_update_state(case):
    part = build(case)
    steps(part)
    kept, random_state = copies(part), torch.get_rng_state()
    rows = region_rows(30, part.level, seed=7)
    assert step(part, rows, update_state=False) is None
    part.after_logits(rows, torch.zeros(30, 6), False)
    assert same(kept, copies(part))
    assert torch.equal(torch.get_rng_state(), random_state)


@every_part
def test_leaves_this_steps_rows_alone(case):
    part = build(case)
    steps(part)
    rows = region_rows(30, part.level, seed=7)
    kept = {name: value.detach().clone() for name, value in tensors(rows).items()}
    extra = step(part, rows)
    assert same(kept, tensors(rows))
    if extra is not None:
        with torch.no_grad():
            extra.features.add_(1)
        assert same(kept, tensors(rows))


@every_part
def test_everything_it_keeps_is_a_buffer(case):
    part = build(case)
    steps(part)
    for module in part.modules():
        loose = [name for name, value in vars(module).items() if isinstance(value, torch.Tensor)]
        assert not loose, f"kept outside the state dict: {loose}"
    assert not any(buffer.requires_grad for buffer in part.buffers())


@every_part
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda part: pickle.loads(pickle.dumps(part)), None], ids=["copy", "pickle", "state"]
)
def test_a_restored_part_continues_exactly(case, duplicate):
    part = build(case)
    steps(part)
    if duplicate is None:
        twin = build(case)
        twin.load_state_dict(part.state_dict())
    else:
        twin = duplicate(part)
    found = []
    for one in (part, twin):
        torch.manual_seed(3)
        found.append(step(one, region_rows(30, part.level, seed=8)))
    assert (found[0] is None) == (found[1] is None)
    assert found[0] is None or same(tensors(found[0]), tensors(found[1]))
    assert same(copies(part), copies(twin))


@every_part
def test_is_deterministic(case):
    first, second = build(case), build(case)
    assert same(tensors(steps(first)), tensors(steps(second)))
    assert same(copies(first), copies(second))
