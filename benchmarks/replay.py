"""Extra time of a training step with feature replay: ``python benchmarks/replay.py``.

Mask R-CNN R50-FPN with 1,203 classes on 2 pictures of 480 x 640, forward, backward and SGD step. One detector makes its
steps with and without the part in turns, so that a change of the machine's load hits both, and weights and memory are
the same. On a CPU the process's own time counts. Prints medians, the median of the ratios of neighbouring steps, the
rows that were added, and the memory of a full bank beside the formula.

Exit code 1 if a part is above its bound.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from longtail.models import CosineClassifier, ImageBatcher, LinearClassifier, mask_rcnn, resnet_fpn
from longtail.models.rcnn import ClassifierFactory
from longtail.replay import FeatureReplay, ObjectMemory, RegionRows, ReplayRows, VirtualFeatures

CLASSES, TARGETED, WIDTH = 1_203, 553, 1_024  # of LVIS v1: 553 classes have at most 30 images
HEIGHT, LENGTH, IMAGES, OBJECTS, WEAK_OBJECTS = 480, 640, 2, 10, 3


class Case(NamedTuple):
    """A part, the classifier it is used with, its bound on the extra time, and the bytes of its full bank."""

    part: Callable[[], FeatureReplay]
    classifier: ClassifierFactory
    bound: float
    bank: int


# the last classes are the weak ones
IS_WEAK = torch.arange(CLASSES) >= CLASSES - TARGETED
INSTANCES = (1e5 / torch.arange(1, CLASSES + 1)).long()
CASES = {
    "RIO": Case(lambda: ObjectMemory(CLASSES, IS_WEAK), CosineClassifier, 0.03, 4 * (WIDTH + 8) * 60 * TARGETED),
    "FASA": Case(lambda: VirtualFeatures(CLASSES, WIDTH, INSTANCES), LinearClassifier, 0.03, 4 * 2 * WIDTH * CLASSES),
}


class Counted(nn.Module):
    """A part that counts the rows it adds."""

    def __init__(self, part: FeatureReplay) -> None:
        super().__init__()
        self.part = part
        self.level = part.level
        self.rows: list[int] = []

    def step(self, *arguments: object) -> ReplayRows | None:
        extra: ReplayRows | None = self.part.step(*arguments)  # type: ignore[arg-type]
        self.rows.append(0 if extra is None else extra.labels.shape[0])
        return extra

    def after_logits(self, rows: RegionRows, logits: Tensor, update_state: bool) -> None:
        self.part.after_logits(rows, logits, update_state)


def batch(device: str) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Noise with rectangles; some objects of every picture belong to weak classes."""
    generator = torch.Generator().manual_seed(0)
    images, targets = [], []
    for _ in range(IMAGES):
        corner = torch.rand(OBJECTS, 2, generator=generator) * torch.tensor([LENGTH, HEIGHT]) * 0.6
        boxes = torch.cat([corner, corner + 50 + 130 * torch.rand(OBJECTS, 2, generator=generator)], dim=1)
        masks = torch.zeros(OBJECTS, HEIGHT, LENGTH, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        labels = torch.randint(0, CLASSES - TARGETED, (OBJECTS,), generator=generator)
        labels[:WEAK_OBJECTS] = torch.randint(CLASSES - TARGETED, CLASSES, (WEAK_OBJECTS,), generator=generator)
        images.append(torch.rand(3, HEIGHT, LENGTH, generator=generator).to(device))
        targets.append({"boxes": boxes.to(device), "labels": labels.to(device), "masks": masks.to(device)})
    return images, targets


def no_pool(boxes: object) -> Tensor:
    """RoIAlign, which none of these parts needs."""
    raise NotImplementedError


def fill(part: FeatureReplay, device: str) -> None:
    """Shows the part 60 regions of every class, as a long training would."""
    for labels in torch.arange(CLASSES).repeat_interleave(60).split(12_000):
        count = labels.shape[0]
        nowhere = torch.full((count,), -1, device=device)
        boxes = torch.tensor([[10.0, 10, 90, 90]], device=device).repeat(count, 1)
        features = torch.randn(count, WIDTH, device=device).relu()
        part.step(RegionRows(features, labels.to(device), boxes, boxes, nowhere, nowhere), [], no_pool, True)


def stepper(model: nn.Module, device: str) -> Callable[[], float]:
    """A function that makes one step and returns its seconds. The learning rate is so small that proposals stay."""
    images, targets = batch(device)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-8, momentum=0.9, weight_decay=1e-4)
    clock = time.perf_counter if device == "cuda" else time.process_time

    def step() -> float:
        torch.manual_seed(0)
        if device == "cuda":
            torch.cuda.synchronize()
        began = clock()
        optimiser.zero_grad(set_to_none=True)
        sum(model(images, targets).values()).backward()
        optimiser.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return clock() - began

    return step


def measure(name: str, case: Case, device: str, steps: int) -> bool:
    """Prints one part's figures; whether it keeps its bound."""
    torch.manual_seed(0)
    model = mask_rcnn(
        resnet_fpn("resnet50", weights=None, norm="batch", trainable_layers=5),
        num_classes=CLASSES,
        classifier=case.classifier,
        preprocess=ImageBatcher(short_side=HEIGHT, long_side=LENGTH),
    )
    model = model.to(device).train()
    part = Counted(case.part()).to(device)
    fill(part.part, device)
    with_part, without = nn.ModuleList([part]), nn.ModuleList()
    run = stepper(model, device)

    def one(replay: nn.ModuleList) -> float:
        model.box.replay = replay
        return run()

    for replay in (without, with_part):
        one(replay)
    pairs = []
    for index in range(steps):
        # who goes first alternates
        order = (without, with_part) if index % 2 else (with_part, without)
        seconds = [one(replay) for replay in order]
        pairs.append(seconds if index % 2 else seconds[::-1])
    plain, own = (statistics.median(pair[k] for pair in pairs) for k in (0, 1))
    extra = statistics.median(pair[1] / pair[0] for pair in pairs) - 1
    size = sum(buffer.nbytes for buffer in part.part.buffers())
    print(
        f"{name}: step {plain:.3f} s without, {own:.3f} s with; extra {100 * extra:+.2f} % (median of {steps} paired "
        f"ratios; bound {100 * case.bound:.0f} %); {statistics.median(part.rows):.0f} rows added per step; "
        f"memory {size / 1e6:.1f} MB, by the formula {case.bank / 1e6:.1f} MB",
        flush=True,
    )
    return extra <= case.bound


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each kind")
    parser.add_argument("--parts", default=",".join(CASES), help=f"default: {','.join(CASES)}")
    arguments = parser.parse_args()
    kept = [measure(name, CASES[name], arguments.device, arguments.steps) for name in arguments.parts.split(",")]
    sys.exit(0 if all(kept) else 1)


if __name__ == "__main__":
    main()
