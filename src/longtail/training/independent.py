"""A run's detector for pictures of which nothing is kept."""

from __future__ import annotations

from pathlib import Path

from longtail.data.proposals import ProposalTable
from longtail.models.base import Detector, TrainableModel
from longtail.models.proposals import TopN
from longtail.models.proposed import ProposedDetector
from longtail.models.proposer import Proposer
from longtail.models.two_stage import TwoStageDetector
from longtail.schema import UsageError
from longtail.training.assemble import model_from_checkpoint, top_proposals
from longtail.training.checkpoint import IDENTITY, Identity
from longtail.training.proposing import VAL, kept_top, proposal_folder
from longtail.training.run_directory import RunDirectory


def as_detector(model: TrainableModel) -> Detector:
    """``model``, if it is a detector.

    Raises:
        UsageError: it is not.
    """
    if not isinstance(model, Detector):
        raise UsageError(f"{type(model).__name__} does not find objects")
    return model


def run_proposals(identity: Identity, home: Path) -> ProposalTable | None:
    """The kept proposals of a run's own validation pictures; None if its detector needs none, or there are none."""
    recipe = identity.recipe
    if recipe.stages[identity.stage].proposals != "cached":
        return None
    file = proposal_folder(recipe, RunDirectory(home).proposals) / VAL
    return ProposalTable.open(file) if file.is_file() else None


def independent(model: TrainableModel, identity: Identity, home: Path) -> Detector:
    """A run's detector as one that needs pictures alone: on cached proposals, with the network that made them.

    Raises:
        UsageError: it finds no objects, or that network is not in the run.
    """
    detector, recipe = as_detector(model), identity.recipe
    if recipe.stages[identity.stage].proposals != "cached":
        return detector
    places = [RunDirectory(home).stage(n, stage.name) / "end" for n, stage in enumerate(recipe.stages)]
    made = [
        place
        for place, stage in zip(places, recipe.stages, strict=True)
        if stage.proposals == "only" and (place / IDENTITY).is_file()
    ]
    if not made:
        raise UsageError(
            f"the detector in {home} was trained on kept proposals, and the network that made them is not in it; other "
            "pictures need a run whose first stage says proposals=only"
        )
    proposer, _ = model_from_checkpoint(made[-1])
    assert isinstance(proposer, Proposer)
    assert isinstance(detector, TwoStageDetector)
    return ProposedDetector(detector, proposer, top=TopN(kept_top(recipe).before, top_proposals(recipe)[1])).eval()
