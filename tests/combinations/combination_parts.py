"""What is combined, found from the rooms' ``__all__`` and the schema's unions, and what every combination must do: two
finite training steps that change parameters, or a ``UsageError`` that names what works."""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections.abc import Callable, Iterable
from typing import Any

import torch
from contract_parts import build
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign

import longtail.models
from longtail.build.model import build_model
from longtail.build.samplers import region_sampler
from longtail.data import ClassStatistics
from longtail.losses import BoxLoss, ClassificationLoss, SmoothL1Loss
from longtail.models import BoxStage, DenseHead, Matcher, deformable_detr, tiny32
from longtail.models.base import TrainableModel
from longtail.models.classifiers import Classifier
from longtail.replay import FeatureReplay
from longtail.sampling import RandomRegions, RegionSampler
from longtail.schema import UsageError, load_recipe
from longtail.schema.classifiers import ClassifierSpec
from longtail.schema.detector import DetectorPart
from longtail.schema.explain import models_in
from longtail.schema.features import NeckSpec
from longtail.schema.losses import BoxLossSpec, ClassificationLossSpec
from longtail.schema.model import MODELS
from longtail.schema.replay import ReplaySpec
from longtail.schema.samplers import RegionSamplerSpec, SamplerSpec

CLASSES = 5
Step = Callable[[], dict[str, Tensor]]
NAMES_WHAT_WORKS = re.compile(r"\b(works? with|it can with|is a loss for|use|set|give|at most)\b")


def spec_variants(annotation: Any) -> list[dict[str, Any]]:
    """Every part of a union of the schema with its defaults, and with every other value of each option that is a bool,
    a ``Literal`` or a part, one at a time."""
    found = []
    for model in models_in(annotation):
        own = {"type": model.model_fields["type"].default}
        found.append(own)
        for name, field in model.model_fields.items():
            values: Iterable[Any] = (False, True) if field.annotation is bool else typing.get_args(field.annotation)
            if models_in(field.annotation):
                values = spec_variants(field.annotation)
            elif field.annotation is not bool and typing.get_origin(field.annotation) is not typing.Literal:
                continue
            found += [{**own, name: value} for value in values if name != "type" and value != field.default]
    return found


IMAGE_SAMPLERS = spec_variants(SamplerSpec)
REGION_SAMPLERS = [{**spec, "count": 16} for spec in spec_variants(RegionSamplerSpec)]
NECKS = [{**spec, "channels": 8} for spec in spec_variants(NeckSpec)]
LOSS_SPECS = spec_variants(ClassificationLossSpec)
CLASSIFIER_SPECS = [*spec_variants(ClassifierSpec), {"type": "cosine", "scale": 1, "learn_norm": False}]
BOX_LOSS_SPECS = spec_variants(BoxLossSpec)
COUNTED = {model.model_fields["type"].default for model in models_in(ReplaySpec) if "count" in model.model_fields}
REPLAY_SPECS = [
    [],
    *([{**spec, **({"count": 3} if spec["type"] in COUNTED else {})}] for spec in spec_variants(ReplaySpec)),
]
DETECTORS = sorted(
    kind
    for model in MODELS
    if issubclass(model, DetectorPart)
    for kind in typing.get_args(model.model_fields["type"].annotation)
)
PROPOSER = "region_proposal_network"
"""The one model of boxes that is no detector of classes, and so in no table of those."""
CLASSIFIERS: list[type[Classifier]] = [
    member
    for member in (getattr(longtail.models, name) for name in longtail.models.__all__)
    if inspect.isclass(member) and issubclass(member, Classifier) and not inspect.isabstract(member)
]


def text(spec: Any) -> str:
    """A part as one writes it on the command line, also the name of a test's case."""
    return json.dumps(spec)


def sampler_of(spec: dict[str, Any]) -> RegionSampler:
    """The region sampler of a schema entry."""
    (kind,) = [model for model in models_in(RegionSamplerSpec) if model.model_fields["type"].default == spec["type"]]
    return region_sampler(kind(**spec), negative_iou=0.5)


# --- heads alone, with random features --------------------------------------------------------------------------------


