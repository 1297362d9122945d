"""Every error that vqcodec raises on purpose, one class for each kind of failure.

Purpose: a caller can tell "not our file" from "damaged file" from "needs another model" by class
alone, and can catch all of them as `VqcError`. The text of an error is one line for a person; it
says what is wrong and, where that is known, what would help.

Layout: `VqcError` is the base; the rest stand in the order in which reading meets them, then the
errors of models, pictures and output files.

Invariants: bad input (files, pictures, models, paths) always ends in one of these. A wrong
argument from a programmer (a `quality` of 1000, a negative size) is a plain ValueError or
TypeError instead. `exit_code` is what the command line returns for the error.
"""

from __future__ import annotations

from typing import ClassVar


class VqcError(Exception):
    """Base class of every vqcodec error."""

    exit_code: ClassVar[int] = 1


class NotVqcError(VqcError):
    """The data does not start with the magic of a .vqc file."""


class UnsupportedVersionError(VqcError):
    """The file is a .vqc file of a container version that this release does not read."""


class UnsupportedFeatureError(VqcError):
    """The file is intact but needs something unknown here: a mode or a critical section."""


class TruncatedError(VqcError):
    """The data ends before something that it announces."""


class ChecksumError(VqcError):
    """A stored CRC32 differs from that of the bytes it covers: the file is damaged."""


class CorruptError(VqcError):
    """The bytes are all there, but what they say is not allowed by the format."""


class TooLargeError(VqcError):
    """The picture has more pixels than the caller allows, or takes more memory than there is."""


class RateError(VqcError):
    """A rate that was asked for cannot be reached; the message names those that can."""


class UnknownModelError(VqcError):
    """No model with the name or the code_id asked for could be found."""

    exit_code: ClassVar[int] = 3


class ModelFileError(VqcError):
    """A weights file cannot be read or does not hold a usable model."""

    exit_code: ClassVar[int] = 3


class ModeError(VqcError):
    """The mode cannot do what is asked of it, or a model is of another mode than asked for."""

    exit_code: ClassVar[int] = 2


class ImageError(VqcError):
    """A picture cannot be taken: unreadable, animated, with alpha, or empty."""


class OutputError(VqcError):
    """An output file could not be written; nothing was left behind."""


class OutputExistsError(OutputError):
    """The output file exists already and may not be replaced."""
