"""The contract of auxiliary losses (seam 9) and the record that carries what they compare."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn


class Record:
    """Collects named intermediate values of one training step for those who asked for them.

    A detector calls :meth:`keep` at every point that has a name (``"maps"``, ``"region_features"``,
    ``"region_logits"``, ``"region_labels"``, ...); a name nobody asked for costs one set look-up.

    Args:
        wanted: names somebody asked for.
        given: values of a teacher's record of the same step, which the detector looks at besides its own: with
            ``"query_features"`` its classifiers classify those, too, and it keeps ``"shared_query_logits"``; with
            ``"region_features"`` likewise ``"shared_region_logits"``.
    """

    def __init__(self, wanted: Iterable[str], given: Mapping[str, Any] | None = None) -> None:
        self.wanted = frozenset(wanted)
        self.given: Mapping[str, Any] = {} if given is None else given
        self.values: dict[str, Any] = {}

    def keep(self, name: str, value: Any) -> None:
        """Store ``value`` under ``name`` if somebody asked for it."""
        if name in self.wanted:
            self.values[name] = value

    def __getitem__(self, name: str) -> Any:
        if name not in self.values:
            raise KeyError(f"{name!r} was not recorded; recorded: {sorted(self.values) or 'nothing'}")
        return self.values[name]


class AuxiliaryLoss(nn.Module, ABC):
    """A loss between a student's and a frozen teacher's record of the same batch.

    What it returns is averaged over ranks: a mean over images is right as it is, since all ranks have equally many; any
    other divisor goes through :func:`longtail.losses.state.shared_normalisers`.
    """

    #: names the student's and the teacher's record must hold
    wants: frozenset[str] = frozenset()
    #: names of the teacher's record that the student's detector is given; see :class:`Record`
    shares: frozenset[str] = frozenset()

    @abstractmethod
    def forward(self, student: Record, teacher: Record, targets: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Named scalar losses; the teacher's values carry no gradient."""