def region_head(
    loss: ClassificationLoss,
    classifier: type[Classifier],
    *,
    box_loss: BoxLoss | None = None,
    sampler: RegionSampler | None = None,
    replay: Iterable[FeatureReplay] = (),
) -> tuple[nn.Module, Step]:
    """A region head and a function that says its losses on two small pictures with two objects each."""
    torch.manual_seed(0)
    channels, size = 8, 7
    stage = BoxStage(
        num_classes=CLASSES,
        pool=MultiScaleRoIAlign(["0", "1"], size, 1),
        head=nn.Sequential(nn.AvgPool2d(size), nn.Flatten()),
        classifier=classifier(channels, loss.num_logits),
        regressor=nn.Linear(channels, 4 * CLASSES),
        classification_loss=loss,
        box_loss=SmoothL1Loss() if box_loss is None else box_loss,
        matcher=Matcher(0.5, 0.5),
        sampler=RandomRegions(16, 0.25) if sampler is None else sampler,
        replay=replay,
    )
    stage.classifier.initialise(loss.bias_prior)
    draw = torch.Generator().manual_seed(1)
    maps = {"0": torch.randn(2, channels, 16, 16, generator=draw), "1": torch.randn(2, channels, 8, 8, generator=draw)}
    boxes = torch.tensor([[4.0, 4.0, 30.0, 40.0], [20.0, 10.0, 60.0, 50.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor(labels)} for labels in ([0, 3], [1, 4])]
    corner = torch.rand(2, 20, 2, generator=draw) * 40
    proposals = list(torch.cat([corner, corner + 5 + 18 * torch.rand(2, 20, 2, generator=draw)], dim=2))

    def step() -> dict[str, Tensor]:
        return stage.losses(maps, (64, 64), proposals, targets, generators=[draw, draw], step_generator=draw).losses

    return stage, step


def dense_head(loss: ClassificationLoss, classifier: type[Classifier]) -> tuple[nn.Module, Step]:
    """The head of a one-stage detector, whose classifier is its own last convolution, and its losses on two pictures
    with two objects each."""
    torch.manual_seed(0)
    channels = 8
    head = DenseHead(
        num_classes=CLASSES,
        channels=channels,
        anchor_generator=AnchorGenerator(((16.0,), (32.0,)), ((0.5, 1.0, 2.0),) * 2),
        classification_loss=loss,
        box_loss=SmoothL1Loss(),
        matcher=Matcher(0.5, 0.4, low_quality=True),
        layers=1,
    )
    draw = torch.Generator().manual_seed(1)
    maps = {"0": torch.randn(2, channels, 16, 16, generator=draw), "1": torch.randn(2, channels, 8, 8, generator=draw)}
    boxes = torch.tensor([[4.0, 4.0, 30.0, 40.0], [20.0, 10.0, 60.0, 50.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor(labels)} for labels in ([0, 3], [1, 4])]
    images = ImageList(torch.zeros(2, 3, 64, 64), [(64, 64)] * 2)
    return head, lambda: head.losses(images, maps, targets, generator=draw)


def query_head(loss: ClassificationLoss, classifier: type[Classifier]) -> tuple[nn.Module, Step]:
    """A Deformable DETR and a function that says its losses on two small pictures with two objects each."""
    torch.manual_seed(0)
    model = deformable_detr(
        tiny32(width=8), num_classes=CLASSES, classification_loss=loss, classifier=classifier, channels=64, hidden=16,
        heads=2, encoder_layers=1, decoder_layers=2, num_queries=8,
    )  # fmt: skip
    boxes = torch.tensor([[4.0, 4.0, 30.0, 40.0], [20.0, 10.0, 60.0, 50.0]])
    pictures = [picture(boxes, torch.tensor(labels), seed=3) for labels in ([0, 3], [1, 4])]
    images, targets = zip(*pictures, strict=True)
    return model, lambda: model.losses(images, targets)


HEADS: dict[str, Callable[[ClassificationLoss, type[Classifier]], tuple[nn.Module, Step]]] = {
    "dense": dense_head,
    "query": query_head,
    "roi": region_head,
}
"""Every kind of head: (loss, classifier) -> the head and its step."""


# --- whole detectors --------------------------------------------------------------------------------------------------

SMALL = ["scale=tiny", "model.backbone=tiny32", "model.neck.channels=8", "images.test_short_side=64"]
SMALL_PARTS = {
    "regions": "model.regions.channels=16",
    "masks": "model.masks.channels=[8]",
    "dense": "stages.*.classification_loss=focal",
    "inference": "model.inference.detections_per_image=5",
}
"""For detectors that have the part."""


def small_detector(kind: str, *overrides: str, statistics: ClassStatistics) -> TrainableModel:
    """A detector of the given kind, tiny.

    Raises:
        UsageError: parts that do not go together.
    """
    (model,) = [model for model in MODELS if kind in typing.get_args(model.model_fields["type"].annotation)]
    own = [override for part, override in SMALL_PARTS.items() if part in model.model_fields]
    recipe = load_recipe("baseline", [f"model={kind}", *SMALL, *own, *overrides])
    torch.manual_seed(0)
    return build_model(recipe, recipe.stages[0], statistics, pretrained=False)


def picture(boxes: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, dict[str, Any]]:
    """Noise of 64 x 64 pixels with the given objects in it, corners in pixels; their masks fill the boxes."""
    masks = torch.zeros(len(boxes), 64, 64, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = 1
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(seed))
    return image, {"boxes": boxes, "labels": labels, "masks": masks, "draw_seed": seed}


# --- the rule ---------------------------------------------------------------------------------------------------------


def train_two_steps(model: nn.Module, *steps: Step) -> None:
    """Two finite steps, each of which changes parameters."""
    assert len(steps) == 2
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(parameters, lr=0.01)
    for step in steps:
        before = [parameter.detach().clone() for parameter in parameters]
        total = torch.stack(list(step().values())).sum()
        assert total.isfinite(), "the loss is not finite"
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        assert all(parameter.isfinite().all() for parameter in parameters), "parameters are not finite"
        assert any(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True)), "nothing has changed"


def trained(build_and_train: Callable[[], None]) -> bool:
    """True: it trained. False: it was refused, by a message that names what works."""
    try:
        build_and_train()
    except UsageError as error:
        refusal = str(error)
    else:
        return True
    assert NAMES_WHAT_WORKS.search(refusal), f"refused without saying what works: {refusal}"
    return False


def detector_trains(detector: str, overrides: Iterable[str], statistics: ClassStatistics) -> bool:
    """Whether a detector with these parts trains; False: it was refused, by a message that names what works."""

    def build_and_train() -> None:
        model = small_detector(detector, *overrides, statistics=statistics)
        boxes = torch.tensor([[4.0, 4.0, 30.0, 40.0], [20.0, 10.0, 60.0, 50.0]])
        image, target = picture(boxes, torch.tensor([0, statistics.num_classes - 1]), seed=3)
        train_two_steps(model, *[lambda: model.losses([image, image], [target, target])] * 2)

    return trained(build_and_train)


def part(case: tuple[type, dict[str, Any]]) -> Any:
    """One exported part, for this folder's number of classes."""
    return build(case, CLASSES)
