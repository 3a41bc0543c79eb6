"""Scores and norms of the classes in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from longtail.data import ClassStatistics
from longtail.losses import MeanScore
from longtail.models import CosineClassifier, LearnableWeightScaling, LinearClassifier, NormedLinear
from longtail.models.weight_norms import class_weight_norms
from longtail.training.class_tables import ClassTables, mean_scores
from longtail.training.run_directory import RunDirectory

START = "stage,step,epoch,head,class,group,"


class Head(nn.Module):
    """Two classes and a background on two features."""

    num_classes = 2

    def __init__(self, classifier: nn.Module, first: float | None = None) -> None:
        super().__init__()
        self.classifier = classifier
        if first is not None:
            self.scores = MeanScore(2)
            self.scores.value[0] = first
            self.scores.rows.copy_(torch.tensor([4, 0]))
            self.scores.hits.copy_(torch.tensor([3, 0]))


class Model(nn.Module):
    def __init__(self, *heads: Head) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def class_heads(self) -> list[Any]:
        return list(self.heads)


def linear(*norms: float) -> LinearClassifier:
    layer = LinearClassifier(2, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(norms)[:, None] * torch.tensor([0.6, -0.8]))
    return layer


def tables(folder: Path) -> ClassTables:
    statistics = ClassStatistics(["cat", "dog, wet"], np.array([3, 200]), np.array([3, 300]), 200, 200)
    folder.mkdir(exist_ok=True)
    return ClassTables(RunDirectory(folder), statistics)


def test_rows_by_hand(tmp_path: Path) -> None:
    model = Model(Head(linear(1, 2, 9), 0.25), Head(linear(3, 0.5, 9), 0.5))
    tables(tmp_path).write("one", 5, 0.5, model)  # type: ignore[arg-type]
    assert (tmp_path / "class_scores.csv").read_text() == START + "mean_score,regions,accuracy\n" + (
        'one,5,0.5,0,cat,r,0.25,4,0.75\none,5,0.5,0,"dog, wet",f,0.01,0,\n'
        'one,5,0.5,1,cat,r,0.5,4,0.75\none,5,0.5,1,"dog, wet",f,0.01,0,\n'
    )
    assert (tmp_path / "class_norms.csv").read_text() == START + "norm\n" + (
        'one,5,0.5,0,cat,r,1\none,5,0.5,0,"dog, wet",f,2\none,5,0.5,1,cat,r,3\none,5,0.5,1,"dog, wet",f,0.5\n'
    )


def test_nothing_to_say_is_no_file(tmp_path: Path) -> None:
    tables(tmp_path).write("one", 5, 0.5, Model(Head(linear(1, 1, 1))))  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["class_norms.csv"]
    tables(tmp_path / "empty").write("one", 5, 0.5, Model(Head(nn.Conv2d(2, 3, 1))))  # type: ignore[arg-type]
    assert not list((tmp_path / "empty").iterdir())


def test_rows_that_are_made_again_replace_their_predecessors(tmp_path: Path) -> None:
    """A run is cut off after step 10 was written and goes on from a checkpoint at step 3."""
    whole, cut = tables(tmp_path / "whole"), tables(tmp_path / "cut")
    for kept, steps in ((whole, (5, 10)), (cut, (5, 10, 5, 10))):
        kept.write("one", 8, 1.0, Model(Head(linear(1, 1, 1), 0.1)))  # type: ignore[arg-type]
        for step in steps:
            kept.write("two", step, step / 5, Model(Head(linear(step, 1, 1), step / 20)))  # type: ignore[arg-type]
    for name in ("class_scores.csv", "class_norms.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
        assert (tmp_path / "whole" / name).read_text().count("\n") == 1 + 3 * 2


def test_finds_the_scores_of_every_head_once() -> None:
    first, second = MeanScore(2), MeanScore(2)
    holder = torch.nn.ModuleList([torch.nn.ModuleList([first, second]), first])
    assert mean_scores(holder) == [first, second]


@pytest.mark.parametrize("kind", [LinearClassifier, NormedLinear, LearnableWeightScaling, CosineClassifier])
def test_norms_are_those_of_what_the_features_are_multiplied_with(kind: type) -> None:
    layer = kind(2, 3)
    direction = layer.direction if kind is CosineClassifier else layer.weight
    with torch.no_grad():
        direction.copy_(torch.tensor([[3.0, 4.0], [0.0, 2.0], [7.0, 7.0]]))
        if kind is LearnableWeightScaling:
            layer.scale.copy_(torch.tensor([-2.0, 1.0, 1.0]))
        if kind is CosineClassifier:
            layer.length.copy_(torch.tensor([[0.5], [-0.25], [1.0]]))
    expected = {LearnableWeightScaling: [10.0, 2.0], CosineClassifier: [0.5, 0.25]}.get(kind, [5.0, 2.0])
    assert class_weight_norms(Head(layer)).tolist() == expected  # type: ignore[arg-type,union-attr]
    fixed = CosineClassifier(2, 3, learn_norm=False)
    assert torch.equal(class_weight_norms(Head(fixed)), fixed.direction.norm(dim=1)[:2])  # type: ignore[arg-type]
