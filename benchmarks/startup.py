"""Seconds until ``longtail --help`` has answered: ``python benchmarks/startup.py``."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

REPEATS = 10


def seconds(command: list[str]) -> float:
    """Wall time of one run."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Prints the median and the extremes, beside those of an empty Python."""
    for name, words in (("python -c pass", ["-c", "pass"]), ("longtail --help", ["-m", "longtail", "--help"])):
        times = [seconds([sys.executable, *words]) for _ in range(REPEATS)]
        print(f"{name:<16} median {statistics.median(times):.3f} s, {min(times):.3f} to {max(times):.3f} s")


if __name__ == "__main__":
    main()
