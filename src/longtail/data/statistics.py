"""How often every class occurs, and the frequency groups that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Count = Literal["images", "instances"]


@dataclass(frozen=True, eq=False)
class ClassStatistics:
    """Counts of the training annotations, before any resampling. Crowd regions are not counted.

    Attributes:
        names: (C,) class names.
        image_counts: (C,) pictures that hold the class.
        instance_counts: (C,) objects of the class.
        num_images: pictures, those without objects included.
        num_nonempty: pictures with at least one object.
        edges: a class is rare up to the first number, common up to the second, frequent above.
        count: what the edges are compared with.
    """

    names: list[str]
    image_counts: NDArray[np.int64]
    instance_counts: NDArray[np.int64]
    num_images: int
    num_nonempty: int
    edges: tuple[int, int] = (10, 100)
    count: Count = "images"

    def __post_init__(self) -> None:
        if not 0 <= self.edges[0] <= self.edges[1]:
            raise ValueError(f"the edges of the groups must not be negative and must ascend, got {self.edges}")
        if not len(self.names) == len(self.image_counts) == len(self.instance_counts):
            raise ValueError(
                f"{len(self.names)} names, {len(self.image_counts)} image counts and {len(self.instance_counts)} "
                "instance counts; there must be one of each per class"
            )

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.names)

    @property
    def group(self) -> NDArray[np.str_]:
        """(C,) ``r``, ``c``, ``f``, or ``-`` for a class without any training picture."""
        counts = self.image_counts if self.count == "images" else self.instance_counts
        letters = np.where(counts <= self.edges[0], "r", np.where(counts <= self.edges[1], "c", "f"))
        letters[self.image_counts == 0] = "-"
        return letters

    @property
    def image_frequency(self) -> NDArray[np.float64]:
        """(C,) share of the pictures with objects that hold the class."""
        return self.image_counts / max(self.num_nonempty, 1)

    def rows(self) -> list[tuple[str, int, int, str]]:
        """(name, images, instances, group) of every class, most frequent first."""
        order = np.argsort(-self.image_counts, kind="stable").tolist()
        group = self.group
        return [(self.names[c], int(self.image_counts[c]), int(self.instance_counts[c]), str(group[c])) for c in order]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "names": self.names,
            "image_counts": self.image_counts.tolist(),
            "instance_counts": self.instance_counts.tolist(),
            "num_images": self.num_images,
            "num_nonempty": self.num_nonempty,
            "edges": list(self.edges),
            "count": self.count,
            "group": self.group.tolist(),
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> ClassStatistics:
        """The inverse of :meth:`to_dict`."""
        return cls(
            names=list(content["names"]),
            image_counts=np.asarray(content["image_counts"], dtype=np.int64),
            instance_counts=np.asarray(content["instance_counts"], dtype=np.int64),
            num_images=content["num_images"],
            num_nonempty=content["num_nonempty"],
            edges=(content["edges"][0], content["edges"][1]),
            count=content["count"],
        )
