"""Repeat factor sampling of pictures (Gupta et al., LVIS, CVPR 2019, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from longtail.sampling.images import ImageSampler

Rounding = Literal["stochastic", "ceil", "round", "floor"]


@dataclass(frozen=True)
class RepeatFactors:
    """Repeat factors of classes and pictures.

    Attributes:
        class_frequency: (C,) f(c), share of the pictures that hold the class, in [0, 1].
        class_factors: (C,) r(c) >= 1; 1 for a class without pictures.
        image_factors: (I,) r(I) >= 1; 1 for a picture without objects.
        threshold: t, as given or as read off the data.
    """

    class_frequency: NDArray[np.float64]
    class_factors: NDArray[np.float64]
    image_factors: NDArray[np.float64]
    threshold: float


def image_classes(
    image_start: NDArray[np.int64], labels: NDArray[np.int32], num_classes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The distinct (picture, class) pairs of a data set with their number of objects.

    Args:
        image_start: (I + 1,) where every picture's objects begin; they are sorted by picture.
        labels: (A,) class of every object, 0..C-1.
        num_classes: C.

    Returns:
        picture (P,), class (P,), objects (P,); sorted by picture, then class.
    """
    picture = np.repeat(np.arange(len(image_start) - 1, dtype=np.int64), np.diff(image_start))
    pairs, objects = np.unique(picture * num_classes + labels.astype(np.int64), return_counts=True)
    return pairs // num_classes, pairs % num_classes, objects.astype(np.int64)


def repeat_factors(
    image_start: NDArray[np.int64],
    labels: NDArray[np.int32],
    num_classes: int,
    *,
    threshold: float | Literal["auto"] = 0.001,
    exponent: float = 0.5,
    count_empty: bool = True,
) -> RepeatFactors:
    """``r(c) = max(1, (t / f(c)) ** exponent)`` and ``r(I) = max over the classes in I of r(c)``.

    Args:
        image_start, labels, num_classes: as for :func:`image_classes`.
        threshold: t, the share of pictures below which a class is repeated, > 0. ``"auto"``: the 2/3 quantile
            of f(c) over the classes that have pictures, so that two thirds of the classes are repeated whatever the
            data's size; on LVIS v1 that is the published 0.001.
        exponent: 0.5 is the published square root.
        count_empty: whether pictures without objects count among all pictures in f(c).

    Raises:
        ValueError: a threshold or exponent out of range.
    """
    pictures = len(image_start) - 1
    picture, label, _ = image_classes(image_start, labels, num_classes)
    holding = np.bincount(label, minlength=num_classes)
    total = pictures if count_empty else int(np.count_nonzero(np.diff(image_start)))
    frequency = holding / max(total, 1)
    present = holding > 0
    if threshold == "auto":
        limit = float(np.quantile(frequency[present], 2 / 3)) if present.any() else 0.0
    else:
        limit = float(threshold)
        if limit <= 0:
            raise ValueError(f"threshold must be above 0 or 'auto', got {threshold}")
    if exponent < 0:
        raise ValueError(f"exponent must be at least 0, got {exponent}")
    class_factors = np.ones(num_classes)
    class_factors[present] = np.maximum(1.0, (limit / frequency[present]) ** exponent)
    image_factors = np.ones(pictures)
    np.maximum.at(image_factors, picture, class_factors[label])
    return RepeatFactors(frequency, class_factors, image_factors, limit)


@dataclass(frozen=True)
class Effect:
    """What resampling does to the classes, in expectation over an epoch.

    Attributes:
        threshold: t.
        epoch_images: expected pictures per epoch; ``images`` without resampling.
        class_factors, images_per_class: (C,) r(c) and pictures of the class.
        before, after: (C,) objects per class in an epoch without and with resampling.
        names, group: (C,) name and frequency group of every class.
    """

    threshold: float
    images: int
    epoch_images: float
    class_factors: NDArray[np.float64]
    images_per_class: NDArray[np.int64]
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    names: list[str]
    group: NDArray[np.str_]

    @property
    def has_effect(self) -> bool:
        """Whether any picture is repeated."""
        return bool((self.class_factors > 1).any())

    def lines(self, limit: int = 12) -> list[str]:
        """The table of r(c) (its ``limit`` largest), objects per group before and after, and a warning if idle."""
        if not self.has_effect:
            return [
                f"warning: repeat factor sampling has no effect: no class is in less than {self.threshold:.4g} of the "
                f"pictures (the rarest is in {self.rarest:.4g}); raise the threshold or say `auto`"
            ]
        text = [
            f"repeat factors at t = {self.threshold:.4g}: an epoch has {self.epoch_images:.0f} images instead of "
            f"{self.images}; {int((self.class_factors > 1).sum())} of {len(self.names)} classes are repeated"
        ]
        width = max(len(name) for name in self.names)
        order = np.argsort(-self.class_factors, kind="stable")
        repeated = order[self.class_factors[order] > 1]
        text.append(f"  {'class':<{width}}  group  images  r(c)   objects -> expected")
        text += [
            f"  {self.names[c]:<{width}}  {self.group[c]:<5}  {self.images_per_class[c]:>6}"
            f"  {self.class_factors[c]:<5.2f}  {self.before[c]:>7.0f} -> {self.after[c]:.1f}"
            for c in repeated[:limit]
        ]
        if len(repeated) > limit:
            text.append(f"  ... and {len(repeated) - limit} more classes with r(c) > 1")
        for letter, name in (("r", "rare"), ("c", "common"), ("f", "frequent")):
            member = self.group == letter
            if member.any():
                old, new = float(self.before[member].sum()), float(self.after[member].sum())
                share = f"x{new / old:.2f}" if old else "-"
                text.append(
                    f"  {name}: {int(member.sum())} classes, {old:.0f} objects -> {new:.0f} per epoch ({share})"
                )
        return text

    @property
    def rarest(self) -> float:
        """Smallest share of pictures of any class that has pictures."""
        present = self.images_per_class[self.images_per_class > 0]
        return float(present.min() / self.images) if len(present) else 0.0


