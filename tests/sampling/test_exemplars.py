"""Exemplars: a walk down a list as in the specification, splits by hand, prefixes, edge cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.sampling import exemplar_ranks, select_exemplars, smooth_tail_split
from longtail.sampling.exemplars import class_parts


def walk(label, score, image, counts, confidence=0.5):
    """Rows chosen class by class, as section 3 of the specification says."""
    chosen = []
    for each in range(len(counts)):
        rows = [row for row in range(len(label)) if label[row] == each]
        order = sorted(rows, key=lambda row: (-float(score[row]), row))
        diverse, seen = [], set()
        for row in order:
            if score[row] > confidence and image[row] not in seen:
                diverse.append(row)
                seen.add(image[row])
        most = order[: counts[each]]
        chosen.append((diverse + [row for row in most if row not in diverse])[: counts[each]])
    return chosen


@st.composite
def objects(draw):
    count = draw(st.integers(0, 25))
    label = draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    image = draw(st.lists(st.integers(0, 4), min_size=count, max_size=count))
    score = draw(st.lists(st.sampled_from([0.0, 0.2, 0.5, 0.5000001, 0.7, 1.0]), min_size=count, max_size=count))
    return np.array(label, np.int32), np.array(score, np.float32), np.array(image, np.int32)


@settings(max_examples=60, deadline=None)
@given(objects(), st.lists(st.integers(0, 12), min_size=3, max_size=3))
def test_the_walk_of_the_specification(found, counts):
    label, score, image = found
    selected = select_exemplars(label, score, image, np.array(counts))
    wanted = sorted(row for rows in walk(label, score, image, counts) for row in rows)
    assert np.flatnonzero(selected).tolist() == wanted


@settings(max_examples=40, deadline=None)
@given(objects())
def test_a_shorter_list_is_the_beginning_of_a_longer_one(found):
    label, score, image = found
    ranks = exemplar_ranks(label, score, image)
    for count in range(6):
        lists = walk(label, score, image, [count] * 3)
        for each, rows in enumerate(lists):
            own = np.flatnonzero(label == each)
            assert own[np.argsort(ranks[own])][:count].tolist() == rows


def test_by_hand():
    # one class; image 0 has two confident objects, image 1 an unsure one, image 2 exactly the threshold
    label = np.zeros(5, np.int32)
    score = np.array([0.9, 0.8, 0.4, 0.5, 0.6], np.float32)
    image = np.array([0, 0, 1, 2, 3], np.int32)
    assert exemplar_ranks(label, score, image).tolist() == [0, 2, 4, 3, 1]
    assert exemplar_ranks(label, score, image, one_per_image=False).tolist() == [0, 1, 4, 3, 2]
    assert exemplar_ranks(label, score, image, confidence=0.85).tolist() == [0, 1, 4, 3, 2]


def test_equal_scores_keep_their_order_and_all_in_one_image_fill_up():
    label, score = np.zeros(4, np.int32), np.full(4, 0.9, np.float32)
    one_image = np.zeros(4, np.int32)
    assert exemplar_ranks(label, score, one_image).tolist() == [0, 1, 2, 3]
    assert select_exemplars(label, score, one_image, np.array([3])).tolist() == [True, True, True, False]


def test_equal_scores_go_by_annotation_id_wherever_they_stand():
    label, one_image = np.zeros(4, np.int32), np.zeros(4, np.int32)
    score = np.array([0.9, 0.9, 0.95, 0.9], np.float32)
    ids = np.array([40, 7, 90, 12])
    assert exemplar_ranks(label, score, one_image, ids=ids).tolist() == [3, 1, 0, 2]
    assert select_exemplars(label, score, one_image, np.array([2]), ids=ids).tolist() == [False, True, True, False]


def test_no_confident_object_and_fewer_than_asked_for():
    label = np.array([0, 0, 1], np.int32)
    score = np.array([0.1, 0.3, 0.2], np.float32)
    image = np.array([0, 0, 0], np.int32)
    assert select_exemplars(label, score, image, np.array([1, 5])).tolist() == [False, True, True]
    none = np.zeros(0, np.int32)
    assert select_exemplars(none, np.zeros(0, np.float32), none, np.array([4])).tolist() == []


def test_split_into_two_parts():
    images = np.array([0, 29, 30, 500])
    assert smooth_tail_split(images).tolist() == [30, 30, 200, 200]
    everything = np.iinfo(np.int64).max
    tail = smooth_tail_split(images, counts=("all", 50))
    assert tail.tolist() == [everything, everything, 50, 50]


def test_split_into_four_parts_as_in_table_5():
    images = np.array([1, 9, 10, 29, 30, 99, 100])
    assert class_parts(images, [10, 30, 100]).tolist() == [0, 0, 1, 1, 2, 2, 3]
    limits = smooth_tail_split(images, edges=[10, 30, 100], counts=[30, 200, 50, 50])
    assert limits.tolist() == [30, 30, 200, 200, 50, 50, 50]
    with pytest.raises(ValueError, match="4 parts"):
        smooth_tail_split(images, edges=[10, 30, 100])
    with pytest.raises(ValueError, match="ascend"):
        smooth_tail_split(images, edges=[30, 10], counts=[1, 1, 1])
