"""The mask column against pycocotools, annotation by annotation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as codec

from longtail.data.masks import MaskColumn, SegmentationError, run_totals

H, W = 24, 32


def segmentations(seed: int, count: int) -> list:
    generator = np.random.default_rng(seed)
    found: list = []
    for _ in range(count):
        kind = generator.integers(4)
        if kind == 0:
            found.append(None)
        elif kind == 1:
            found.append([generator.uniform(0, 24, 2 * generator.integers(3, 7)).tolist() for _ in range(2)])
        else:
            mask = np.asfortranarray((generator.random((H, W)) < 0.3).astype(np.uint8))
            code = codec.encode(mask)
            if kind == 2:
                found.append({"size": [H, W], "counts": code["counts"].decode()})
            else:
                flat = mask.flatten(order="F")
                runs, value, length = [], 0, 0
                for pixel in flat:
                    if pixel != value:
                        runs.append(length)
                        value, length = pixel, 0
                    length += 1
                found.append({"size": [H, W], "counts": [*runs, length]})
    return found


def reference(given_: object) -> np.ndarray:
    if given_ is None:
        return np.zeros((H, W), np.uint8)
    if isinstance(given_, list):
        return codec.decode(codec.merge(codec.frPyObjects(given_, H, W)))
    if isinstance(given_["counts"], list):
        return codec.decode(codec.frPyObjects(given_, H, W))
    return codec.decode({"size": given_["size"], "counts": given_["counts"].encode()})


@given(seed=st.integers(0, 1000), count=st.integers(0, 8))
@settings(max_examples=40, deadline=None)
def test_decoding_and_taking(seed: int, count: int) -> None:
    given_ = segmentations(seed, count)
    column = MaskColumn.from_json(given_)
    assert len(column) == count
    found = column.decode(np.arange(count), H, W)
    assert found.shape == (count, H, W)
    for row in range(count):
        assert np.array_equal(found[row], reference(given_[row])), row
        assert np.array_equal(codec.decode(column.rle(row, H, W)), found[row])
    order = np.random.default_rng(seed).permutation(count)[: max(0, count - 1)]
    taken = column.take(order)
    assert np.array_equal(taken.decode(np.arange(len(order)), H, W), found[order])
    again = MaskColumn.from_json([column.to_json(row) for row in range(count)])
    assert np.array_equal(again.decode(np.arange(count), H, W), found)


def test_an_encoding_of_another_size_is_refused() -> None:
    column = MaskColumn.from_json([{"size": [4, 5], "counts": [0, 20]}])
    with pytest.raises(ValueError, match="4 x 5"):
        column.rle(0, 5, 4)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_totals_of_run_lengths_equal_the_loop(seed: int) -> None:
    generator = np.random.default_rng(seed)
    runs = [
        generator.choice([0, 1, 15, 16, 17, 500, 16_384, 2**20], generator.integers(1, 9)).tolist() for _ in range(6)
    ]
    codes = [codec.frPyObjects({"size": [1, sum(row)], "counts": row}, 1, sum(row))["counts"] for row in runs]
    start = np.concatenate(([0], np.cumsum([len(code) for code in codes])))
    totals = run_totals(np.frombuffer(b"".join(codes), np.uint8), start)
    assert totals.tolist() == [sum(row) for row in runs]


@pytest.mark.parametrize("counts", ["", "0:Z", "P", "\x7f00", "  ", "PPPPPPPPPPPP0", [0, 19], [21], [], [20, 1]])
def test_run_lengths_that_do_not_fill_the_mask_are_refused(counts: object) -> None:
    good = {"size": [4, 5], "counts": [0, 20]}
    with pytest.raises(SegmentationError, match="1: its run lengths do not add up to 4 x 5"):
        MaskColumn.from_json([good, {"size": [4, 5], "counts": counts}, good])


def test_the_wrong_polygon_is_found_among_many() -> None:
    good = [0, 0, 5, 0, 5, 5]
    with pytest.raises(SegmentationError, match="three points") as error:
        MaskColumn.from_json([None, [good, good], [], [good, [1, 2]], [good]])
    assert error.value.row == 3


def test_whole_columns_are_checked_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longtail.data.masks.CHUNK", 2)
    given_ = segmentations(5, 9)
    assert np.array_equal(MaskColumn.from_json(given_).decode(range(9), H, W)[8], reference(given_[8]))
    with pytest.raises(SegmentationError, match=r"^9: "):
        MaskColumn.from_json([*given_, {"size": [H, W], "counts": [1]}])
