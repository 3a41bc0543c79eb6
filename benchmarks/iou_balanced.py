"""Time of the region samplers per image: ``python benchmarks/iou_balanced.py``.

2,000 proposals of one picture, about a tenth of them positive; 512 regions are drawn. Samplers take turns, so that a
change of the machine's load hits all. Prints the median milliseconds per image of each.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from longtail.sampling import (
    ClassBalancedPositives,
    InstanceBalancedPositives,
    IoUBalancedNegatives,
    RandomRegions,
    RegionSampler,
)


def candidates(count: int, objects: int, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """IoU and match of every candidate, many of small IoU and few of large, and the objects' classes."""
    generator = torch.Generator().manual_seed(0)
    iou = torch.rand(count, generator=generator) ** 3
    owner = torch.randint(0, objects, (count,), generator=generator)
    labels = torch.randint(0, 80, (objects,), generator=generator)
    return iou.to(device), torch.where(iou >= 0.5, owner, -1).to(device), labels.to(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--proposals", type=int, default=2000)
    parser.add_argument("--objects", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=300)
    arguments = parser.parse_args()

    balanced = IoUBalancedNegatives(512, 0.25)
    samplers: dict[str, RegionSampler] = {
        "random": RandomRegions(512, 0.25),
        "IoU-balanced": balanced,
        "IoU-balanced as released": IoUBalancedNegatives.released(512, 0.25),
        "IoU-balanced, positives per object": InstanceBalancedPositives(512, 0.25, negatives=balanced),
        "IoU-balanced, positives per class": ClassBalancedPositives(512, 0.25, negatives=balanced),
    }
    iou, matched, labels = candidates(arguments.proposals, arguments.objects, arguments.device)
    generator = torch.Generator(device=arguments.device).manual_seed(0)
    seconds: dict[str, list[float]] = {name: [] for name in samplers}
    for repeat in range(arguments.repeats + 10):
        for name, sampler in samplers.items():
            if arguments.device == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            sampler(iou, matched, labels, generator)
            if arguments.device == "cuda":
                torch.cuda.synchronize()
            if repeat >= 10:  # the first ones warm up
                seconds[name].append(time.perf_counter() - began)
    print(f"{arguments.device}, {arguments.proposals} proposals, median of {arguments.repeats}, ms per image:")
    for name, values in seconds.items():
        print(f"  {statistics.median(values) * 1000:6.3f}  {name}")


if __name__ == "__main__":
    main()
