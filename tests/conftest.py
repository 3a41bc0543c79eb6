"""What several test files share."""

import os
from pathlib import Path

import pytest
import torch

from longtail.data.scenes import GeneratedSet
from longtail.data.shapes import make_shapes


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests and the processes they start leave the user's cache alone."""
    os.environ["LONGTAIL_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def smoke_set(tmp_path_factory: pytest.TempPathFactory) -> GeneratedSet:
    """The smallest generated set: 64 px, 12 classes, 120 + 40 pictures, masks. Not to be changed."""
    return make_shapes(tmp_path_factory.mktemp("generated") / "smoke", preset="smoke")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets beside the checkout; tests that want them are skipped where they are absent."""
    folder = Path(__file__).parents[1].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real data beside the checkout")
    return folder
