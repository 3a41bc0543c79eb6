"""From the schema's `images` to transforms."""

from __future__ import annotations

from torch import nn
from torchvision.transforms.v2 import Transform

from longtail.data import AnnotationTable
from longtail.data.copy_paste import CopyPaste, DonorIndex
from longtail.data.photometric import ColourAndBlur
from longtail.data.scale_jitter import LargeScaleJitter
from longtail.data.transforms import crop_or_not, train_transform
from longtail.schema import augmentation
from longtail.schema.recipe import Images
from longtail.schema.stage import StageSpec


def training_transform(spec: Images) -> Transform:
    """What is done to a training picture and its objects, after pasting."""
    return train_transform(
        spec.short_sides,
        spec.long_side,
        flip=spec.flip,
        vertical_flip=spec.vertical_flip,
        transpose=spec.transpose,
        brightness=spec.brightness,
        padded_crop=spec.padded_crop,
        fixed_size=spec.fixed_size,
        fill=spec.fill,
        colour=colour(spec),
        resize=resizing(spec),
    )


def resizing(spec: Images) -> nn.Module | None:
    """The resizing policy; None = the ordinary one."""
    match spec.resize:
        case augmentation.ShortSide():
            return None
        case augmentation.LargeScaleJitter() as jitter:
            return LargeScaleJitter(jitter.size, jitter.scale, pad=jitter.pad, fill=spec.fill)
        case augmentation.CropOrNot() as detr:
            policy: nn.Module = crop_or_not(
                detr.short_sides or spec.short_sides,
                spec.long_side,
                probability=detr.probability,
                before=detr.before,
                crop=detr.crop,
            )
            return policy


def colour(spec: Images) -> nn.Module | None:
    """Random colours and blur; None = off."""
    match spec.colour:
        case augmentation.NoColour():
            return None
        case augmentation.StepwiseColour() as stepwise:
            return ColourAndBlur(**stepwise.model_dump(exclude={"type"}))


def copy_paste(spec: Images, table: AnnotationTable) -> CopyPaste | None:
    """Copy-paste with the objects of ``table``; None = off.

    Raises:
        DataError: objects without masks.
    """
    match spec.copy_paste:
        case augmentation.NoPaste():
            return None
        case augmentation.ClassAwarePaste() as paste:
            return CopyPaste(
                DonorIndex.from_table(table, power=paste.power),
                probability=paste.probability,
                max_objects=paste.max_objects,
                scale=paste.scale,
                flip=paste.flip,
                min_visible=paste.min_visible,
                blur=paste.blur,
            )


def stage_images(spec: Images, stage: StageSpec) -> Images:
    """`images` as a stage has them."""
    return spec if stage.colour is None else spec.model_copy(update={"colour": stage.colour})


def validation_images(spec: Images) -> Images:
    """For losses on validation pictures: training sizes without flips, crops, other colours or pasted objects."""
    return spec.model_copy(
        update={
            "flip": 0.0,
            "vertical_flip": 0.0,
            "transpose": 0.0,
            "brightness": 0.0,
            "resize": augmentation.ShortSide(),
            "padded_crop": 0,
            "fixed_size": None,
            "colour": augmentation.NoColour(),
            "copy_paste": augmentation.NoPaste(),
        }
    )


def detecting_images(spec: Images) -> Images:
    """For losses that must not depend on chance: pictures as when detecting."""
    sizes = {"short_sides": (spec.test_short_side,), "long_side": spec.test_long_side}
    return validation_images(spec).model_copy(update=sizes)
