"""Errors that carry the exit code of the command line."""

from __future__ import annotations


class LongtailError(Exception):
    """Something failed; the message says what and what to do about it. Exit code 1."""

    exit_code = 1


class UsageError(LongtailError):
    """The request makes no sense: an unknown recipe, key or combination. Exit code 2."""

    exit_code = 2


class DataError(LongtailError):
    """The data cannot be used as it is; the message names the file, the id and the remedy. Exit code 3."""

    exit_code = 3
