"""Files read piece by piece give what the whole file gives."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtail.data.stream import Stream, StreamError

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
ENTRIES = st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=4) | VALUES, max_size=12)
FILES = st.dictionaries(st.sampled_from(["images", "annotations", "categories", "info", "é"]), ENTRIES | VALUES)


def read(path: Path, block: int) -> tuple[dict[str, Any], Stream]:
    stream = Stream(path, block=block)
    content: dict[str, Any] = {}
    for batch in stream.batches():
        if batch.entries is None:
            content[batch.key] = None
        elif batch.first == 0:
            content[batch.key] = list(batch.entries)
        else:
            assert batch.first == len(content[batch.key])
            content[batch.key] += batch.entries
    return content, stream


def large(value: Any) -> Any:
    """Whole numbers beyond 64 bits may come back as floats."""
    if isinstance(value, list):
        return [large(item) for item in value]
    if isinstance(value, dict):
        return {key: large(item) for key, item in value.items()}
    return float(value) if type(value) is int and abs(value) >= 2**63 else value


@given(
    content=FILES, block=st.integers(1, 200), packed=st.booleans(), indent=st.sampled_from([None, 1]), raw=st.booleans()
)
@settings(max_examples=150, deadline=None)
def test_the_lists_of_a_file_in_blocks_of_any_size(
    content: dict[str, Any],
    block: int,
    packed: bool,
    indent: int | None,
    raw: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    text = json.dumps(content, ensure_ascii=not raw, indent=indent).encode("utf-8", "surrogatepass")
    path = tmp_path_factory.mktemp("s") / "a.json"
    path.write_bytes(gzip.compress(text) if packed else text)
    found, stream = read(path, block)
    expected = {key: value if isinstance(value, list) else None for key, value in json.loads(text).items()}
    assert large(found) == large(expected)
    assert stream.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not stream.tokens


@given(content=FILES, cut=st.floats(0, 1, exclude_max=True), block=st.integers(1, 200))
@settings(max_examples=150, deadline=None)
def test_a_file_that_is_cut_off_is_refused_with_the_place(
    content: dict[str, Any], cut: float, block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = json.dumps(content).encode()
    path = tmp_path_factory.mktemp("s") / "a.json"
    path.write_bytes(text[: int(cut * len(text))])
    with pytest.raises(StreamError) as error:
        read(path, block)
    assert error.value.code == "json-syntax"
    assert "at byte" in error.value.text


@pytest.mark.parametrize("block", [3, 40, 1 << 20])
def test_numbers_that_json_does_not_have_are_counted(block: int, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(
        '{"images": [{"a": NaN}, {"a": [1, -Infinity]}], "info": Infinity, "annotations": []}'
    )
    found, stream = read(tmp_path / "a.json", block)
    assert sorted(stream.tokens) == ["-Infinity", "Infinity", "NaN"]
    assert len(found["images"]) == 2


def test_texts_that_look_like_boundaries_do_not_split_an_entry(tmp_path: Path) -> None:
    tricky = [{"a": "} , { ]"}, {"a": [{"b": 1}, {"b": "}],"}]}, {"a": '\\"},{'}] * 50
    for block in (16, 64, 256, 5000):
        (tmp_path / "a.json").write_text(json.dumps({"annotations": tricky, "images": tricky}))
        found, _ = read(tmp_path / "a.json", block)
        assert found == {"annotations": tricky, "images": tricky}


def test_what_is_no_file_of_annotations(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content, code in (
        (b"PK\x03\x04zip", "file-archive"),
        (b"\x1f\x8bbroken", "file-unreadable"),
        (b'{"a": "\xe4"}', "file-unreadable"),
        (b"[" * 100_000, "json-syntax"),
        (b"", "json-syntax"),
        (b'{"a": 1} x', "json-syntax"),
    ):
        path.write_bytes(content)
        with pytest.raises(StreamError) as error:
            read(path, 1 << 20)
        assert error.value.code == code, content[:20]
    with pytest.raises(StreamError) as error:
        read(tmp_path / "none.json", 100)
    assert error.value.code == "file-missing"
    path.write_text("[1, 2]")
    assert read(path, 100)[0] == {}
    path.write_bytes('{"images": [{"a": "ä"}]}'.encode("utf-16"))
    assert read(path, 100)[0] == {"images": [{"a": "ä"}]}
