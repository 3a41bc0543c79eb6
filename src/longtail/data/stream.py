"""Annotation files read piece by piece: the entries of every list of the file, never the whole file at once."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson

BLOCK = 1 << 24
"""Bytes that are parsed at once."""

TAIL = 1 << 20
"""A boundary between two entries is looked for in so many bytes at the end of a block."""

SPACE = re.compile(rb"[ \t\n\r]*")
BOUNDARY = re.compile(rb"\}([ \t\n\r]*),[ \t\n\r]*(?=\{)")
LAST = re.compile(rb"\}[ \t\n\r]*\](?=[ \t\n\r]*[,}])")
TEXT_SPACE = re.compile(r"[ \t\n\r]*")

ARCHIVES = (b"PK\x03\x04", b"PK\x05\x06", b"7z\xbc\xaf\x27\x1c", b"\xfd7zXZ\x00")


class StreamError(ValueError):
    """A file that cannot be read; ``code`` is that of the rule."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


@dataclass(frozen=True)
class Batch:
    """Some entries of a list.

    Attributes:
        key: the key of the list.
        first: place of the first entry in its list. 0 starts the list anew (a repeated key replaces the earlier one).
        entries: None = the value of this key is no list.
    """

    key: str
    first: int
    entries: list[Any] | None


