"""Every classification loss over torch's plain one, and over a training step: ``python benchmarks/losses.py``.

1,024 regions, three quarters of them background, 1,203 classes with the training counts of LVIS v1 (or a generated
long tail where its counts are not beside the checkout). Forward and backward of the loss alone, its state changing as
in training, with class draws. The plain loss (softmax cross-entropy, or binary cross-entropy with a target made
beforehand) is timed before and after each step of the loss; the ratio is that to their mean, its median over the rounds
is printed. The step is that of Mask R-CNN R50-FPN with a plain loss on 2 images of 480 x 640.

Exit code 1 if a loss is above its bound: 3 times the plain loss, 8 times for those that modulate every cell by its own
gradient or probability (marked ``modulated``), and 1 % of the step.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import inspect
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import longtail.losses
from longtail.losses import ClassificationLoss, LDAMLoss
from longtail.models import ImageBatcher, mask_rcnn, resnet_fpn

REGIONS, CLASSES = 1_024, 1_203
COUNTS = Path(__file__).parents[2] / "shared" / "data" / "lvis_counts" / "lvis_counts.csv"
BOUND = {False: 3.0, True: 8.0}
STEP_SHARE = 0.01
Kind = Literal["softmax", "sigmoid"]


class Case(NamedTuple):
    """One loss with options. ``plain`` is what it is compared with."""

    name: str
    plain: Kind
    options: Mapping[str, Any] = {}
    modulated: bool = False


CASES = (
    Case("ACSLoss", "sigmoid"),
    Case("BalancedSoftmaxLoss", "softmax"),
    Case("BalancedSoftmaxLoss", "sigmoid", {"form": "sigmoid"}),
    Case("BucketedReweightingLoss", "sigmoid"),
    Case("BucketedReweightingLoss", "sigmoid", {"lgr": True}, modulated=True),
    Case("ClassBalancedLoss", "softmax"),
    Case("ClassBalancedLoss", "sigmoid", {"form": "sigmoid"}),
    Case("ClassBalancedLoss", "sigmoid", {"form": "focal"}, modulated=True),
    Case("DropLoss", "sigmoid"),
    Case("EqualizationLoss", "sigmoid"),
    Case("EqualizationLoss", "softmax", {"form": "softmax"}),
    Case("EqualizationLossV2", "sigmoid"),
    Case("EqualizedFocalLoss", "sigmoid", modulated=True),
    Case("EquilibriumLoss", "softmax"),
    Case("FederatedLoss", "sigmoid"),
    Case("FocalLoss", "sigmoid", modulated=True),
    Case("FocalLoss", "softmax", {"form": "softmax"}),
    Case("GHMClassification", "sigmoid", modulated=True),
    Case("GroupSoftmaxLoss", "softmax"),
    Case("LDAMLoss", "softmax"),
    Case("LGRCrossEntropy", "softmax"),
    Case("LGRCrossEntropy", "softmax", {"norm": "l1_half"}),
    Case("LGRCrossEntropy", "softmax", {"norm": "l2"}),
    Case("LGRCrossEntropy", "sigmoid", {"form": "sigmoid"}, modulated=True),
    Case("LogitAdjustedLoss", "softmax"),
    Case("ObjectnessSoftmax", "softmax"),
    Case("SeesawLoss", "softmax"),
    Case("SigmoidCrossEntropy", "sigmoid"),
    Case("SigmoidCrossEntropy", "sigmoid", {"background_logit": True}),
    Case("SoftmaxCrossEntropy", "softmax"),
)


def exported() -> set[str]:
    """Names of all classification losses."""
    members = {name: getattr(longtail.losses, name) for name in longtail.losses.__all__}
    return {
        name
        for name, member in members.items()
        if inspect.isclass(member) and issubclass(member, ClassificationLoss) and not inspect.isabstract(member)
    }


def class_counts() -> tuple[Tensor, Tensor, str]:
    """Training images and instances of every class, (C,) each, and where they are from."""
    if COUNTS.is_file():
        with COUNTS.open() as file:
            rows = [row for row in csv.DictReader(file) if row["version"] == "v1.0"]
        images, instances = (
            torch.tensor([int(row[f"train_{key}"]) for row in rows]) for key in ("images", "instances")
        )
        return images, instances, "LVIS v1"
    images = (2_000 * torch.arange(1, CLASSES + 1).double().pow(-1.0)).ceil().long()
    return images, 3 * images, "generated"


def build(case: Case, images: Tensor, instances: Tensor) -> ClassificationLoss:
    """The loss for the given counts."""
    arguments = {
        "num_classes": CLASSES,
        "class_counts": images,
        "guide": images,
        "image_counts": images,
        "instance_counts": instances,
        "image_frequency": images.double() / images.max().clamp(min=100_170),
    }
    kind = getattr(longtail.losses, case.name)
    required = [
        name for name, p in inspect.signature(kind).parameters.items() if p.default is p.empty and name in arguments
    ]
    built = kind(**{name: arguments[name] for name in required}, **case.options)
    assert isinstance(built, ClassificationLoss)
    return built


def stepper(loss: ClassificationLoss, labels: Tensor, device: str) -> Callable[[], float]:
    """A function that makes one forward and backward pass and returns its seconds."""
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(len(labels), loss.num_logits, generator=draw)
    # LDAM takes cosines, which it scales itself
    logits = logits.tanh() if isinstance(loss, LDAMLoss) else logits - 3
    logits = logits.to(device).requires_grad_()
    loss.to(device).train()
    return partial(timed, partial(loss, logits, labels, generator=torch.Generator(device).manual_seed(2)), logits)


def plain_stepper(kind: Kind, labels: Tensor, device: str) -> Callable[[], float]:
    """The same for torch's own loss."""
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(len(labels), CLASSES + 1, generator=draw).sub(3).to(device).requires_grad_()
    if kind == "softmax":
        return partial(timed, partial(F.cross_entropy, logits, labels), logits)
    target = F.one_hot(labels, CLASSES + 1).float()

    def binary() -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(labels)

    return partial(timed, binary, logits)


