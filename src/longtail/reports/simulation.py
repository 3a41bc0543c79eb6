"""Epochs of a recipe without training: instances per class with and without its sampler and its memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtail.build.replay import targeted
from longtail.build.samplers import stage_sampler
from longtail.data import AnnotationTable, ClassStatistics
from longtail.reports.tables import GROUP_NAMES, columns
from longtail.sampling.epochs import Memory, Pairs, objects_per_class, pairs_of, replayed_per_class
from longtail.sampling.images import ImageSampler
from longtail.schema import Recipe, UsageError
from longtail.schema import replay as replay_specs
from longtail.schema import samplers as sampler_specs
from longtail.schema.stage import StageSpec

PLAIN, SAMPLED, REPLAYED, BOTH = "plain", "sampler", "memory", "both"


@dataclass(frozen=True)
class Simulation:
    """Means per epoch.

    Attributes:
        statistics: of the classes.
        targeted: (C,) bool, classes of the memory.
        labels: what the kinds of epoch are called, e.g. ``{"plain": "plain", "sampler": "repeat_factor", ...}``.
        images: pictures by kind.
        instances: (C,) objects by kind, with the rows that the memory adds.
        visits: (C,) updates of the bank by kind, for the kinds with a memory.
        epochs: how many were simulated.
    """

    statistics: ClassStatistics
    targeted: NDArray[np.bool_]
    labels: dict[str, str]
    images: dict[str, float]
    instances: dict[str, NDArray[np.float64]]
    visits: dict[str, NDArray[np.float64]]
    epochs: int

    def groups(self) -> list[dict[str, Any]]:
        """Sums over the classes of every frequency group."""
        found = []
        for group, name in GROUP_NAMES.items():
            members = self.statistics.group == group
            if members.any() and group != "-":
                found.append(
                    {
                        "group": name,
                        "classes": int(members.sum()),
                        "targeted": int((members & self.targeted).sum()),
                        "instances": {kind: float(value[members].sum()) for kind, value in self.instances.items()},
                        "updates": {
                            kind: float(value[members & self.targeted].mean()) if (members & self.targeted).any() else 0
                            for kind, value in self.visits.items()
                        },
                    }
                )
        return found

    def rows(self) -> tuple[list[str], list[list[object]]]:
        """Columns and one row per class, most frequent first."""
        header = ["class", "group", "images", "targeted"]
        header += [f"instances {label}" for label in self.labels.values()]
        header += [f"updates {self.labels[kind]}" for kind in self.visits]
        order = np.argsort(-self.statistics.instance_counts, kind="stable").tolist()
        group = self.statistics.group
        return header, [
            [
                self.statistics.names[c],
                str(group[c]),
                int(self.statistics.image_counts[c]),
                int(self.targeted[c]),
                *(float(value[c]) for value in self.instances.values()),
                *(float(value[c]) for value in self.visits.values()),
            ]
            for c in order
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        header, rows = self.rows()
        return {
            "epochs": self.epochs,
            "labels": self.labels,
            "images": self.images,
            "groups": self.groups(),
            "classes": [dict(zip(header, row, strict=True)) for row in rows],
        }

    def text(self) -> str:
        """The table for terminals."""
        header = ["instances per epoch", "classes", "targeted"]
        for kind, label in self.labels.items():
            header += [label] if kind == PLAIN else [label, "change"]
        lines = []
        for group in self.groups():
            plain = group["instances"][PLAIN]
            cells = [group["group"], str(group["classes"]), str(group["targeted"])]
            for kind in self.labels:
                value = group["instances"][kind]
                change = f"{100 * (value / plain - 1):+.0f} %" if plain else "-"
                cells += [f"{value:.0f}"] if kind == PLAIN else [f"{value:.0f}", change]
            lines.append(cells)
        images = [f"{self.labels[kind]} {value:.0f}" for kind, value in self.images.items()]
        said = [f"images per epoch: {', '.join(images)}; means over {self.epochs} epochs", columns(header, lines)]
        if self.visits:
            kinds = list(self.visits)
            own = [group for group in self.groups() if group["targeted"]]
            table = [[group["group"], *(f"{group['updates'][kind]:.1f}" for kind in kinds)] for group in own]
            said.append(columns(["bank updates per targeted class", *(self.labels[kind] for kind in kinds)], table))
        return "\n\n".join(said)


def simulate(
    recipe: Recipe, table: AnnotationTable, *, epochs: int = 8, processes: int = 1, positives: int = 20
) -> Simulation:
    """Counts the epochs of a recipe's first stage: plain, with its image sampler, its memory, and both.

    Args:
        recipe: with a sampler other than uniform, or with ``object_memory``, or with both, as ``rio``.
        table: the annotations, as training reads them.
        epochs: of every kind, >= 1; the bank is empty before the first.
        processes: each with a bank of its own and its share of every batch.
        positives: positive regions that an object is assumed to have per step.

    Raises:
        UsageError: a recipe that changes nothing, or a batch that cannot be split.
    """
    if not recipe.images.keep_empty:
        table = table.without_empty()
    statistics = table.statistics(edges=recipe.groups.edges, count=recipe.groups.count)
    stage = recipe.stages[0]
    spec = next((part for part in stage.replay if isinstance(part, replay_specs.ObjectMemory)), None)
    sampled = stage.sampler.type != "uniform"
    if spec is None and not sampled:
        raise UsageError(f"{recipe.name} has neither an image sampler nor object_memory; rio has both")
    batch = stage.schedule.batch_size // stage.schedule.accumulate
    if epochs < 1 or positives < 1 or processes < 1 or batch % processes:
        raise UsageError(
            f"epochs, positives and processes are at least 1, and the batch of {batch} is split over the processes; "
            f"got {epochs}, {positives} and {processes}"
        )
    pairs = counted_pairs(table)
    memory = None
    chosen = np.zeros(table.num_classes, dtype=np.bool_)
    if spec is not None:
        chosen = targeted(spec, statistics).numpy()
        memory = Memory(chosen, spec.count, spec.capacity, positives, spec.source == "current")
    labels = {PLAIN: "plain"}
    labels |= {SAMPLED: stage.sampler.type} if sampled else {}
    labels |= {REPLAYED: "plain + memory"} if memory is not None else {}
    labels |= {BOTH: f"{stage.sampler.type} + memory"} if sampled and memory is not None else {}

    images: dict[str, float] = {}
    instances: dict[str, NDArray[np.float64]] = {}
    visits: dict[str, NDArray[np.float64]] = {}
    for with_memory, without_memory, own in ((REPLAYED, PLAIN, uniform(stage)), (BOTH, SAMPLED, stage)):
        if without_memory not in labels:
            continue
        stream = stream_of(stage_sampler(own, table, seed=recipe.seed), epochs)
        shown = objects_per_class(pairs, stream) / epochs
        images[without_memory], instances[without_memory] = len(stream) / epochs, shown
        if memory is not None:
            added, visited = replayed_per_class(pairs, stream, memory, batch_size=batch, processes=processes)
            images[with_memory], instances[with_memory] = len(stream) / epochs, shown + added / epochs
            visits[with_memory] = visited / epochs
    return Simulation(
        statistics,
        chosen,
        labels,
        {kind: images[kind] for kind in labels},
        {kind: instances[kind] for kind in labels},
        visits,
        epochs,
    )


def counted_pairs(table: AnnotationTable) -> Pairs:
    """The pairs of pictures and classes; crowds and ignored objects do not count."""
    usable = ~(table.iscrowd | table.ignore)
    return pairs_of(table.image_index[usable], table.label[usable], table.num_images, table.num_classes)


def uniform(stage: StageSpec) -> StageSpec:
    """The stage with plain sampling."""
    return stage.model_copy(update={"sampler": sampler_specs.Uniform(), "source_weights": ()})


def stream_of(sampler: ImageSampler, epochs: int) -> NDArray[np.int64]:
    """Pictures of several epochs in the order of training."""
    return np.concatenate([sampler.epoch(epoch) for epoch in range(epochs)])
