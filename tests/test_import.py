"""What is loaded when, and the public names."""

from __future__ import annotations

import subprocess
import sys

import pytest

import longtail

HEAVY = ("torch", "torchvision", "numpy", "pydantic", "yaml", "rich", "matplotlib", "PIL")


def loaded_by(code: str) -> set[str]:
    """Which of the heavy packages a fresh Python has after running ``code``."""
    report = f"{code}\nimport sys\nprint(*[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "code",
    [
        "import longtail",
        "from longtail.cli.main import main\ntry:\n    main(['--help'])\nexcept SystemExit: pass",
        "from longtail.cli.main import main\ntry:\n    main(['train', '--help'])\nexcept SystemExit: pass",
        "from longtail.cli.main import main\ntry:\n    main(['tarin'])\nexcept SystemExit: pass",
    ],
)
def test_nothing_heavy_is_loaded(code: str) -> None:
    # the last case writes its message to standard error, too
    assert not loaded_by(code) & set(HEAVY)


def test_recipes_need_no_torch() -> None:
    code = "import longtail\nlongtail.load_recipe('baseline')"
    assert not loaded_by(code) & {"torch", "torchvision", "numpy"}


def test_public_names() -> None:
    from longtail.schema import Recipe, load_recipe

    assert longtail.Recipe is Recipe
    assert longtail.load_recipe is load_recipe
    assert set(longtail.__all__) <= set(dir(longtail))
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = longtail.nothing_of_the_kind  # type: ignore[attr-defined]


def test_the_training_functions_are_reachable() -> None:
    from longtail.training import api

    assert (longtail.train, longtail.resume, longtail.evaluate, longtail.predict) == (
        api.train,
        api.resume,
        api.evaluate,
        api.predict,
    )
