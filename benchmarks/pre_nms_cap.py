"""Post-processing of one picture with 1,203 sigmoid classes, with and without the cap before non-maximum suppression:
``python benchmarks/pre_nms_cap.py``.

Scores are those of a random head: at LVIS's threshold of 1e-4 nearly every (region, class) pair is a candidate. Prints
seconds per picture and whether the detections are the same.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder

from longtail.models.postprocess import Inference, select_detections

SIZE = (800, 1216)
CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))


def head_outputs(regions: int, classes: int, device: str, *, agnostic: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, deltas and proposals of one picture."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(regions, 2, generator=generator) * 700
    proposals = torch.cat([corner, corner + 10 + torch.rand(regions, 2, generator=generator) * 300], dim=1)
    scores = (torch.randn(regions, classes + 1, generator=generator) * 1.5 - 6.9).sigmoid()
    deltas = torch.randn(regions, 4 if agnostic else 4 * classes, generator=generator) * 0.5
    return scores.to(device), deltas.to(device), proposals.to(device)


def timed(
    inputs: tuple[Tensor, Tensor, Tensor], inference: Inference, repeats: int
) -> tuple[float, tuple[Tensor, ...]]:
    """Median seconds, and the detections."""
    seconds = []
    for _ in range(repeats):
        if inputs[0].is_cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        found = select_detections(*inputs, CODER, SIZE, inference)
        if inputs[0].is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--regions", type=int, default=1000)
    parser.add_argument("--classes", type=int, default=1203)
    parser.add_argument("--cap", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--class-agnostic", action="store_true")
    arguments = parser.parse_args()

    inputs = head_outputs(arguments.regions, arguments.classes, arguments.device, agnostic=arguments.class_agnostic)
    inference = Inference(pre_nms_cap=arguments.cap)
    candidates = int((inputs[0][:, :-1] > inference.score_threshold).sum())
    capped, found = timed(inputs, inference, arguments.repeats)
    whole, everything = timed(inputs, replace(inference, pre_nms_cap=None), arguments.repeats)
    same = all(torch.equal(mine, other) for mine, other in zip(found, everything, strict=True))
    print(
        f"{arguments.device}, {candidates} candidates: cap {arguments.cap} {capped:.3f} s, no cap {whole:.3f} s per "
        f"picture ({whole / capped:.1f} times); same {len(everything[0])} detections: {same}"
    )


if __name__ == "__main__":
    main()
