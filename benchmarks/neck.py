"""Share of the balanced feature pyramid in a training step of Mask R-CNN: ``python benchmarks/neck.py``.

One picture of 480x640 pixels, ResNet-50, forward, backward and SGD step. The networks without a balanced pyramid, with
a fused and with an explicit attention take turns, so that a change of the machine's load hits all. Prints medians and
the median of ratios of neighbouring steps, then forward and backward of the balanced pyramid alone, which on a noisy
machine says more about its share.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from longtail.models import BalancedFeaturePyramid, ImageBatcher, mask_rcnn, resnet_fpn


def alone(fused: bool, images: int, height: int, width: int, device: str, repeats: int) -> float:
    """Median seconds of forward and backward of the balanced pyramid on maps of strides 4 to 64."""
    neck = BalancedFeaturePyramid(256, fused=fused).to(device)
    sizes = [(-(-height // stride), -(-width // stride)) for stride in (4, 8, 16, 32, 64)]
    maps = {str(i): torch.randn(images, 256, *size, device=device).requires_grad_() for i, size in enumerate(sizes)}
    seconds = []
    for _ in range(repeats + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        torch.stack([value.sum() for value in neck(maps).values()]).sum().backward()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--images", type=int, default=1, help="pictures per step")
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each network")
    arguments = parser.parse_args()
    height, width, device = arguments.height, arguments.width, arguments.device

    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, height, width, generator=generator).to(device) for _ in range(arguments.images)]
    boxes = torch.tensor([[40.0, 50.0, 200.0, 300.0], [300.0, 100.0, 500.0, 260.0], [20.0, 20.0, 60.0, 90.0]])
    masks = torch.zeros(3, height, width, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    target = {"boxes": boxes.to(device), "labels": torch.tensor([0, 1, 2], device=device), "masks": masks.to(device)}
    targets = [target] * arguments.images

    steps = {}
    for name in ("plain pyramid", "balanced, fused", "balanced, explicit"):
        torch.manual_seed(0)
        backbone = resnet_fpn("resnet50", weights=None, norm="batch", trainable_layers=5)
        if name != "plain pyramid":
            backbone.balance = BalancedFeaturePyramid(256, fused=name == "balanced, fused")
        batcher = ImageBatcher(short_side=min(height, width), long_side=max(height, width))
        model = mask_rcnn(backbone, num_classes=80, preprocess=batcher).to(device).train()
        # the learning rate is so small that proposals stay
        steps[name] = (model, torch.optim.SGD(model.parameters(), lr=1e-8, momentum=0.9))

    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in range(arguments.steps + 1):
        for name, (model, optimiser) in steps.items():
            if device == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            optimiser.zero_grad(set_to_none=True)
            sum(model(images, targets).values()).backward()
            optimiser.step()
            if device == "cuda":
                torch.cuda.synchronize()
            if step:  # the first one warms up
                seconds[name].append(time.perf_counter() - began)
    print(f"{device}, {arguments.images} x {height}x{width} px, median of {arguments.steps}")
    plain = seconds["plain pyramid"]
    for name, values in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(values, plain, strict=True))
        print(f"  {statistics.median(values):.3f} s  {ratio:.3f} of the plain step  {name}")
    for fused in (True, False):
        own = alone(fused, arguments.images, height, width, device, arguments.steps)
        share = own / statistics.median(plain)
        print(f"  {own:.3f} s  {share:.3f} of the plain step  alone, {'fused' if fused else 'explicit'}")


if __name__ == "__main__":
    main()
