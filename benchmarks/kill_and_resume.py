"""Kills a two-stage run with ``kill -9`` at random moments, resumes it each time, and compares it with a whole one.

    python benchmarks/kill_and_resume.py --kills 10 --workers 2 --accumulate 2 --out /tmp/kills

Each moment is drawn between 35 and 75 % of the time the whole run takes, counted from the start of the process: within
an epoch, in an evaluation, in a checkpoint being written, between the stages. A run that ends before its moment comes
is compared and followed by another. Exit code 0 if weights and curves are equal to the byte every time.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

RECIPE = """
name: two-stages
summary: End to end, then the classifier alone.
paper: none
extends: rfs
stages:
  - name: end-to-end
  - name: classifier
    trainable: {only: [box.classifier], reinitialise: [box.classifier]}
"""


def words(out: Path, name: str, arguments: argparse.Namespace) -> list[str]:
    """The command line of one run."""
    return [
        sys.executable, "-m", "longtail", "train", str(out / "two.yaml"), "scale=tiny", "model.backbone=tiny32",
        "images.short_sides=[64]", "images.test_short_side=64", f"stages.*.schedule.images={arguments.images}",
        f"stages.*.schedule.accumulate={arguments.accumulate}", "evaluation.every_epochs=1",
        f"workers={arguments.workers}", "--train", str(out / "set/train.json"), "--val", str(out / "set/val.json"),
        "--images", str(out / "set/images"), "--out", str(out / name), "--device", "cpu", "--quiet", "--resume",
    ]  # fmt: skip


def start(command: list[str]) -> subprocess.Popen[bytes]:
    """The run as a process group of its own."""
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True
    )


def main() -> int:
    """Kills, resumes, compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--accumulate", type=int, default=2)
    parser.add_argument("--images", type=int, default=240, help="length of each stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True)
    (out / "two.yaml").write_text(RECIPE)
    subprocess.run([sys.executable, "-m", "longtail", "shapes", str(out / "set"), "--preset", "smoke"], check=True)

    began = time.monotonic()
    if start(words(out, "whole", arguments)).wait():
        return 1
    length = time.monotonic() - began
    print(f"the whole run takes {length:.1f} s")
    draw = random.Random(arguments.seed)
    kills, equal = 0, True
    while kills < arguments.kills:
        child = start(words(out, "cut", arguments))
        moment = draw.uniform(0.35 * length, 0.75 * length)
        try:
            child.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            kills += 1
            log = (out / "cut/log.txt").read_text() if (out / "cut/log.txt").is_file() else ""
            resumed = [line for line in log.splitlines() if line.startswith("resuming")][-1:]
            print(f"kill {kills} after {moment:.1f} s of a run that was {resumed[0] if resumed else 'at its start'}")
        else:
            print("the run ended before the moment came; beginning another one")
            equal &= compare(out)
            (out / "cut").rename(out / f"cut-{kills}")
    if start(words(out, "cut", arguments)).wait():
        return 1
    equal &= compare(out)
    return 0 if equal else 1


def compare(out: Path) -> bool:
    """Whether weights and curves of the two runs are equal to the byte."""
    files = ("checkpoints/last/model.safetensors", "metrics.csv", "stages/1-end-to-end/end/model.safetensors")
    equal = True
    for file in files:
        same = (out / "whole" / file).read_bytes() == (out / "cut" / file).read_bytes()
        print(f"{file}: {'equal' if same else 'DIFFERENT'}")
        equal &= same
    return equal


if __name__ == "__main__":
    sys.exit(main())
