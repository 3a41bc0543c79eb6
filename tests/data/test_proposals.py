"""Tables of proposals: written and mapped, found by image id, and moved with the objects' boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors

from longtail.data import AnnotationTable
from longtail.data.copy_paste import CopyPaste, DonorIndex
from longtail.data.dataset import DetectionDataset, Draw
from longtail.data.geometry import as_boxes
from longtail.data.proposals import ProposalTable
from longtail.data.scale_jitter import LargeScaleJitter
from longtail.data.scenes import GeneratedSet
from longtail.data.transforms import crop_or_not, train_transform
from longtail.schema import DataError, UsageError


def table() -> ProposalTable:
    boxes = np.arange(24, dtype=np.float32).reshape(6, 4)
    scores = np.array([0.9, 0.1, 0.8, 0.7, 0.6, 0.5], dtype=np.float32)
    return ProposalTable.of([30, "b", 4, 200], np.array([2, 1, 0, 3]), boxes, scores)


def test_rows_are_sorted_by_id_and_found_again(tmp_path: Path) -> None:
    made = table()
    assert made.keys == ['"b"', "200", "30", "4"]
    assert made.start.tolist() == [0, 1, 4, 6, 6]
    made.write(tmp_path / "deep" / "train.arrow")
    found = ProposalTable.open(tmp_path / "deep" / "train.arrow")
    assert found.keys == made.keys
    for name in ("start", "boxes", "scores"):
        assert np.array_equal(getattr(found, name), getattr(made, name)), name
    assert not found.boxes.flags.owndata, "mapped, not read"
    rows = found.rows_of([4, 30, "b"])
    assert found.best(int(rows[0]), 5).shape == (0, 4)
    assert found.best(int(rows[1]), 5).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert found.best(int(rows[1]), 1).tolist() == [[0, 1, 2, 3]]
    assert found.best(int(rows[2]), 5).tolist() == [[8, 9, 10, 11]]
    with pytest.raises(DataError, match=r"train\.arrow has no proposals of 2 of 3 pictures, the first is image 31"):
        found.rows_of([31, 30, "4"])


def test_a_table_of_nothing(tmp_path: Path) -> None:
    empty = ProposalTable.of([], np.zeros(0, np.int64), np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
    empty.write(tmp_path / "none.arrow")
    assert ProposalTable.open(tmp_path / "none.arrow").keys == []


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="longtail proposals"):
        ProposalTable.open(tmp_path / "nowhere.arrow")
    (tmp_path / "text.arrow").write_text("no table")
    with pytest.raises(DataError, match="write it anew"):
        ProposalTable.open(tmp_path / "text.arrow")
    table().write(tmp_path / "cut.arrow")
    content = (tmp_path / "cut.arrow").read_bytes()
    (tmp_path / "cut.arrow").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="write it anew"):
        ProposalTable.open(tmp_path / "cut.arrow")
    wrong = [([[1.0, 2, 3], []], [[1.0], []]), ([[0.0] * 4, [0.0] * 4], [[1.0, 0.5], []])]
    for boxes, scores in wrong:  # three numbers to a box; scores of another picture
        lists = pa.large_list(pa.float32())
        made = pa.table({"image_id": ["1", "2"], "boxes": pa.array(boxes, lists), "scores": pa.array(scores, lists)})
        with pa.OSFile(str(tmp_path / "wrong.arrow"), "wb") as file, pa.ipc.new_file(file, made.schema) as writer:
            writer.write_table(made)
        with pytest.raises(DataError, match="write it anew"):
            ProposalTable.open(tmp_path / "wrong.arrow")


def sample(seed: int, height: int, width: int) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(1, 5, (), generator=generator))
    frame = torch.tensor([width, height])
    first, second = (torch.rand(count, 2, generator=generator) * frame for _ in range(2))
    corners = torch.cat([torch.minimum(first, second), torch.maximum(first, second) + 0.5], dim=1)
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    return tv_tensors.Image(image), {
        "boxes": as_boxes(corners, height, width),
        "labels": torch.arange(count),
        "proposals": as_boxes(corners.clone(), height, width),
    }


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from(["short_side", "jitter", "padded", "crops"]),
    st.booleans(),
    st.sampled_from([None, (40, 50)]),
)
def test_proposals_move_exactly_like_boxes(seed: int, resize: str, turned: bool, fixed: tuple[int, int] | None) -> None:
    chosen = {
        "short_side": None,
        "jitter": LargeScaleJitter((48, 40), (0.3, 2.0), pad=False),
        "padded": LargeScaleJitter((48, 40), (0.3, 2.0)),
        "crops": crop_or_not([32, 48], 80, probability=0.7, before=(40, 60), crop=(20, 40)),
    }[resize]
    transform = train_transform(
        [32, 48], 80, flip=0.5, vertical_flip=0.5, transpose=0.5 * turned, fixed_size=fixed, resize=chosen
    )
    torch.manual_seed(seed)
    _, moved = transform(*sample(seed, 50, 70))
    assert torch.equal(moved["boxes"].as_subclass(Tensor), moved["proposals"].as_subclass(Tensor))
    assert moved["proposals"].canvas_size == moved["boxes"].canvas_size
    assert len(moved["labels"]) == len(moved["boxes"])


def test_there_may_be_another_number_of_proposals_than_of_objects() -> None:
    image, given_sample = sample(3, 50, 70)
    corners = torch.tensor([[0.0, 0, 70, 50], [1, 2, 3, 4], [60, 40, 80, 49], [5, 5, 5, 9]] * 3)
    given_sample["proposals"] = as_boxes(corners, 50, 70)
    transform = train_transform([25], 80, flip=1.0)
    _, moved = transform(image, given_sample)
    x1, y1, x2, y2 = corners.unbind(1)
    expected = torch.stack([70 - x2.clamp(max=70), y1, 70 - x1, y2], dim=1)[x2 > x1] / 2
    torch.testing.assert_close(moved["proposals"].as_subclass(Tensor), expected)


def test_targets_have_the_best_proposals_of_their_picture(smoke_set: GeneratedSet) -> None:
    own = AnnotationTable.from_coco(smoke_set.train)
    count = own.num_images
    per_image = np.arange(count) % 4
    boxes = np.tile(np.array([[2, 3, 20, 30]], np.float32), (int(per_image.sum()), 1))
    boxes[:, 2] += np.arange(len(boxes)) % 30
    cached = ProposalTable.of(own.image_ids.tolist(), per_image, boxes, np.ones(len(boxes), np.float32))
    data = DetectionDataset(own, smoke_set.images, proposals=cached, top_proposals=2)
    begin = np.cumsum(per_image) - per_image
    for image in (0, 1, 2, 3, count - 1):
        target = data[Draw(image, 5)][1]
        first, number = int(begin[image]), min(int(per_image[image]), 2)
        assert type(target["proposals"]) is Tensor
        assert target["proposals"].tolist() == boxes[first : first + number].tolist()
    assert "proposals" not in DetectionDataset(own, smoke_set.images)[0][1]
    with pytest.raises(UsageError, match="pasted"):
        DetectionDataset(
            own, smoke_set.images, proposals=cached, copy_paste=CopyPaste(DonorIndex.from_table(own, power=1.0))
        )
    some = ProposalTable.of([own.image_ids.tolist()[0]], per_image[1:2], boxes[:1], np.ones(1, np.float32))
    with pytest.raises(DataError, match="no proposals of"):
        DetectionDataset(own, smoke_set.images, proposals=some)