class Stream:
    """The lists of a COCO or LVIS file, plain or gzipped, in the order of the file.

    Attributes:
        tokens: NaN, Infinity and -Infinity, as far as the file has been read. JSON has no such numbers.
        sha256: of the bytes of the file, when it has been read to its end.
    """

    def __init__(self, path: Path, *, block: int = BLOCK) -> None:
        self.path = path
        self.block = block
        self.tokens: list[str] = []
        self.sha256 = ""
        self._data = b""
        self._offset = 0  # place of the first byte of _data in the (unpacked) file
        self._end = False
        self._file: BinaryIO
        self._decoder = json.JSONDecoder(parse_constant=self._constant)

    def batches(self) -> Iterator[Batch]:
        """The entries of every list, a block at a time. Values of other kinds are passed over.

        Raises:
            StreamError: the file is missing, an archive, damaged or not JSON; with the place.
        """
        if not self.path.is_file():
            raise StreamError("file-missing", str(self.path))
        try:
            with self.path.open("rb") as raw:
                watched = _Watched(raw)
                file = cast(BinaryIO, watched)
                start = raw.read(6)
                raw.seek(0)
                if start.startswith(ARCHIVES):
                    raise StreamError("file-archive", str(self.path))
                packed = start[:2] == b"\x1f\x8b"
                self._file = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file
                yield from self._object()
                while watched.read(1 << 20):
                    pass
                self.sha256 = watched.digest.hexdigest()
        except UnicodeDecodeError as error:
            raise StreamError("file-unreadable", f"it is not UTF-8 text at byte {error.start}{self._total()}") from None
        except RecursionError:
            raise StreamError("json-syntax", "lists inside lists without end") from None
        except (OSError, EOFError, zlib.error) as error:
            raise StreamError("file-unreadable", str(error)) from None

    def _object(self) -> Iterator[Batch]:
        self._fill()
        encoding = json.detect_encoding(self._data[:4])
        if not encoding.startswith("utf-8"):
            yield from self._whole(encoding)
            return
        self._drop(3 if encoding == "utf-8-sig" else 0)
        if self._peek() != b"{":
            yield from self._whole("utf-8")
            return
        self._drop(1)
        if self._peek() == b"}":
            self._drop(1)
        else:
            while True:
                if self._peek() != b'"':
                    self._fail("Expecting property name enclosed in double quotes")
                key = cast(str, self._value())
                if self._peek() != b":":
                    self._fail("Expecting ':' delimiter")
                self._drop(1)
                if self._peek() == b"[":
                    self._drop(1)
                    yield from self._list(key)
                else:
                    self._value()
                    yield Batch(key, 0, None)
                if self._peek() == b"}":
                    self._drop(1)
                    break
                if self._peek() != b",":
                    self._fail("Expecting ',' delimiter")
                self._drop(1)
        if self._peek():
            self._fail("Extra data")

    def _list(self, key: str) -> Iterator[Batch]:
        first = 0
        if self._peek() == b"]":
            self._drop(1)
            yield Batch(key, 0, [])
            return
        while True:
            self._fill()
            entries, last = self._entries()
            yield Batch(key, first, entries)
            first += len(entries)
            if last:
                return

    def _entries(self) -> tuple[list[Any], bool]:
        """The next entries, and whether the list ends after them.

        A piece is cut where an entry seems to end. If it parses as the inside of a list it was cut rightly: a piece
        with an unfinished text, list or object cannot. Otherwise the entries are parsed one by one.
        """
        found = LAST.search(self._data)
        if found is not None:
            entries = _parse(self._data[: found.start() + 1])
            if entries is not None:
                self._drop(found.end())
                return entries, True
        tail = max(0, len(self._data) - TAIL)
        for boundary in list(BOUNDARY.finditer(self._data, tail))[:-4:-1]:
            entries = _parse(self._data[: boundary.start() + 1])
            if entries is not None:
                self._drop(boundary.end())
                return entries, False
        return self._one_by_one()

    def _one_by_one(self) -> tuple[list[Any], bool]:
        while True:
            text = self._text()
            entries: list[Any] = []
            last, done, place = False, 0, _skip(text, 0)
            while not last:
                counted = len(self.tokens)
                try:
                    value, place = self._decoder.raw_decode(text, place)
                except json.JSONDecodeError as error:
                    if self._end or _is_certain(error, len(text)):
                        self._fail(error.msg, len(text[: error.pos].encode("utf-8", "surrogatepass")))
                    del self.tokens[counted:]  # it is read again
                    break
                place = _skip(text, place)
                if place >= len(text) - 16 and not self._end and text[place : place + 1] not in (",", "]"):
                    del self.tokens[counted:]
                    break  # a number may go on
                if text[place : place + 1] not in (",", "]"):
                    self._fail("Expecting ',' delimiter", len(text[:place].encode("utf-8", "surrogatepass")))
                entries.append(value)
                last = text[place] == "]"
                done = place + 1
                place = _skip(text, done)
            if entries:
                self._drop(len(text[:done].encode("utf-8", "surrogatepass")))
                return entries, last
            self._fill(2 * len(self._data))

    def _value(self) -> Any:
        """The value that starts here."""
        while True:
            text, counted = self._text(), len(self.tokens)
            try:
                value, place = self._decoder.raw_decode(text, 0)
            except json.JSONDecodeError as error:
                if self._end or _is_certain(error, len(text)):
                    self._fail(error.msg, len(text[: error.pos].encode("utf-8", "surrogatepass")))
            else:
                if self._end or text[place : place + 1] in tuple(", \t\r\n:]}") or place < len(text) - 16:
                    self._drop(len(text[:place].encode("utf-8", "surrogatepass")))
                    return value
            del self.tokens[counted:]  # it is read again
            self._fill(2 * len(self._data))

    def _whole(self, encoding: str) -> Iterator[Batch]:
        """Files in another encoding, and files that are no object, are read at once."""
        data = self._data + self._file.read()
        self._offset, self._data, self._end = self._offset + len(data), b"", True
        try:
            content = json.loads(data.decode(encoding), parse_constant=self._constant)
        except json.JSONDecodeError as error:
            place = len(error.doc[: error.pos].encode("utf-8", "surrogatepass"))
            raise StreamError("json-syntax", f"at byte {place}{self._total()}: {error.msg}") from None
        except UnicodeDecodeError:
            raise
        except ValueError as error:
            raise StreamError("json-syntax", str(error)) from None
        for key, value in content.items() if isinstance(content, dict) else ():
            yield Batch(key, 0, value if isinstance(value, list) else None)

    def _constant(self, token: str) -> float:
        self.tokens.append(token)
        return float(token.replace("Infinity", "inf"))

    def _text(self) -> str:
        """What is in memory; a character of several bytes that is cut off at the end is left out."""
        try:
            return codecs.getincrementaldecoder("utf-8")().decode(self._data, final=self._end)
        except UnicodeDecodeError as error:
            error.start += self._offset
            raise

    def _peek(self) -> bytes:
        """The next byte that is no space; spaces are passed over. Empty at the end."""
        while True:
            found = SPACE.match(self._data)
            self._drop(found.end() if found else 0)
            if self._data or self._end:
                return self._data[:1]
            self._fill()

    def _fill(self, size: int = 0) -> None:
        """Reads until at least ``size`` bytes, and a block, are in memory."""
        wanted = max(size, self.block) - len(self._data)
        if wanted > 0 and not self._end:
            parts = [self._data]
            while wanted > 0:
                part = self._file.read(wanted)
                if not part:
                    self._end = True
                    break
                parts.append(part)
                wanted -= len(part)
            self._data = b"".join(parts)

    def _drop(self, count: int) -> None:
        if count:
            self._data = self._data[count:]
            self._offset += count

    def _total(self) -> str:
        """How long the file is, where that is known."""
        return f" of {self._offset + len(self._data)}" if self._end else ""

    def _fail(self, message: str, place: int = 0) -> None:
        place += self._offset
        if not self._end:  # so that short files name their length
            self._fill(len(self._data) + 1)
        raise StreamError("json-syntax", f"at byte {place}{self._total()}: {message}")


class _Watched:
    """A file whose bytes are counted into a check sum as they are read."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        part = self.file.read(size)
        self.digest.update(part)
        return part


def _parse(piece: bytes) -> list[Any] | None:
    try:
        return cast(list[Any], orjson.loads(b"[" + piece + b"]"))
    except orjson.JSONDecodeError:
        return None


def _skip(text: str, place: int) -> int:
    found = TEXT_SPACE.match(text, place)
    return found.end() if found else place


def _is_certain(error: json.JSONDecodeError, length: int) -> bool:
    """Whether an error is one however the text goes on."""
    return not error.msg.startswith("Unterminated string") and error.pos < length - 16