def timed(loss: Callable[[], Tensor], logits: Tensor) -> float:
    """Seconds of one forward and backward pass."""
    logits.grad = None
    began = now(logits)
    loss().backward()
    return now(logits) - began


def now(tensor: Tensor) -> float:
    """Seconds, when the tensor's device has finished. One thread on the CPU counts what the process itself has used,
    so that others on the machine disturb less."""
    if tensor.is_cuda:
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def detector_step(device: str, rounds: int) -> float:
    """Median seconds of a training step of Mask R-CNN R50-FPN with softmax cross-entropy, 2 images of 480 x 640."""
    torch.manual_seed(0)
    model = mask_rcnn(
        resnet_fpn("resnet50", weights=None, norm="batch", trainable_layers=5),
        num_classes=CLASSES,
        preprocess=ImageBatcher(short_side=480, long_side=640),
    )
    model.to(device).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-8, momentum=0.9, weight_decay=1e-4)
    draw = torch.Generator().manual_seed(0)
    images, targets = [], []
    for _ in range(2):
        corner = torch.rand(10, 2, generator=draw) * 250
        boxes = torch.cat([corner, corner + 50 + 150 * torch.rand(10, 2, generator=draw)], dim=1)
        labels = torch.randint(0, CLASSES, (10,), generator=draw)
        masks = torch.ones(10, 480, 640, dtype=torch.uint8)
        images.append(torch.rand(3, 480, 640, generator=draw).to(device))
        targets.append({"boxes": boxes.to(device), "labels": labels.to(device), "masks": masks.to(device)})
    seconds = []
    for _ in range(rounds + 1):
        began = now(images[0])
        optimiser.zero_grad(set_to_none=True)
        sum(model(images, targets).values()).backward()
        optimiser.step()
        seconds.append(now(images[0]) - began)
    return statistics.median(seconds[1:])


def measure(own: Callable[[], float], plain: Callable[[], float], rounds: int) -> tuple[float, float]:
    """Median seconds and median ratio to the plain loss just before and after."""
    for _ in range(3):
        own(), plain()
    before, seconds, ratios = plain(), [], []
    for _ in range(rounds):
        second, after = own(), plain()
        seconds.append(second)
        ratios.append(2 * second / (before + after))
        before = after
    return statistics.median(seconds), statistics.median(ratios)


def table(cases: list[Case], rounds: int, step: float | None, device: str) -> Iterator[tuple[str, bool]]:
    """Lines of the table and whether each is within its bounds."""
    images, instances, source = class_counts()
    draw = torch.Generator().manual_seed(0)
    labels = torch.full((REGIONS,), CLASSES)
    labels[: REGIONS // 4] = torch.multinomial(instances.double(), REGIONS // 4, replacement=True, generator=draw)
    labels = labels[torch.randperm(REGIONS, generator=draw)].to(device)
    shown = "not measured" if step is None else f"{step:.2f} s"
    yield (
        f"counts: {source}; {device}, {torch.get_num_threads()} threads; {rounds} rounds; training step: {shown}\n",
        True,
    )
    yield "| loss | plain | ms | ratio | at most | % of a step |", True
    yield "|---|---|---:|---:|---:|---:|", True
    for case in cases:
        own = stepper(build(case, images, instances), labels, device)
        seconds, ratio = measure(own, plain_stepper(case.plain, labels, device), rounds)
        share = None if step is None else seconds / step
        bound = BOUND[case.modulated]
        good = ratio <= bound and (share is None or share <= STEP_SHARE)
        options = "".join(f", {key}={value}" for key, value in case.options.items())
        limit = f"{bound:.0f}{' (modulated)' if case.modulated else ''}"
        percent = "-" if share is None else f"{100 * share:.3f}"
        cells = [f"{case.name}{options}", case.plain, f"{1e3 * seconds:.1f}", f"{ratio:.2f}", limit, percent]
        yield f"| {' | '.join(cells)} |{'' if good else ' missed'}", good


def keep_freed_memory() -> None:
    """Otherwise each large tensor may be memory that is new to the process, and touching that takes longer than the
    loss, now of the one, now of the other. Has an effect with the C library of most Linux systems."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        for option in (-1, -3):  # sizes from which memory is given back, and taken from outside of the heap
            set_option(option, 2**30)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", nargs="+", metavar="CLASS", choices=sorted(exported()), help="default: all")
    parser.add_argument("--rounds", type=int, default=30, help="timed steps of each loss")
    parser.add_argument("--detector-rounds", type=int, default=3, help="timed steps of the detector")
    parser.add_argument("--skip-detector", action="store_true", help="without the share of a training step")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    forgotten = exported() - {case.name for case in CASES}
    if forgotten:
        sys.exit(f"no case for {', '.join(sorted(forgotten))}: add them to CASES of {os.path.basename(__file__)}")
    cases = [case for case in CASES if arguments.losses is None or case.name in arguments.losses]
    keep_freed_memory()
    step = None if arguments.skip_detector else detector_step(arguments.device, arguments.detector_rounds)
    results = []
    for line, good in table(cases, arguments.rounds, step, arguments.device):
        print(line, flush=True)
        results.append(good)
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
