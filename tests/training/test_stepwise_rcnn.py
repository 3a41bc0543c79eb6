"""Step-wise learning on regions: what trains, the same regions for both, scores of objects, refusals."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from longtail.data import AnnotationTable
from longtail.data.object_scores import ObjectScores
from longtail.data.scenes import GeneratedSet
from longtail.losses.auxiliary import Record
from longtail.schema import Recipe, UsageError, load_recipe
from longtail.training import api, loop
from longtail.training.assemble import model_from_checkpoint
from longtail.training.exemplars import SCORES

FAST = [
    "scale=tiny", "model.backbone=tiny32", "model.neck.channels=16", "model.regions.channels=32",
    "images.short_sides=[64]", "images.test_short_side=64", "groups.edges=[5, 25]", "stages.*.schedule.images=12",
    "stages.*.schedule.batch_size=4", "stages.*.schedule.warmup_images=4",
]  # fmt: skip
LOSSES = "stages.region-transfer.auxiliary_losses"


def recipe(*overrides: str) -> Recipe:
    return load_recipe("stepwise-rcnn", [*FAST, *overrides])


def run(made: GeneratedSet, out: Path, what: Recipe) -> api.RunResult:
    return api.train(what, train=made.train, images=made.images, val=None, out=out)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in load_file(folder / "model.safetensors").items()}


def test_both_steps_on_regions(smoke_set: GeneratedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both see the same regions in every step, and the losses are zero until the student has moved."""
    original, seen = loop.step_losses, []

    def looking(model: Any, stage: Any, images: Any, targets: Any, fabric: Any) -> Any:
        found = original(model, stage, images, targets, fabric)
        if stage.auxiliary:
            records = [Record({"region_labels", "region_features"}) for _ in range(2)]
            for each, record in zip((stage.model, stage.teacher), records, strict=True):
                with torch.no_grad():
                    each.observe(images, targets, record)
            assert torch.equal(records[0]["region_labels"], records[1]["region_labels"])
            seen.append((found["loss_region_features"].item(), found["loss_classification_distillation"].item()))
        return found

    monkeypatch.setattr(loop, "step_losses", looking)
    parts = "[{type: region_features, head_min_images: 1}, {type: classification_distillation, head_min_images: 1}]"
    folder = run(smoke_set, tmp_path / "run", recipe(f"{LOSSES}={parts}")).run
    assert len(seen) == 3
    assert seen[0] == pytest.approx((0, 0), abs=1e-7)
    assert min(seen[-1]) > 1e-8
    stages = folder / "stages"
    states = [
        weights(stages / "1-end-to-end" / "end"),
        weights(stages / "2-region-expert" / "end"),
        weights(folder / "checkpoints" / "last"),
    ]
    for before, after in pairwise(states):
        changed = {name.rsplit(".", 1)[0] for name in after if not torch.equal(before[name], after[name])}
        assert changed == {"box.head.fc7", "box.classifier"}

    table = AnnotationTable.from_coco(smoke_set.train)
    kept = ObjectScores.open(stages / "1-end-to-end" / SCORES, table)
    model, _ = model_from_checkpoint(stages / "1-end-to-end" / "end")
    assert len(kept.rows) == len(table.label)
    images = [torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8), torch.zeros(3, 48, 64, dtype=torch.uint8)]
    boxes = torch.tensor([[2.0, 3.0, 30.0, 40.0], [10.0, 10.0, 50.0, 60.0]])
    targets = [
        {"boxes": boxes, "labels": torch.tensor([1, 4])},
        {"boxes": boxes[:0], "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    pairs, none = model.score_objects(images, targets)  # type: ignore[operator]
    batch, _ = model.preprocess(images, resize=True)  # type: ignore[operator]
    maps = model.backbone(batch.tensors)  # type: ignore[operator]
    scores, _ = model.box.predict(maps, tuple(batch.tensors.shape[-2:]), [boxes, boxes[:0]])  # type: ignore[union-attr, operator]
    torch.testing.assert_close(pairs[:, 0], scores[[0, 1], [1, 4]])
    torch.testing.assert_close(pairs[:, 1], scores[:, :-1].amax(dim=1))
    assert none.shape == (0, 2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.region-transfer.trainable.only=[]", "freeze backbone and rpn"),
        ("stages.region-expert.exemplars.unselected=ignore", "unselected=drop"),
        (
            "stages.region-transfer.auxiliary_losses=[{type: classification_distillation, align: matched}]",
            "align=index",
        ),
        ("stages.region-transfer.classification_loss=group_softmax", "region_features alone"),
        ("model=cascade_rcnn", "deformable_detr, faster_rcnn"),
    ],
)
def test_what_does_not_go_together_is_refused(
    override: str, message: str, smoke_set: GeneratedSet, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        run(smoke_set, tmp_path / "run", recipe(override))
