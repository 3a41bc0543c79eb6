"""Milliseconds per training picture with every augmentation: ``python benchmarks/augmentation.py TRAIN.json IMAGES``.

Reading, decoding masks and augmenting on one thread, in this process. The ``torchvision`` rows do the like with its own
transforms on the same pictures: large-scale jitter from its ``ScaleJitter`` and ``RandomCrop``, and copy-paste as its
training scripts do it, whole jittered pictures onto one another. The variants take turns, round by round, so that a
change of the machine's load hits all of them. Prints the median over the rounds and the median of the ratios to the
plain pipeline in the same round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from longtail.data import AnnotationTable
from longtail.data.dataset import DetectionDataset, Draw, seeded
from longtail.schema import load_recipe
from longtail.training.assemble import training_dataset

VARIANTS = {
    "plain": [],
    "large-scale jitter": ["images.resize={type: scale_jitter, size: [SIDE, SIDE]}"],
    "copy-paste, every picture": ["images.copy_paste={type: class_aware, probability: 1.0}"],
    "copy-paste, soft edge": ["images.copy_paste={type: class_aware, probability: 1.0, blur: 1.0}"],
    "step-wise colours": ["images.colour=stepwise"],
    "step-wise colours and crops": ["images.colour=stepwise", "images.resize=detr"],
}


def variants(table: AnnotationTable, images: Path, side: int, model: str) -> dict[str, Any]:
    """Data sets by name."""
    sizes = [f"images.short_sides=[{side}]", f"images.long_side={2 * side}", f"model={model}"]
    made: dict[str, Any] = {}
    for name, overrides in VARIANTS.items():
        chosen = [text.replace("SIDE", str(side)) for text in overrides]
        made[name] = training_dataset(load_recipe("baseline", [*sizes, *chosen]), table, images)
    made["torchvision jitter"] = DetectionDataset(
        table, images, transform=torchvision_jitter(side), with_masks=model == "mask_rcnn"
    )
    made["torchvision copy-paste"] = PastedPictures(table, images, side)
    return made


def torchvision_jitter(side: int) -> v2.Transform:
    """Large-scale jitter of torchvision."""
    return v2.Compose([
        v2.ScaleJitter((side, side), (0.1, 2.0)),
        v2.RandomCrop((side, side), pad_if_needed=True, fill={tv_tensors.Image: (124, 116, 104), tv_tensors.Mask: 0}),
        v2.RandomHorizontalFlip(0.5),
        v2.SanitizeBoundingBoxes(min_size=1, labels_getter=lambda inputs: inputs[1]["labels"]),
    ])  # fmt: skip


class PastedPictures:
    """Random objects of another jittered picture on a jittered picture, as in torchvision's training scripts."""

    def __init__(self, table: AnnotationTable, images: Path, side: int) -> None:
        self.jittered = DetectionDataset(table, images, transform=torchvision_jitter(side), with_masks=True)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor]:
        image, target = self.jittered[draw]
        with seeded(draw.seed):
            other = int(torch.randint(len(self.jittered), ()))
            donor, objects = self.jittered[Draw(other, draw.seed + 1)]
            chosen = torch.rand(len(objects["labels"])) < 0.5
        pasted = objects["masks"][chosen]
        covering = pasted.amax(dim=0) if len(pasted) else torch.zeros_like(image[0])
        masks = torch.cat((target["masks"] * (1 - covering), pasted))
        return torch.where(covering > 0, donor, image), masks[masks.flatten(1).any(dim=1) > 0]


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--side", type=int, default=512, help="shorter side, and side of the jitter, in pixels")
    parser.add_argument("--model", choices=["mask_rcnn", "faster_rcnn"], default="mask_rcnn")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pictures", type=int, default=25, help="per variant and round")
    given = parser.parse_args()
    torch.set_num_threads(1)
    table = AnnotationTable.from_coco(given.train)
    datasets = variants(table, given.images, given.side, given.model)
    times: dict[str, list[float]] = {name: [] for name in datasets}
    for turn in range(given.rounds + 1):
        chosen = np.random.default_rng(turn).integers(0, table.num_images, given.pictures).tolist()
        for name, dataset in datasets.items():
            began = time.perf_counter()
            for place, image in enumerate(chosen):
                dataset[Draw(image, 1000 * turn + place)]
            if turn:  # the first round warms up
                times[name].append((time.perf_counter() - began) / given.pictures * 1000)
    print(f"{given.model}, side {given.side}, {given.rounds} rounds of {given.pictures} pictures of {given.train}")
    print(f"{'':<28} {'ms/picture':>10} {'min':>7} {'max':>7} {'x plain':>8}")
    for name, values in times.items():
        ratio = statistics.median(a / b for a, b in zip(values, times["plain"], strict=True))
        print(f"{name:<28} {statistics.median(values):>10.1f} {min(values):>7.1f} {max(values):>7.1f} {ratio:>8.2f}")


if __name__ == "__main__":
    main()
