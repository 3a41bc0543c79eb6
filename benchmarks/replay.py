"""Extra time of a training step with feature replay: ``python benchmarks/replay.py``.

Mask R-CNN R50-FPN with 1,203 classes on 2 pictures of 480 x 640, forward, backward and SGD step; for LOCE what its
second stage trains, with its loss, which makes the step shorter and the share of the part larger. One detector makes
its steps with and without the part in turns, so that a change of the load of the machine hits both, and weights and
memory are the same. On a CPU the time of the process itself counts. Prints medians, the median and the quartiles of the
ratios of neighbouring steps, the rows that were added, and the memory of the stored rows beside the formula, which also
says that of a full bank.

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

from longtail.losses import ClassificationLoss, EquilibriumLoss, MeanScore
from longtail.models import CosineClassifier, ImageBatcher, LinearClassifier, mask_rcnn, resnet_fpn
from longtail.models.rcnn import ClassifierFactory
from longtail.replay import FeatureMemory, ObjectMemory, RegionRows, ReplayRows, VirtualFeatures

CLASSES, TARGETED, WIDTH = 1_203, 553, 1_024  # of LVIS v1: 553 classes have at most 30 images
HEIGHT, LENGTH, IMAGES, OBJECTS, WEAK_OBJECTS = 480, 640, 2, 10, 3


class Method(NamedTuple):
    """What is measured: the first of the parts adds rows, the others belong to it."""

    parts: list[nn.Module]
    loss: ClassificationLoss | None


class Case(NamedTuple):
    """A method, the classifier it is used with, its bound on the extra time, bytes of a row of its bank and rows of the
    full bank, the rows that are stored here, and the layers that do not train."""

    make: Callable[[], Method]
    classifier: ClassifierFactory
    bound: float
    row_bytes: int
    rows: int
    stored: int
    frozen: tuple[str, ...] = ()


def rio() -> Method:
    return Method([ObjectMemory(CLASSES, IS_WEAK)], None)


def fasa() -> Method:
    return Method([VirtualFeatures(CLASSES, WIDTH, INSTANCES)], None)


def loce() -> Method:
    """The classes that are in the memory have far lower scores than the others, so that they are drawn."""
    scores = MeanScore(CLASSES)
    scores.value[:CLASSES] = 1.0
    scores.value[:FILLED] = 1e-6
    return Method([FeatureMemory(CLASSES, scores), scores], EquilibriumLoss(scores))


# the last classes are the weak ones
IS_WEAK = torch.arange(CLASSES) >= CLASSES - TARGETED
INSTANCES = (1e5 / torch.arange(1, CLASSES + 1)).long()
FILLED = 40  # classes in LOCE's memory here: a full one is 4.8 GB
POOLED = 256 * 7 * 7
CASES = {
    "RIO": Case(rio, CosineClassifier, 0.03, 4 * (WIDTH + 8), 60 * TARGETED, 60 * TARGETED),
    "FASA": Case(fasa, LinearClassifier, 0.03, 4 * 2 * WIDTH, CLASSES, CLASSES),
    "LOCE": Case(loce, LinearClassifier, 0.10, 4 * (POOLED + 8), 80 * CLASSES, 80 * FILLED, ("backbone.", "box.head.")),
}


class Counted(nn.Module):
    """A part that counts the rows it adds."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        self.level = part.level
        self.rows: list[int] = []

    def step(self, *arguments: object) -> ReplayRows | None:
        extra: ReplayRows | None = self.part.step(*arguments)  # type: ignore[operator]
        self.rows.append(0 if extra is None else extra.labels.shape[0])
        return extra

    def after_logits(self, rows: RegionRows, logits: Tensor, update_state: bool) -> None:
        self.part.after_logits(rows, logits, update_state)  # type: ignore[operator]


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
    """RoIAlign, which the parts for embedded features do not need."""
    raise NotImplementedError


def region_rows(features: Tensor, labels: Tensor) -> RegionRows:
    """Regions with all the same boxes, which belong to no picture."""
    nowhere = torch.full_like(labels, -1)
    boxes = torch.tensor([[10.0, 10, 90, 90]], device=labels.device).repeat(labels.shape[0], 1)
    return RegionRows(features, labels, boxes, boxes, nowhere, nowhere)


def fill(part: nn.Module, device: str) -> None:
    """Shows the part 60 regions of every class, or LOCE's memory 5 objects of some, as a long training would."""
    if isinstance(part, FeatureMemory):
        empty = region_rows(torch.zeros(0, 256, 7, 7, device=device), torch.zeros(0, dtype=torch.int64, device=device))
        for label in range(FILLED):
            boxes = torch.tensor([[10.0, 10, 90, 90]] * 5, device=device)
            target = {"boxes": boxes, "labels": torch.full((5,), label, device=device)}
            part.step(empty, [target], lambda found: torch.randn(len(found[0]), 256, 7, 7, device=device).relu(), True)
        return
    for labels in torch.arange(CLASSES).repeat_interleave(60).split(12_000):
        features = torch.randn(labels.shape[0], WIDTH, device=device).relu()
        part.step(region_rows(features, labels.to(device)), [], no_pool, True)  # type: ignore[operator]


def stepper(model: nn.Module, device: str) -> Callable[[], float]:
    """A function that makes one step and returns its seconds. The learning rate is so small that proposals stay."""
    images, targets = batch(device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=1e-8, momentum=0.9, weight_decay=1e-4)
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
    method = case.make()
    model = mask_rcnn(
        resnet_fpn("resnet50", weights=None, norm="batch", trainable_layers=5),
        num_classes=CLASSES,
        classifier=case.classifier,
        classification_loss=method.loss,
        preprocess=ImageBatcher(short_side=HEIGHT, long_side=LENGTH),
    )
    model = model.to(device).train()
    for key, parameter in model.named_parameters():
        if key.startswith(case.frozen):
            parameter.requires_grad_(False)
    part = Counted(method.parts[0]).to(device)
    fill(part.part, device)
    size = sum(value.nbytes for value in part.part.state_dict().values())  # filled slots alone
    with_part, without = nn.ModuleList([part, *method.parts[1:]]).to(device), nn.ModuleList()
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
    ratios = [pair[1] / pair[0] - 1 for pair in pairs]
    extra = statistics.median(ratios)
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    print(
        f"{name}: step {plain:.3f} s without, {own:.3f} s with; extra {100 * extra:+.2f} % (median of {steps} paired "
        f"ratios, quartiles {100 * low:+.2f} and {100 * high:+.2f}; bound {100 * case.bound:.0f} %); "
        f"{statistics.median(part.rows):.0f} rows added per step; memory of {case.stored} stored rows "
        f"{size / 1e6:.1f} MB, by the formula {case.row_bytes * case.stored / 1e6:.1f} MB, of a full bank "
        f"{case.row_bytes * case.rows / 1e6:.1f} MB",
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