class RepeatFactorSampler(ImageSampler):
    """Repeats every picture r(I) times per epoch.

    Args:
        image_start, labels, num_classes: as for :func:`image_classes`.
        seed: source of rounding and order.
        threshold, exponent, count_empty: as for :func:`repeat_factors`.
        rounding: how r(I) becomes a number of copies. ``"stochastic"``: floor(r) plus one with probability
            r - floor(r), anew every epoch (detectron2, RIO); ``"ceil"`` (mmdetection), ``"round"`` (half to even) and
            ``"floor"`` are the same every epoch.

    Raises:
        ValueError: an unknown rounding, or arguments out of range.
    """

    def __init__(
        self,
        image_start: NDArray[np.int64],
        labels: NDArray[np.int32],
        num_classes: int,
        *,
        seed: int,
        threshold: float | Literal["auto"] = 0.001,
        exponent: float = 0.5,
        rounding: Rounding = "stochastic",
        count_empty: bool = True,
    ) -> None:
        super().__init__(len(image_start) - 1, seed=seed)
        if rounding not in ("stochastic", "ceil", "round", "floor"):
            raise ValueError(f"rounding must be stochastic, ceil, round or floor, got {rounding!r}")
        self.factors = repeat_factors(
            image_start, labels, num_classes, threshold=threshold, exponent=exponent, count_empty=count_empty
        )
        self.rounding = rounding
        self._pairs = image_classes(image_start, labels, num_classes)
        self._num_classes = num_classes

    def copies(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """(I,) how often every picture appears in an epoch drawn with ``generator``."""
        factors = self.factors.image_factors
        match self.rounding:
            case "stochastic":
                whole = np.floor(factors)
                return (whole + (generator.random(len(factors)) < factors - whole)).astype(np.int64)
            case "ceil":
                return np.ceil(factors).astype(np.int64)
            case "round":
                return np.rint(factors).astype(np.int64)
            case "floor":
                return np.floor(factors).astype(np.int64)

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Every picture with its copies, shuffled once."""
        generator = self.generator(epoch)
        rows = np.repeat(np.arange(self.num_images, dtype=np.int64), self.copies(generator))
        return generator.permutation(rows)

    def expected_copies(self) -> NDArray[np.float64]:
        """(I,) mean number of copies per epoch."""
        if self.rounding == "stochastic":
            return self.factors.image_factors
        return self.copies(self.generator(0)).astype(np.float64)

    def effect(self, group: NDArray[np.str_], names: list[str]) -> Effect:
        """What this does to the classes: ``group`` (C,) letters r, c, f, and ``names`` (C,)."""
        picture, label, objects = self._pairs
        copies = self.expected_copies()
        return Effect(
            threshold=self.factors.threshold,
            images=self.num_images,
            epoch_images=float(copies.sum()),
            class_factors=self.factors.class_factors,
            images_per_class=np.bincount(label, minlength=self._num_classes),
            before=np.bincount(label, weights=objects, minlength=self._num_classes).astype(np.float64),
            after=np.bincount(label, weights=objects * copies[picture], minlength=self._num_classes).astype(np.float64),
            names=list(names),
            group=group,
        )

    def describe(self) -> str:
        """One line."""
        mean = float(self.expected_copies().sum())
        return (
            f"repeat factor, t = {self.factors.threshold:.4g}, {self.rounding} rounding, {mean:.0f} images per epoch "
            f"from {self.num_images}"
        )
