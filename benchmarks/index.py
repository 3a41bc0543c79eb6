"""An annotation file of the size of LVIS v1 train: opening, opening again, repeat factors, memory of loader workers.

    python benchmarks/index.py --out /tmp/lvis_size [--counts lvis_counts.csv] [--keep]

Writes a file with 99,388 images, 1,203 classes and 1.27 million objects with polygons of 76 to 94 numbers, and
measures in processes of their own, beside pycocotools. Numbers of objects per class come from the CSV (columns
``version`` and ``train_instances``) or from an exponential tail. Private memory is the sum of
``Private_Dirty`` and ``Private_Clean`` in ``/proc/<pid>/smaps_rollup``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

IMAGES, CLASSES, OBJECTS, NUMBERS = 99_388, 1_203, 1_270_141, 76

OPEN = """
import json, resource, sys, time
began = time.perf_counter()
from longtail.data import AnnotationTable
imported = time.perf_counter()
table = AnnotationTable.from_coco(sys.argv[1])
opened = time.perf_counter()
from longtail.sampling import RepeatFactorSampler, repeat_factors
before = time.perf_counter()
factors = repeat_factors(table.image_start, table.label, table.num_classes, threshold=0.001)
done = time.perf_counter()
print(json.dumps({"open_s": opened - imported, "repeat_factors_s": done - before, "objects": len(table.label),
                  "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))
"""
PEER = """
import contextlib, io, json, resource, sys, time
from pycocotools.coco import COCO
began = time.perf_counter()
with contextlib.redirect_stdout(io.StringIO()):
    coco = COCO(sys.argv[1])
print(json.dumps({"open_s": time.perf_counter() - began, "objects": len(coco.anns),
                  "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))
"""
WORKERS = """
import contextlib, io, json, os, sys
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

def private():
    rows = [line.split() for line in open("/proc/self/smaps_rollup")]
    return sum(int(row[1]) for row in rows if row[0].startswith("Private_")) / 1024

class Ours(Dataset):
    def __init__(self, path):
        from longtail.data import AnnotationTable
        self.table = AnnotationTable.from_coco(path)
        self.count = self.table.num_images
    def __len__(self):
        return self.count
    def __getitem__(self, row):
        table, rows = self.table, self.table.rows_of(row)
        rows = np.arange(rows.start, rows.stop)
        boxes, name = table.boxes_xyxy(rows), table.file_names[row]
        masks = table.masks.decode(rows, int(table.heights[row]), int(table.widths[row]))
        return os.getpid(), private(), len(boxes) + len(name) * 0 + int(masks.shape[0]) * 0

class Peer(Dataset):
    def __init__(self, path):
        from pycocotools.coco import COCO
        with contextlib.redirect_stdout(io.StringIO()):
            self.coco = COCO(path)
        self.ids = sorted(self.coco.imgs)
    def __len__(self):
        return len(self.ids)
    def __getitem__(self, row):
        annotations = self.coco.loadAnns(self.coco.getAnnIds(imgIds=[self.ids[row]]))
        masks = [self.coco.annToMask(annotation) for annotation in annotations]
        return os.getpid(), private(), len(masks)

if __name__ == "__main__":
    torch.set_num_threads(1)
    kind, path, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    data = Ours(path) if kind == "ours" else Peer(path)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:count].tolist()
    loader = DataLoader(data, batch_size=16, num_workers=2, sampler=order, collate_fn=list,
                        multiprocessing_context="fork")
    last = {}
    for batch in loader:
        for pid, amount, _ in batch:
            last[pid] = amount
    print(json.dumps({"private_mb": [round(v) for v in last.values()], "images": count}))
"""


def class_sizes(path: Path | None) -> np.ndarray:
    """(C,) objects per class that add up to OBJECTS."""
    if path is None:
        sizes = 50_000.0 * (1 / 25_000) ** (np.arange(CLASSES) / (CLASSES - 1))
    else:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        sizes = np.array([float(row["train_instances"]) for row in rows if row["version"] == "v1.0"])
    sizes = np.maximum(1, np.floor(sizes * OBJECTS / sizes.sum())).astype(np.int64)
    sizes[int(np.argmax(sizes))] += OBJECTS - int(sizes.sum())
    return sizes


def write_file(path: Path, sizes: np.ndarray) -> None:
    """Streams the file to the disk."""
    draw = np.random.default_rng(0)
    label = np.repeat(np.arange(len(sizes)), sizes)
    draw.shuffle(label)
    image = draw.integers(0, IMAGES, len(label))
    absent = draw.integers(0, CLASSES, (IMAGES, 9))
    with path.open("w", encoding="utf-8") as file:
        file.write('{"info": {"description": "made for a benchmark"}, "images": [')
        for row in range(IMAGES):
            entry = {
                "id": row + 1, "file_name": f"train2017/{row:012d}.jpg", "height": 480, "width": 640,
                "neg_category_ids": [int(x) + 1 for x in absent[row, :7]],
                "not_exhaustive_category_ids": [int(x) + 1 for x in absent[row, 7:]],
            }  # fmt: skip
            file.write((", " if row else "") + json.dumps(entry))
        file.write('], "categories": ')
        file.write(json.dumps([{"id": c + 1, "name": f"class {c}", "frequency": "f"} for c in range(CLASSES)]))
        file.write(', "annotations": [')
        for row in range(len(label)):
            count = NUMBERS + 2 * int(draw.integers(0, 10))
            low, size = draw.uniform(0, 300, 2), draw.uniform(20, 160, 2)
            points = np.round(low + draw.random((count // 2, 2)) * size, 2)
            near, far = points.min(axis=0), points.max(axis=0)
            entry = {
                "id": row + 1, "image_id": int(image[row]) + 1, "category_id": int(label[row]) + 1,
                "area": round(float(np.prod(far - near)), 2),
                "bbox": [*near.tolist(), *np.round(far - near, 2).tolist()],
                "segmentation": [points.ravel().tolist()],
            }  # fmt: skip
            file.write((", " if row else "") + json.dumps(entry))
        file.write("]}")


def run(code: str, *words: str) -> dict[str, object]:
    """What a process of its own measures."""
    done = subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Makes the file, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--counts", type=Path)
    parser.add_argument("--images", type=int, default=4000, help="images loaded by the workers")
    parser.add_argument("--keep", action="store_true", help="keep the file")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "lvis_size.json"
    if not path.is_file():
        write_file(path, class_sizes(arguments.counts))
    print(f"file: {path.stat().st_size / 1e9:.2f} GB")
    os.environ["LONGTAIL_CACHE"] = str(arguments.out / "cache")
    shutil.rmtree(arguments.out / "cache", ignore_errors=True)
    (arguments.out / "workers.py").write_text(WORKERS)
    print("first open  ", run(OPEN, str(path)))
    for _ in range(3):
        print("later open  ", run(OPEN, str(path)))
    print("workers     ", run(WORKERS, "ours", str(path), str(arguments.images)))
    print("pycocotools ", run(PEER, str(path)))
    print("  workers   ", run(WORKERS, "peer", str(path), str(arguments.images)))
    if not arguments.keep:
        shutil.rmtree(arguments.out)


if __name__ == "__main__":
    main()
