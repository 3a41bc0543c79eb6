from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from longtail.losses.base import ClassificationLoss
from longtail.models.classifiers import Classifier, CosineClassifier, LinearClassifier, NormedLinear
from longtail.models.mask_predictors import NormalisedMaskPredictor, OrdinaryMaskPredictor
from longtail.models.remap import ClassLayer, class_layers, remap_classes
from longtail.models.weights import load_state
from longtail.schema.errors import DataError


class CountingLoss(ClassificationLoss):
    """A loss with running state, one number per class."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__(num_classes=num_classes)
        self.register_buffer("count", torch.rand(num_classes))

    def row_losses(self, logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
        return logits.sum(dim=1)

    def scores(self, logits: Tensor) -> Tensor:
        return logits


class Stage(nn.Module):
    def __init__(self, classes: int, classifier: Any, extra: int, box: str | None, agnostic: bool) -> None:
        super().__init__()
        self.head = nn.Linear(3, 5)
        self.classifier = classifier(5, classes + extra)
        if box is not None:
            setattr(self, box, nn.Linear(5, 4 if agnostic else 4 * classes))
        self.classification_loss = CountingLoss(num_classes=classes)


class Detector(nn.Module):
    """The skeleton of a detector: two box stages and a mask branch."""

    def __init__(
        self,
        classes: int,
        *,
        classifier: Any = LinearClassifier,
        extra: int = 1,
        box: str | None = "box_regressor",
        agnostic: bool = False,
        mask: Any = OrdinaryMaskPredictor,
        prior: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Conv2d(3, 3, 1)
        self.stages = nn.ModuleList(Stage(classes, classifier, extra, box, agnostic) for _ in range(2))
        self.mask_predictor = mask(4, 4, 1 if agnostic else classes)
        for stage in self.stages:
            assert isinstance(stage.classifier, Classifier)
            stage.classifier.initialise(prior)
        for parameter in self.parameters():
            nn.init.normal_(parameter)


def oracle(old: Tensor, new: Tensor, source: Sequence[str], target: Sequence[str], rows: int) -> Tensor:
    """Row by row, with loops."""
    out = new.clone()
    for t, name in enumerate(target):
        for s, other in enumerate(source):
            if name == other:
                for row in range(rows):
                    out[t * rows + row] = old[s * rows + row]
    further = new.shape[0] - rows * len(target)
    for row in range(further):
        out[rows * len(target) + row] = old[rows * len(source) + row]
    return out


NAMES = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=7, unique=True)


@settings(max_examples=30, deadline=None)
@given(
    NAMES,
    NAMES,
    st.sampled_from([LinearClassifier, CosineClassifier, NormedLinear]),
    st.integers(0, 2),
    st.sampled_from(["box_regressor", "regressor"]),
    st.sampled_from([None, -2.0]),
)
def test_oracle(
    source: list[str], target: list[str], classifier: Any, extra: int, box: str, prior: float | None
) -> None:
    kind: dict[str, Any] = {"classifier": classifier, "extra": extra, "box": box, "prior": prior}
    kind["mask"] = NormalisedMaskPredictor if prior is None else OrdinaryMaskPredictor
    old = Detector(len(source), seed=1, **kind)
    new = Detector(len(target), seed=2, **kind)
    before = {name: value.clone() for name, value in new.state_dict().items()}
    remapped, report = remap_classes(new, old.state_dict(), source_classes=source, target_classes=target)
    for name, value in new.state_dict().items():
        assert torch.equal(value, before[name]), name

    both_single = len(source) == len(target) == 1
    for name, value in remapped.items():
        theirs = old.state_dict()[name]
        if ".classifier." in name or ("mask_fcn_logits" in name and not both_single):
            wanted = oracle(theirs, before[name], source, target, 1)
        elif f".{box}." in name and not both_single:
            wanted = oracle(theirs, before[name], source, target, 4)
        else:
            wanted = theirs
        assert torch.equal(value, wanted), name
    assert report.matched == tuple(name for name in target if name in source)
    assert set(report.fresh) == set(target) - set(source)
    assert set(report.dropped) == set(source) - set(target)
    assert not report.left_fresh

    loaded = load_state(new, remapped, source="there")
    assert not loaded.unexpected
    assert not loaded.mismatched
    assert set(loaded.missing) == (
        set() if source == target else {f"stages.{i}.classification_loss.count" for i in range(2)}
    )


def test_same_label_set_changes_nothing() -> None:
    old, new = Detector(3, seed=1), Detector(3, seed=2)
    remapped, report = remap_classes(new, old.state_dict(), source_classes="abc", target_classes="abc")
    assert report.state_dropped == ()
    load_state(new, remapped, source="there", strict=True)
    for name, value in old.state_dict().items():
        assert torch.equal(new.state_dict()[name], value), name


def test_there_and_back_again_keeps_every_row() -> None:
    source, target = list("abcd"), list("dbxyac")
    old, wide = Detector(4, seed=1), Detector(6, seed=2)
    there, _ = remap_classes(wide, old.state_dict(), source_classes=source, target_classes=target)
    load_state(wide, there, source="there")
    back, report = remap_classes(old, wide.state_dict(), source_classes=target, target_classes=source)
    assert report.dropped == ("x", "y")
    for name, value in back.items():
        assert torch.equal(value, old.state_dict()[name]), name


def test_running_state_of_losses_does_not_pass_to_another_label_order() -> None:
    # as many classes, so that the shapes fit: only the names tell
    old, new = Detector(3, seed=1), Detector(3, seed=2)
    remapped, report = remap_classes(new, old.state_dict(), source_classes="abc", target_classes="bca")
    assert report.state_dropped == ("stages.0.classification_loss.count", "stages.1.classification_loss.count")
    assert not set(report.state_dropped) & set(remapped)
    assert "running state that starts anew" in report.text


def test_class_agnostic_layers_are_copied_whole() -> None:
    old, new = Detector(3, agnostic=True, seed=1), Detector(5, agnostic=True, seed=2)
    remapped, report = remap_classes(new, old.state_dict(), source_classes="abc", target_classes="vwxyz")
    for name in ("stages.0.box_regressor.weight", "mask_predictor.mask_fcn_logits.bias"):
        assert torch.equal(remapped[name], old.state_dict()[name])
        assert name not in report.layers


@pytest.mark.parametrize(("old_agnostic", "new_agnostic"), [(True, False), (False, True)])
def test_class_agnostic_and_class_specific_do_not_mix(old_agnostic: bool, new_agnostic: bool) -> None:
    old, new = Detector(3, agnostic=old_agnostic, seed=1), Detector(5, agnostic=new_agnostic, seed=2)
    remapped, report = remap_classes(new, old.state_dict(), source_classes="abc", target_classes="abcde")
    assert "stages.1.box_regressor.weight" in report.left_fresh
    assert "mask_predictor.mask_fcn_logits.weight" in report.left_fresh
    assert "stages.1.box_regressor.weight" not in remapped
    assert "stages.1.classifier.weight" in report.layers


def test_another_number_of_further_logits_leaves_the_classifier_fresh() -> None:
    old, new = Detector(3, extra=1, seed=1), Detector(4, extra=2, seed=2)
    remapped, report = remap_classes(new, old.state_dict(), source_classes="abc", target_classes="abcd")
    assert "stages.0.classifier.weight" not in remapped
    assert report.left_fresh["stages.0.classifier.weight"] == (
        "4 rows for 3 classes in the checkpoint, 6 for 4 in the model"
    )
    assert "stages.0.classifier.weight starts fresh" in report.text
    assert "stages.0.box_regressor.weight" in report.layers


def test_another_width_leaves_the_layer_fresh() -> None:
    old, new = nn.Module(), nn.Module()
    old.classifier, new.classifier = LinearClassifier(4, 3), LinearClassifier(5, 3)
    remapped, report = remap_classes(new, old.state_dict(), source_classes="ab", target_classes="ab")
    assert "shape (3, 4) in the checkpoint, (3, 5) in the model" in report.left_fresh["classifier.weight"]
    assert set(remapped) == {"classifier.bias"}


def test_another_classifier_leaves_its_parameters_fresh() -> None:
    old, new = Detector(3, seed=1), Detector(3, classifier=CosineClassifier, seed=2)
    _, report = remap_classes(new, old.state_dict(), source_classes="abc", target_classes="abc")
    assert report.left_fresh["stages.0.classifier.direction"] == "not in the checkpoint"


def test_no_class_in_common_keeps_background_and_body() -> None:
    old, new = Detector(2, seed=1), Detector(2, seed=2)
    remapped, report = remap_classes(new, old.state_dict(), source_classes="ab", target_classes="xy")
    assert report.matched == ()
    weight = remapped["stages.0.classifier.weight"]
    assert torch.equal(weight[:2], new.state_dict()["stages.0.classifier.weight"][:2])
    assert torch.equal(weight[2], old.state_dict()["stages.0.classifier.weight"][2])
    assert torch.equal(remapped["body.weight"], old.state_dict()["body.weight"])


def test_layers_can_be_named() -> None:
    old, new = nn.Module(), nn.Module()
    old.final, new.final = nn.Linear(5, 3, bias=False), nn.Linear(5, 2, bias=False)
    layers = {"final.weight": ClassLayer()}
    remapped, report = remap_classes(new, old.state_dict(), source_classes="abc", target_classes="ca", layers=layers)
    assert torch.equal(remapped["final.weight"], old.final.weight[[2, 0]])
    assert report.layers == ("final.weight",)


def test_classes_along_another_axis() -> None:
    old, new = nn.Module(), nn.Module()
    old.final, new.final = nn.Linear(3, 5, bias=False), nn.Linear(2, 5, bias=False)
    layers = {"final.weight": ClassLayer(axis=1)}
    remapped, _ = remap_classes(new, old.state_dict(), source_classes="abc", target_classes="ca", layers=layers)
    assert torch.equal(remapped["final.weight"], old.final.weight[:, [2, 0]])


def test_layers_are_found_by_what_they_are() -> None:
    layers = class_layers(Detector(3, classifier=CosineClassifier, prior=-1.0))
    assert layers["stages.1.classifier.direction"] == ClassLayer()
    assert layers["stages.1.classifier.bias"] == ClassLayer()
    assert layers["stages.0.box_regressor.weight"] == ClassLayer(rows=4, optional=True)
    assert layers["mask_predictor.mask_fcn_logits.weight"] == ClassLayer(optional=True)
    assert len(layers) == 2 * 3 + 2 * 2 + 2
    assert class_layers(LinearClassifier(2, 2)) == {"weight": ClassLayer(), "bias": ClassLayer()}


def test_dtype_is_the_models() -> None:
    old, new = Detector(2, seed=1).double(), Detector(2, seed=2)
    remapped, _ = remap_classes(new, old.state_dict(), source_classes="ab", target_classes="ba")
    assert remapped["stages.0.classifier.weight"].dtype == torch.float32


@pytest.mark.parametrize(("source", "target", "owner"), [("aab", "ab", "the checkpoint"), ("ab", "abb", "the model")])
def test_names_that_occur_twice_are_refused(source: str, target: str, owner: str) -> None:
    model = Detector(3)
    with pytest.raises(DataError, match=f"{owner} has more than one class named"):
        remap_classes(model, model.state_dict(), source_classes=source, target_classes=target)


def test_report_names_classes_sparingly() -> None:
    names = [f"class {i}" for i in range(30)]
    model = Detector(2)
    _, report = remap_classes(Detector(30), model.state_dict(), source_classes=["class 1", "cat"], target_classes=names)
    assert report.text.startswith("classes carried over by name: 1 matched, 29 fresh, 1 dropped; ")
    assert "class 8 and 21 more" in report.text
    assert "dropped: cat" in report.text
