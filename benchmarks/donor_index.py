"""Copy-paste's index of donors at the size of LVIS v1: ``python benchmarks/donor_index.py``.

Prints the time to build it, its size, the time of a draw, and how much memory of its own a forked process writes to
while it draws. The annotations are random numbers in columns; no file is read. Linux only.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from longtail.data import AnnotationTable
from longtail.data.copy_paste import DonorIndex
from longtail.data.masks import MaskColumn


def columns(images: int, classes: int, objects: int) -> AnnotationTable:
    """A table of random annotations, few classes frequent, each with an (empty) polygon."""
    rng = np.random.default_rng(0)
    image_index = np.sort(rng.integers(0, images, objects)).astype(np.int32)
    masks = MaskColumn(
        kind=np.ones(objects, np.uint8),
        polygon_start=np.zeros(objects + 1, np.int64),
        point_start=np.zeros(1, np.int64),
        points=np.zeros(0),
        code_start=np.zeros(objects + 1, np.int64),
        codes=np.zeros(0, np.uint8),
        code_size=np.zeros((objects, 2), np.int32),
    )
    return replace(
        AnnotationTable.from_image_list([Path("none.jpg")]),
        image_ids=np.arange(images),
        file_names=[""] * images,
        category_ids=np.arange(classes),
        category_names=[""] * classes,
        annotation_ids=np.arange(objects),
        image_index=image_index,
        label=np.minimum(rng.pareto(0.6, objects), classes - 1).astype(np.int32),
        boxes_xywh=np.ones((objects, 4)),
        area=np.ones(objects),
        iscrowd=np.zeros(objects, np.bool_),
        ignore=np.zeros(objects, np.bool_),
        masks=masks,
        image_start=np.searchsorted(image_index, np.arange(images + 1)).astype(np.int64),
    )


def private_megabytes() -> float:
    """Memory that no other process shares with this one."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty", "Private_Clean"))) / 1e3


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    table = columns(99_388, 1203, 1_270_000)
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        donors = DonorIndex.from_table(table, power=0.5)
        seconds.append(time.perf_counter() - began)
    size = donors.rows.nbytes + donors.start.nbytes + donors.probability.nbytes
    print(f"built in {statistics.median(seconds):.2f} s (median of {repeats}), {size / 1e6:.1f} MB")
    began = time.perf_counter()
    for _ in range(10_000):
        donors.draw()
    print(f"{(time.perf_counter() - began) * 100:.1f} microseconds a draw", flush=True)
    child = os.fork()
    if child == 0:
        before = private_megabytes()
        for _ in range(20_000):
            donors.draw()
        print(f"a forked process writes to {private_megabytes() - before:.1f} MB in 20,000 draws", flush=True)
        os._exit(0)
    os.waitpid(child, 0)


if __name__ == "__main__":
    main()
