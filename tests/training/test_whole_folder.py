"""Folders that are whole or absent, cut off at every operation on the way."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from longtail.schema import DataError, UsageError
from longtail.training import whole_folder
from longtail.training.whole_folder import begin, commit, draft_of, locate, previous_of


def write(target: Path, text: str, *, keep: bool = True) -> None:
    folder = begin(target)
    (folder / "a.txt").write_text(text)
    (folder / "b.txt").write_text(text * 1000)
    commit(target, keep_previous=keep)


def read(target: Path) -> str:
    return (locate(target).folder / "a.txt").read_text()


class Cut(BaseException):
    """The end of the process."""


def test_the_one_before_is_kept_or_not(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no checkpoint"):
        locate(tmp_path / "x")
    for text in "abc":
        write(tmp_path / "x", text)
    assert read(tmp_path / "x") == "c"
    assert (previous_of(tmp_path / "x") / "a.txt").read_text() == "b"
    write(tmp_path / "x", "d", keep=False)
    assert {path.name for path in tmp_path.iterdir()} == {"x"}


@pytest.mark.parametrize("keep", [True, False])
def test_cut_off_anywhere_the_old_or_the_new_is_there(
    keep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call that changes the disk is, in turn, the last one."""
    calls = [(os, "rename"), (shutil, "rmtree"), (os, "fsync"), (whole_folder, "sync_folder")]
    seen: set[str] = set()
    for survived in range(40):
        root = tmp_path / f"{survived}"
        write(root / "x", "old", keep=keep)
        write(root / "x", "older", keep=keep)
        left = survived

        def counted(original):
            def call(*arguments: object, **options: object):
                nonlocal left
                if left == 0:
                    raise Cut
                left -= 1
                return original(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            for module, name in calls:
                patch.setattr(module, name, counted(getattr(module, name)))
            try:
                write(root / "x", "new", keep=keep)
                ended = True
            except Cut:
                ended = False
        seen.add(read(root / "x"))
        assert read(root / "x") in ("older", "new")
        write(root / "x", "next", keep=keep)
        assert read(root / "x") == "next", "what was left behind does not disturb"
        if ended:
            break
    assert ended
    assert survived > 6
    assert seen == {"older", "new"}


def test_damage_is_found_and_the_one_before_used(tmp_path: Path) -> None:
    write(tmp_path / "x", "one")
    write(tmp_path / "x", "two")
    (tmp_path / "x" / "b.txt").write_text("two" * 999 + "twi")
    found = locate(tmp_path / "x")
    assert found.folder == previous_of(tmp_path / "x")
    assert "b.txt is damaged" in found.remark
    (tmp_path / "x" / "b.txt").unlink()
    assert "damaged" in locate(tmp_path / "x").remark
    (tmp_path / "x" / "digests.json").write_text("[")
    assert "damaged" in locate(tmp_path / "x").remark
    (tmp_path / "x" / "digests.json").unlink()
    assert "incomplete" in locate(tmp_path / "x").remark
    (previous_of(tmp_path / "x") / "a.txt").write_text("")
    with pytest.raises(DataError, match="no sound one before it"):
        locate(tmp_path / "x")
    shutil.rmtree(tmp_path / "x")
    with pytest.raises(DataError, match=r"a\.txt is damaged"):
        locate(tmp_path / "x")


def test_a_draft_is_never_taken_for_the_thing(tmp_path: Path) -> None:
    folder = begin(tmp_path / "x")
    (folder / "a.txt").write_text("half")
    assert folder == draft_of(tmp_path / "x")
    with pytest.raises(UsageError, match="no checkpoint"):
        locate(tmp_path / "x")
