"""Without a process group nothing is summed or gathered; two ranks are tested in tests/contracts/test_two_ranks.py."""

import pytest
import torch

from longtail.losses.state import gather_on_first, gather_rows, shared_normalisers, sum_over_ranks


@pytest.mark.parametrize("share", [sum_over_ranks, gather_rows])
@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_one_process_keeps_its_own(share, sync, dtype):
    mine = torch.tensor([[1, 0], [2, 5]]).to(dtype)
    found = share(mine, sync=sync)
    assert found.dtype == dtype
    assert torch.equal(found, mine)


@pytest.mark.parametrize("share", [sum_over_ranks, gather_rows])
def test_no_gradient_flows(share):
    assert not share(torch.ones(3, requires_grad=True)).requires_grad


def test_no_rows():
    assert gather_rows(torch.empty(0, 4)).shape == (0, 4)
    assert gather_on_first(torch.empty(0, 4)).shape == (0, 4)


def test_counts_of_one_process_stay_what_they_are_but_at_least_one():
    own = torch.tensor(7)
    found = shared_normalisers([0, 3, torch.tensor(0), own], device=own.device)
    assert [float(value) for value in found] == [1, 3, 1, 7]
    assert found[3].dtype == torch.int64
