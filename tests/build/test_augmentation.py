"""From the recipe's `images` to transforms: every field arrives, and what cannot be done is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from longtail.build.augmentation import (
    colour,
    copy_paste,
    detecting_images,
    resizing,
    stage_images,
    training_transform,
    validation_images,
)
from longtail.data import AnnotationTable
from longtail.data.dataset import Draw
from longtail.data.scale_jitter import FixedSize
from longtail.data.scenes import GeneratedSet
from longtail.reports.recipes import explain_recipe
from longtail.schema import DataError, Recipe, UsageError, dump_recipe, load_recipe
from longtail.schema.augmentation import CropOrNot, StepwiseColour
from longtail.training.assemble import training_dataset

ALL_ON = [
    "images.resize=scale_jitter",
    "images.resize.size=[48, 80]",
    "images.colour=stepwise",
    "images.copy_paste=class_aware",
    "images.copy_paste.probability=1",
    "images.transpose=0.25",
]


def recipe(*overrides: str) -> Recipe:
    return load_recipe("baseline", ["scale=tiny", *overrides])


def test_everything_is_off_by_default(smoke_set: GeneratedSet) -> None:
    images = recipe().images
    assert resizing(images) is None
    assert colour(images) is None
    assert copy_paste(images, AnnotationTable.from_coco(smoke_set.train)) is None
    assert images.transpose == 0 and images.fixed_size is None


def test_every_field_arrives(smoke_set: GeneratedSet) -> None:
    table = AnnotationTable.from_coco(smoke_set.train)
    images = recipe(
        "images.resize={type: scale_jitter, size: [30, 40], scale: [0.3, 0.7], pad: false}",
        "images.fill=[1, 2, 3]",
        "images.copy_paste={type: class_aware, probability: 0.3, max_objects: 7, power: 2, scale: [0.2, 0.9],"
        " flip: 0.1, min_visible: 0.4, blur: 1.5}",
        "images.colour={type: stepwise, blur_kernel: 5}",
    ).images
    jitter = resizing(images)
    assert (jitter.size, jitter.scale, jitter.pad, jitter.fill) == ((30, 40), (0.3, 0.7), False, [1, 2, 3])
    paste = copy_paste(images, table)
    assert paste is not None
    assert (paste.probability, paste.max_objects, paste.scale) == (0.3, 7, (0.2, 0.9))
    assert (paste.flip, paste.min_visible, paste.blur, paste.nearest) == (0.1, 0.4, 1.5, False)
    pictures = table.statistics().image_counts
    assert paste.donors.probability[0] / paste.donors.probability[-1] == pytest.approx(
        (pictures[-1] / pictures[0]) ** 2
    )
    blur = colour(images).steps.transforms[2].transforms[0]
    assert (blur.kernel, blur.sigma) == (5, (0.1, 2.0))
    fixed = recipe("images.fixed_size=[50, 60]", "images.fill=[1, 2, 3]", "images.transpose=1", "images.flip=0").images
    steps = training_transform(fixed).transforms
    assert [type(step).__name__ for step in steps] == [
        "ResizeShortSide",
        "RandomTranspose",
        "FixedSize",
        "DropDegenerate",
    ]
    assert isinstance(steps[2], FixedSize) and (steps[2].size, steps[2].fill) == ((50, 60), [1, 2, 3])
    detr = resizing(recipe("images.resize={type: detr, before: [70], crop: [20, 30], probability: 0.9}").images)
    assert detr.transforms[1].transforms[0].short_sides == [70]
    assert detr.transforms[1].transforms[1].least == 20 and detr.transforms[1].transforms[1].most == 30
    assert detr.transforms[1].transforms[2].short_sides == detr.transforms[0].short_sides == [96]
    assert detr.p == [pytest.approx(0.1), 0.9]


def test_the_stepwise_set_has_the_published_values() -> None:
    published = {
        "type": "stepwise", "jitter_probability": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4,
        "hue": 0.1, "grey_probability": 0.2, "blur_probability": 0.5, "blur_kernel": 23, "blur_sigma": (0.1, 2.0),
    }  # fmt: skip
    assert StepwiseColour().model_dump() == published
    detr = CropOrNot().model_dump()
    assert detr == {
        "type": "detr", "short_sides": (), "probability": 0.5, "before": (400, 500, 600), "crop": (384, 600),
    }  # fmt: skip


def test_options_survive_being_written_down(tmp_path: Path) -> None:
    chosen = recipe(*ALL_ON)
    (tmp_path / "r.yaml").write_text(dump_recipe(chosen))
    assert load_recipe(tmp_path / "r.yaml") == chosen


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["images.resize={type: scale_jitter, scale: [2, 1]}"], "range from low to high"),
        (["images.resize={type: scale_jitter, scale: [0, 1]}"], "greater than 0"),
        (["images.resize={type: detr, crop: [600, 384]}"], "range from low to high"),
        (["images.resize=jitter"], "did you mean 'scale_jitter'"),
        (["images.resize=scale_jitter", "images.fixed_size=[9, 9]"], "leave fixed_size at none"),
        (["images.colour={type: stepwise, blur_kernel: 4}"], "must be odd"),
        (["images.colour={type: stepwise, blur_sgima: [1, 2]}"], "did you mean 'blur_sigma'"),
        (["images.copy_paste={type: class_aware, max_objects: 0}"], "greater than or equal to 1"),
        (["images.copy_paste={type: class_aware, power: 9}"], "less than or equal to 4"),
        (["images.fill=[0, 0, 256]"], "less than or equal to 255"),
        (["images.fixed_size=[0, 5]"], "greater than or equal to 1"),
        (["images.transpose=2"], "less than or equal to 1"),
    ],
)
def test_mistakes_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recipe(*overrides)


def test_a_stage_may_have_colours_of_its_own() -> None:
    chosen = recipe("stages.end-to-end.colour=stepwise", "images.transpose=1")
    assert isinstance(stage_images(chosen.images, chosen.stages[0]).colour, StepwiseColour)
    assert stage_images(chosen.images, chosen.stages[0]).transpose == 1
    assert stage_images(chosen.images, recipe().stages[0]) is chosen.images
    assert "colours              stepwise (jitter_probability 0.8" in explain_recipe(chosen)


@pytest.mark.parametrize("model", ["faster_rcnn", "mask_rcnn"])
def test_data_without_masks_are_refused_for_copy_paste(smoke_set: GeneratedSet, model: str) -> None:
    table = AnnotationTable.from_coco(smoke_set.train)
    chosen = recipe(*ALL_ON, f"model={model}")
    with pytest.raises(DataError, match=r"needs a mask for every object; .* images\.copy_paste=none"):
        training_dataset(chosen, replace(table, masks=None), smoke_set.images)
    assert table.masks is not None
    kind = table.masks.kind.copy()
    kind[5] = 0
    with pytest.raises(DataError, match=rf"1 of {len(kind)} have none \(annotations {table.annotation_ids[5]}\)"):
        training_dataset(chosen, replace(table, masks=replace(table.masks, kind=kind)), smoke_set.images)


def test_boxes_without_masks_will_do_for_the_rest(smoke_set: GeneratedSet) -> None:
    table = replace(AnnotationTable.from_coco(smoke_set.train), masks=None)
    chosen = recipe("images.resize=scale_jitter", "images.resize.size=[48, 80]", "images.colour=stepwise")
    dataset = training_dataset(chosen, table, smoke_set.images)
    for image in range(20):
        picture, target = dataset[Draw(image, image)]
        assert picture.shape == (3, 48, 80)
        assert (target["boxes"] >= 0).all() and (target["boxes"] <= torch.tensor([80, 48, 80, 48])).all()


def test_validation_pictures_are_not_augmented(smoke_set: GeneratedSet) -> None:
    chosen = recipe(*ALL_ON)
    plain = chosen.model_copy(update={"images": validation_images(chosen.images)})
    dataset = training_dataset(plain, replace(AnnotationTable.from_coco(smoke_set.val), masks=None), smoke_set.images)
    one, other = dataset[Draw(3, 1)], dataset[Draw(3, 2)]
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1]["boxes"], other[1]["boxes"])


def test_detecting_pictures_do_not_depend_on_chance(smoke_set: GeneratedSet) -> None:
    chosen = recipe(*ALL_ON, "images.vertical_flip=0.5", "images.brightness=0.5", "images.short_sides=[32, 40, 48]")
    table = replace(AnnotationTable.from_coco(smoke_set.val), masks=None)
    plain = chosen.model_copy(update={"images": detecting_images(chosen.images)})
    dataset = training_dataset(plain, table, smoke_set.images)
    first = dataset[Draw(3, 0)]
    assert first[0].shape == (3, 96, 96), "as `test_short_side` says"
    for seed in range(1, 9):
        other = dataset[Draw(3, seed)]
        assert torch.equal(first[0], other[0])
        assert torch.equal(first[1]["boxes"], other[1]["boxes"])
