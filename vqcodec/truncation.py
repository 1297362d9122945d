"""Smaller files out of a file, by leaving out its last stages.

Purpose: a file of mode vq, dvae, vqvae, vqvae2, fsq or rvq is progressive: without its last stages it is
the file of a coarser picture, and no pixel, model or symbol is needed to make it. docs/format.md,
*Stages* of mode 0.

Invariants: the result is a whole file; with as many stages as there are it is the same file, byte by
byte. It is what the encoder writes when told to stop at that stage. Sections that are not stages stay.
"""

from __future__ import annotations

import math

from vqcodec.container import (
    MAX_STAGES,
    MODE_NAMES,
    UNIFORM_MODES,
    BytesLike,
    Header,
    Section,
    read_container,
    write_container,
)
from vqcodec.errors import ModeError, RateError


def truncate(data: BytesLike, *, stages: int | None = None, bpp: float | None = None) -> bytes:
    """A file with the first `stages` stages, or with as many as `bpp` bits a pixel allow.

    stages: 1..16; those that a file does not have are none to leave out. bpp: of the whole file.
    Raises ModeError for a file of a mode without stages to leave out, RateError if even one stage is
    more than `bpp`, ValueError unless exactly one of the two is given and makes sense, and the errors
    of `read_container`.
    """
    if (stages is None) == (bpp is None):
        raise ValueError("give either stages or bpp")
    if stages is not None:
        check_stages(stages)
    if bpp is not None and not 0 < bpp < math.inf:
        raise ValueError(f"bpp must be positive, got {bpp}")
    header, sections = read_container(data)
    if header.mode in UNIFORM_MODES:
        raise ModeError(f"files of mode {MODE_NAMES[header.mode]} have no stages that can be left out")
    if stages is not None:
        return _keep(header, sections, stages)
    assert bpp is not None
    pixels = header.width * header.height
    for count in range(MAX_STAGES, 0, -1):
        smaller = _keep(header, sections, count)
        if 8 * len(smaller) <= bpp * pixels:
            return smaller
    least, most = (8 * len(file) / pixels for file in (smaller, bytes(data)))
    raise RateError(f"{bpp:g} bpp cannot be reached: this file has from {least:.3f} to {most:.3f} bpp")


def check_stages(stages: int) -> None:
    """ValueError unless `stages` is a number of stages, 1..16."""
    if isinstance(stages, bool) or not isinstance(stages, int) or not 1 <= stages <= MAX_STAGES:
        raise ValueError(f"stages must be 1..{MAX_STAGES}, got {stages!r}")


def _keep(header: Header, sections: list[Section], stages: int) -> bytes:
    kept = [section for section in sections if section.stage is None or section.stage < stages]
    return write_container(header, kept)
