"""The benchmarks know all parts."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def losses() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "losses.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_losses", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_loss_has_a_case_that_can_be_timed(losses: ModuleType) -> None:
    assert {case.name for case in losses.CASES} == losses.exported()
    images, instances, _ = losses.class_counts()
    for case in losses.CASES:
        assert losses.build(case, images, instances).num_classes == losses.CLASSES
