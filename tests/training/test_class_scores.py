"""Scores of the classes in a file."""

from __future__ import annotations

from pathlib import Path

import torch

from longtail.losses import MeanScore
from longtail.training.class_scores import ClassScores, mean_scores

HEADER = "stage,step,epoch,head,class,mean_score,regions,accuracy\n"


def head(first: float) -> MeanScore:
    scores = MeanScore(2)
    scores.value[0] = first
    scores.rows.copy_(torch.tensor([4, 0]))
    scores.hits.copy_(torch.tensor([3, 0]))
    return scores


def test_rows_by_hand(tmp_path: Path) -> None:
    kept = ClassScores(tmp_path / "s.csv", ["cat", "dog, wet"])
    kept.write("one", 5, 0.5, [head(0.25), head(0.5)])
    assert (tmp_path / "s.csv").read_text() == HEADER + (
        'one,5,0.5,0,cat,0.25,4,0.75\none,5,0.5,0,"dog, wet",0.01,0,\n'
        'one,5,0.5,1,cat,0.5,4,0.75\none,5,0.5,1,"dog, wet",0.01,0,\n'
    )


def test_rows_that_are_made_again_replace_their_predecessors(tmp_path: Path) -> None:
    """A run is cut off after step 10 was written and goes on from a checkpoint at step 3."""
    whole, cut = (ClassScores(tmp_path / f"{name}.csv", ["cat", "dog"]) for name in ("whole", "cut"))
    for kept, steps in ((whole, (5, 10)), (cut, (5, 10, 5, 10))):
        kept.write("one", 8, 1.0, [head(0.1)])
        for step in steps:
            kept.write("two", step, step / 5, [head(step / 20)])
    assert (tmp_path / "whole.csv").read_bytes() == (tmp_path / "cut.csv").read_bytes()
    assert (tmp_path / "whole.csv").read_text().count("\n") == 1 + 3 * 2


def test_finds_the_scores_of_every_head_once() -> None:
    first, second = MeanScore(2), MeanScore(2)
    holder = torch.nn.ModuleList([torch.nn.ModuleList([first, second]), first])
    assert mean_scores(holder) == [first, second]
