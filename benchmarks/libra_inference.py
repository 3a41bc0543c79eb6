"""Pictures per second of Libra R-CNN against Faster R-CNN when detecting: ``python benchmarks/libra_inference.py``.

Both as their recipes build them at the scale ``coco``, with a ResNet-50 and untrained weights, which are the same where
both have them. The two take turns, so that a change of the machine's load hits both. Prints medians, pictures per
second and the median of the ratios of neighbouring runs; then the balanced pyramid alone, which is all that Libra adds
here and on a noisy machine says more about its share.

On a CPU the seconds are those of the process itself, summed over its threads, which other processes disturb less than
the clock; take one thread (``OMP_NUM_THREADS=1``). On a GPU they are the clock's.

The paper has 20.4 and 19.5 pictures per second, a ratio of 1.046; ours should be at most 1.05.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from longtail.build.model import build_model
from longtail.data import ClassStatistics
from longtail.models import BalancedFeaturePyramid
from longtail.models.base import TrainableModel
from longtail.schema import load_recipe

CLASSES = 80


def detector(name: str, height: int, width: int) -> TrainableModel:
    """The recipe's detector, untrained, in evaluation mode, for pictures that need no resizing. All regions that are
    proposed stay, 1,000 of them: how many the NMS leaves would differ, untrained as they are."""
    changes = [f"images.test_short_side={min(height, width)}", f"images.test_long_side={max(height, width)}"]
    recipe = load_recipe(name, ["scale=coco", "model=faster_rcnn", "model.proposals.nms_threshold=1", *changes])
    counts = np.full(CLASSES, 1000)
    statistics_ = ClassStatistics(
        names=[f"class {number}" for number in range(CLASSES)],
        image_counts=counts,
        instance_counts=counts,
        num_images=1000,
        num_nonempty=1000,
    )
    torch.manual_seed(0)
    return build_model(recipe, recipe.stages[-1], statistics_, pretrained=False).eval()


def same_weights(source: TrainableModel, target: TrainableModel) -> None:
    """Copies what both have, so that both propose and detect about as much."""
    missing = target.load_state_dict(source.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert all("balance" in key for key in missing.missing_keys), missing.missing_keys


def timed(work: Callable[[], object], device: str) -> float:
    """Seconds of one call."""
    if device == "cpu":
        began = time.process_time()
        work()
        return time.process_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--height", type=int, default=480, help="the paper's pictures: 800")
    parser.add_argument("--width", type=int, default=640, help="the paper's pictures: 1333")
    parser.add_argument("--repeats", type=int, default=10, help="timed runs of each")
    arguments = parser.parse_args()
    height, width, device, repeats = arguments.height, arguments.width, arguments.device, arguments.repeats

    plain, libra = (detector(name, height, width) for name in ("baseline", "libra-faster"))
    same_weights(plain, libra)
    detectors = {"Faster R-CNN": plain.to(device), "Libra R-CNN": libra.to(device)}
    neck = BalancedFeaturePyramid(256).to(device).eval()
    picture = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0)).to(device)
    sizes = [(-(-height // stride), -(-width // stride)) for stride in (4, 8, 16, 32, 64)]
    maps = {f"p{level}": torch.randn(1, 256, *size, device=device) for level, size in enumerate(sizes, 2)}

    seconds: dict[str, list[float]] = {name: [] for name in (*detectors, "balanced pyramid alone")}
    with torch.inference_mode():
        for repeat in range(repeats + 1):
            found = {name: timed(lambda m=model: m.detect([picture]), device) for name, model in detectors.items()}
            found["balanced pyramid alone"] = timed(lambda: neck(maps), device)
            for name, value in found.items():
                if repeat:  # the first one warms up
                    seconds[name].append(value)

    first = seconds["Faster R-CNN"]
    print(f"{device}, {torch.get_num_threads()} threads, {height}x{width} px, median of {repeats}")
    for name, values in seconds.items():
        median = statistics.median(values)
        ratio = statistics.median(value / base for value, base in zip(values, first, strict=True))
        print(f"  {median:.4f} s  {1 / median:6.2f} a second  {ratio:.3f} of Faster R-CNN  {name}")


if __name__ == "__main__":
    main()
