"""Training step of our Mask R-CNN with plain parts over that of torchvision's: ``python benchmarks/step_time.py``.

Same weights, pictures and number of regions; forward, backward and SGD step. The two take turns, so that a change of
the machine's load hits both. Prints the medians, their ratio and the median of the ratios of neighbouring steps.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models.detection import maskrcnn_resnet50_fpn

from longtail.models import ImageBatcher, from_torchvision, mask_rcnn, resnet_fpn

Target = dict[str, Tensor]


def models(num_classes: int, size: int, device: str) -> tuple[nn.Module, nn.Module]:
    """Torchvision's model and ours with the same weights."""
    torch.manual_seed(0)
    theirs = maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=num_classes + 1, min_size=size, max_size=2 * size
    )
    theirs.transform._skip_resize = True
    ours = mask_rcnn(
        resnet_fpn("resnet50", weights=None, norm="batch", trainable_layers=5),
        num_classes=num_classes,
        preprocess=ImageBatcher(short_side=size, long_side=2 * size),
    )
    ours.load_state_dict(from_torchvision(theirs.state_dict(), num_classes))
    return theirs.to(device).train(), ours.to(device).train()


def batch(images: int, size: int, objects: int, num_classes: int, device: str) -> tuple[list[Tensor], list[Target]]:
    """Noise with rectangles in it."""
    generator = torch.Generator().manual_seed(0)
    pictures, targets = [], []
    for _ in range(images):
        corner = torch.rand(objects, 2, generator=generator) * size * 0.6
        boxes = torch.cat([corner, corner + size * (0.1 + 0.3 * torch.rand(objects, 2, generator=generator))], dim=1)
        masks = torch.zeros(objects, size, size, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        labels = torch.randint(0, num_classes, (objects,), generator=generator)
        pictures.append(torch.rand(3, size, size, generator=generator).to(device))
        targets.append({"boxes": boxes.to(device), "labels": labels.to(device), "masks": masks.to(device)})
    return pictures, targets


def stepper(model: nn.Module, images: list[Tensor], targets: list[Target], device: str) -> Callable[[], float]:
    """A function that makes one step and returns its seconds. The learning rate is so small that proposals stay."""
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-8, momentum=0.9, weight_decay=1e-4)

    def step() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        sum(model(images, targets).values()).backward()
        optimiser.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--images", type=int, default=2, help="pictures per step")
    parser.add_argument("--size", type=int, default=320, help="side of the pictures in pixels")
    parser.add_argument("--objects", type=int, default=10, help="objects per picture")
    parser.add_argument("--classes", type=int, default=90)
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each model")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before that")
    arguments = parser.parse_args()

    theirs, ours = models(arguments.classes, arguments.size, arguments.device)
    images, targets = batch(arguments.images, arguments.size, arguments.objects, arguments.classes, arguments.device)
    shifted = [{**target, "labels": target["labels"] + 1} for target in targets]
    reference = stepper(theirs, images, shifted, arguments.device)
    own = stepper(ours, images, targets, arguments.device)
    for _ in range(arguments.warm_up):
        reference()
        own()
    pairs = []
    for index in range(arguments.steps):
        # who goes first alternates
        first, second = (reference, own) if index % 2 else (own, reference)
        seconds = (first(), second())
        pairs.append(seconds if index % 2 else seconds[::-1])
    median_reference = statistics.median(pair[0] for pair in pairs)
    median_own = statistics.median(pair[1] for pair in pairs)
    paired = statistics.median(pair[1] / pair[0] for pair in pairs)
    print(
        f"{arguments.device}, {arguments.images} x {arguments.size} px, {arguments.classes} classes, "
        f"median of {arguments.steps}: torchvision {median_reference:.4f} s, ours {median_own:.4f} s, "
        f"ratio {median_own / median_reference:.3f}, median of paired ratios {paired:.3f}"
    )


if __name__ == "__main__":
    main()
