"""Where a stage's weights come from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from longtail.build.model import build_model
from longtail.data import ClassStatistics
from longtail.schema import UsageError, load_recipe
from longtail.training.assemble import load_start


def statistics(classes: int) -> ClassStatistics:
    counts = np.arange(1, classes + 1)
    return ClassStatistics([str(c) for c in range(classes)], counts, counts, num_images=classes, num_nonempty=classes)


@pytest.mark.parametrize("classes", [3, 5])
def test_a_detector_of_torchvision_is_recognised(classes: int, tmp_path: Path) -> None:
    theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=4)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    recipe = load_recipe("baseline", ["model=faster_rcnn"])
    model = build_model(recipe, recipe.stages[0], statistics(classes), pretrained=False)
    fresh = model.box.classifier.weight.detach().clone()
    text = load_start(model, tmp_path / "theirs.pth", recipe.stages[0], statistics(classes))
    assert torch.equal(model.box.head.fc6.weight, theirs.roi_heads.box_head.fc6.weight)
    assert torch.equal(model.backbone.body.layer1[0].conv1.weight, theirs.backbone.body.layer1[0].conv1.weight)
    if classes == 3:
        rows = theirs.roi_heads.box_predictor.cls_score.weight
        assert torch.equal(model.box.classifier.weight, torch.cat([rows[1:], rows[:1]]))
    else:
        assert torch.equal(model.box.classifier.weight, fresh)
        assert "box.classifier.weight" in text


def test_nothing_at_the_path(tmp_path: Path) -> None:
    recipe = load_recipe("baseline", ["scale=tiny", "model.backbone=tiny32"])
    model = build_model(recipe, recipe.stages[0], statistics(3), pretrained=False)
    with pytest.raises(UsageError, match="no weights at"):
        load_start(model, tmp_path / "none.pth", recipe.stages[0], statistics(3))
