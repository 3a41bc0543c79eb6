"""Groups of classes that lie close to each other in feature space (FASA, section 3.2)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longtail.schema.errors import UsageError

Grouping = Literal["fisher_dbscan", "affinity", "affinity_official", "none"]
Noise = Literal["nearest", "single"]
BLOCK = 2**24  # numbers held at once while distances are made


def require_scikit_learn(grouping: str) -> None:
    """Refuses a grouping that needs scikit-learn where it is not installed.

    Raises:
        UsageError: says how to install it.
    """
    if grouping in ("fisher_dbscan", "affinity", "affinity_official"):
        try:
            import sklearn.cluster  # noqa: F401
        except ImportError:
            raise UsageError('grouping classes needs scikit-learn: pip install "longtail[fasa]"') from None


def fisher_distances(mean: Tensor, var: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Fisher's ratio between every two classes, averaged over the dimensions, (C, C) float64, 0 on the diagonal.

    ``(mu_i - mu_j)^2 / (var_i + var_j + eps)``; made in blocks, since C x C x D numbers would not fit.

    Args:
        mean, var: (C, D).
        eps: added to the denominator, >= 0.
    """
    mean, var = mean.double(), var.double()
    rows = max(1, BLOCK // max(1, mean.numel()))
    parts = []
    for start in range(0, mean.shape[0], rows):
        own, spread = mean[start : start + rows, None], var[start : start + rows, None]
        parts.append(((own - mean).square() / (spread + var + eps)).mean(dim=2))
    found = torch.cat(parts) if parts else mean.new_zeros(0, 0)
    return found.fill_diagonal_(0)


def fisher_groups(
    distances: NDArray[np.float64], *, eps: float | None = None, min_samples: int = 2, noise: Noise = "nearest"
) -> NDArray[np.int64]:
    """DBSCAN on distances between classes.

    The paper names neither radius nor density; both defaults are this project's.

    Args:
        distances: (K, K), symmetric, >= 0.
        eps: radius; None = the median over the classes of the distance to their second nearest neighbour.
        min_samples: classes within the radius, itself included, that make a class a core.
        noise: classes in no cluster join that of the ``"nearest"`` clustered class, or stay ``"single"``. If there is
            no cluster at all, every class is its own group.

    Returns:
        (K,) group of every class, 0..G-1.

    Raises:
        UsageError: scikit-learn is not installed.
    """
    size = len(distances)
    if size < 3:
        return np.arange(size)
    require_scikit_learn("fisher_dbscan")
    from sklearn.cluster import DBSCAN

    radius = float(np.median(np.sort(distances, axis=1)[:, 2])) if eps is None else eps
    found = DBSCAN(eps=max(radius, 1e-12), min_samples=min_samples, metric="precomputed").fit(distances).labels_
    return without_noise(np.asarray(found, dtype=np.int64), distances, noise)


def without_noise(labels: NDArray[np.int64], distances: NDArray[np.float64], noise: Noise) -> NDArray[np.int64]:
    """Groups in which every class has a number; -1 is a class in no cluster."""
    lost, kept = np.flatnonzero(labels < 0), np.flatnonzero(labels >= 0)
    found = labels.copy()
    if noise == "nearest" and len(kept):
        found[lost] = labels[kept[distances[np.ix_(lost, kept)].argmin(axis=1)]]
    else:
        found[lost] = labels.max(initial=-1) + 1 + np.arange(len(lost))
    return found


def affinity_groups(mean: Tensor, *, sign: float) -> NDArray[np.int64] | None:
    """Affinity propagation on squared distances of the means, (K,) groups, or None if it does not converge.

    Args:
        mean: (K, D).
        sign: -1 makes similarities of the distances. 1 hands the distances over as they are, as the released code does
            by mistake: classes far apart then count as alike.

    Raises:
        UsageError: scikit-learn is not installed.
    """
    require_scikit_learn("affinity")
    from sklearn.cluster import AffinityPropagation

    if len(mean) < 2:
        return np.arange(len(mean))
    squared = torch.cdist(mean.double(), mean.double()).square().numpy() * sign
    model = AffinityPropagation(
        random_state=1, affinity="precomputed", damping=0.5, max_iter=200, preference=float(np.median(squared))
    )
    found = np.asarray(model.fit(squared).labels_, dtype=np.int64)
    return None if (found < 0).all() else found


def group_classes(
    mean: Tensor,
    var: Tensor,
    seen: Tensor,
    *,
    grouping: Grouping,
    eps: float | None = None,
    min_samples: int = 2,
    noise: Noise = "nearest",
) -> NDArray[np.int64]:
    """Group (C,) of every class; -1 for classes in none, which are those never seen.

    Args:
        mean, var: (C, D).
        seen: (C,) bool.
        grouping: ``"fisher_dbscan"``; ``"affinity"``; ``"affinity_official"``, the released code with its wrong sign,
            for which classes never seen take part; ``"none"``, every class alone.
        eps, min_samples, noise: see :func:`fisher_groups`.
    """
    known = torch.ones_like(seen) if grouping == "affinity_official" else seen
    groups = np.full(len(seen), -1, dtype=np.int64)
    place = known.cpu().numpy().nonzero()[0]
    mean, var = mean[known].cpu(), var[known].cpu()
    match grouping:
        case "none":
            found: NDArray[np.int64] | None = np.arange(len(place))
        case "fisher_dbscan":
            found = fisher_groups(fisher_distances(mean, var).numpy(), eps=eps, min_samples=min_samples, noise=noise)
        case "affinity":
            found = affinity_groups(mean, sign=-1.0)
        case "affinity_official":
            found = affinity_groups(mean, sign=1.0)
    if found is not None:
        groups[place] = found
    return groups
