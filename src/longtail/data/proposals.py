"""Proposals of pictures in an Arrow file that is mapped into memory, for detectors that propose no regions themselves.

One row per picture, sorted by ``image_id`` (the id as JSON text: ``17``, ``"a.jpg"``): ``boxes``, corners x1, y1, x2,
y2 in pixels of the picture, one after the other, and ``scores`` in 0..1, highest first; lists of float32.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtail.data.files import sync_folder
from longtail.schema.errors import DataError


@dataclass(frozen=True, eq=False)
class ProposalTable:
    """Proposals of I pictures, P in all.

    Attributes:
        keys: ids of the pictures as JSON text, ascending.
        start: (I + 1,) int64; those of picture i are rows ``start[i]`` to ``start[i + 1] - 1``.
        boxes: (P, 4) float32 corners in pixels of the picture as in its file, EXIF rotation applied.
        scores: (P,) float32, highest first within a picture.
        source: where they came from, for messages.
    """

    keys: list[str]
    start: NDArray[np.int64]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    source: str = "proposals"

    @classmethod
    def of(
        cls,
        image_ids: Sequence[Any],
        counts: NDArray[np.int64],
        boxes: NDArray[np.float32],
        scores: NDArray[np.float32],
    ) -> ProposalTable:
        """Sorts proposals by picture.

        Args:
            image_ids: of every picture, in any order.
            counts: (I,) proposals of every picture.
            boxes, scores: (P, 4) and (P,), picture by picture in that order.
        """
        keys = [json.dumps(each) for each in image_ids]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        begin = np.cumsum(counts) - counts
        rows = [np.arange(begin[place], begin[place] + counts[place]) for place in order]
        chosen = np.concatenate(rows) if rows else np.zeros(0, np.int64)
        return cls(
            keys=[keys[place] for place in order],
            start=np.concatenate(([0], np.cumsum(counts[order]))).astype(np.int64),
            boxes=boxes[chosen].astype(np.float32),
            scores=scores[chosen].astype(np.float32),
        )

    def rows_of(self, image_ids: Sequence[Any]) -> NDArray[np.int64]:
        """Where pictures are in this table.

        Raises:
            DataError: it lacks some of them.
        """
        place = {key: row for row, key in enumerate(self.keys)}
        wanted = [json.dumps(each) for each in image_ids]
        lacking = [key for key in wanted if key not in place]
        if lacking:
            raise DataError(
                f"{self.source} has no proposals of {len(lacking)} of {len(wanted)} pictures, the first is image "
                f"{lacking[0]}; write it anew for these annotations (`longtail proposals`)"
            )
        return np.array([place[key] for key in wanted], dtype=np.int64)

    def best(self, row: int, count: int) -> NDArray[np.float32]:
        """The ``count`` highest boxes (n, 4) of the picture in a row, as a copy."""
        first = int(self.start[row])
        return self.boxes[first : min(first + count, int(self.start[row + 1]))].copy()

    def write(self, path: Path) -> None:
        """Writes the file, complete or not at all."""
        import pyarrow as pa

        ends = pa.array(self.start, type=pa.int64())
        columns = {
            "image_id": pa.array(self.keys, type=pa.large_string()),
            "boxes": pa.LargeListArray.from_arrays(
                pa.array(4 * self.start, type=pa.int64()), pa.array(self.boxes.reshape(-1), type=pa.float32())
            ),
            "scores": pa.LargeListArray.from_arrays(ends, pa.array(self.scores, type=pa.float32())),
        }
        table = pa.table(columns)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            os.close(handle)
            with pa.OSFile(draft, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
            with open(draft, "rb") as written:
                os.fsync(written.fileno())
            os.chmod(draft, 0o644)
            os.replace(draft, path)
            sync_folder(path.parent)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise

    @classmethod
    def open(cls, path: Path) -> ProposalTable:
        """Maps a file into memory.

        Raises:
            DataError: it is missing, damaged, or no table of proposals.
        """
        import pyarrow as pa

        if not path.is_file():
            raise DataError(f"there are no proposals at {path}; `longtail proposals` writes them")
        try:
            with pa.memory_map(str(path)) as file:
                table = pa.ipc.open_file(file).read_all().combine_chunks()
            keys = table.column("image_id").to_pylist()
            boxes, scores = (_chunk(table.column(name)) for name in ("boxes", "scores"))
            start = scores.offsets.to_numpy()
            corners = boxes.values.to_numpy(zero_copy_only=True).reshape(-1, 4)
            values = scores.values.to_numpy(zero_copy_only=True)
            whole = np.array_equal(boxes.offsets.to_numpy(), 4 * start) and len(values) == len(corners) == start[-1]
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, pa.ArrowException) as error:
            raise DataError(f"{path} is no table of proposals, or it is damaged ({error}); write it anew") from None
        if not whole or corners.dtype != np.float32 or start[0] != 0:
            raise DataError(f"{path} is no table of proposals: boxes and scores do not belong together; write it anew")
        return cls(keys, start, corners, values, source=str(path))


def _chunk(column: Any) -> Any:
    """A column as one array, empty ones included."""
    import pyarrow as pa

    return column.chunk(0) if column.num_chunks else pa.array([], type=column.type)
