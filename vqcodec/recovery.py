"""What is left of files that are not whole: cut short, or damaged.

Purpose: `read_container` refuses such files, and that is right unless somebody asks for what there is.
The rules are those of docs/format.md, chapter "Cut and damaged files".

Layout: `Recovered`; cut files; damaged files; the search for the next whole section.

Invariants
- Of a whole file, both functions give what `read_container` gives, and no losses.
- Nothing is used whose checksum does not match, and no stage without all those before it that the
  file may have had. Whatever is missing is in `losses`.
- Only `VqcError` subclasses are raised, in time that grows with the size of the file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vqcodec.container import (
    HEADER_SIZE,
    BytesLike,
    Header,
    Section,
    as_bytes,
    check_meaning,
    decode_varint,
    parse_header,
    parse_section,
)
from vqcodec.errors import (
    ChecksumError,
    CorruptError,
    TruncatedError,
    UnsupportedFeatureError,
    VqcError,
)

# Bytes that the search may run through a checksum, as a multiple of the file: real files need a
# fraction of it, a file made to keep us busy gets no more.
_SEARCH_EFFORT = 16


@dataclass(frozen=True)
class Recovered:
    """Header and sections that are whole, and what is lost, one sentence each."""

    header: Header
    sections: list[Section]
    losses: tuple[str, ...]


def read_cut(data: BytesLike) -> Recovered:
    """The sections before the place at which a file ends, though it announces more.

    Raises as `read_container` does for every fault but an early end, and TruncatedError if not even
    the header or one stage is whole.
    """
    raw = as_bytes(data)
    header, count = parse_header(raw)
    sections: list[Section] = []
    losses: list[str] = []
    position = HEADER_SIZE
    for number in range(1, count + 1):
        try:
            section, position = parse_section(raw, position, number=number, count=count)
        except TruncatedError as error:
            losses.append(str(error))
            break
        sections.append(section)
    else:
        if position != len(raw):
            raise CorruptError(f"{len(raw) - position} bytes follow the last section")
    check_meaning(header.mode, sections)
    if losses and not any(section.stage is not None for section in sections):
        raise TruncatedError(f"{losses[0]}; no stage before that is whole")
    return Recovered(header, sections, tuple(losses))


def read_damaged(data: BytesLike) -> Recovered:
    """What is whole of a file, whatever happened to the rest.

    Raises as `read_container` does if the header is damaged, or what is whole has a meaning that is
    unknown or not allowed, and CorruptError if no stage can be saved.
    """
    raw = as_bytes(data)
    try:
        header, count = parse_header(raw)
    except ChecksumError as error:
        raise ChecksumError(f"{error}; without a header nothing can be saved") from error
    sections: list[Section] = []
    losses: list[str] = []
    # A stage follows the last one without doubt only if nothing unread lies between them.
    last, doubt = -1, False
    position, number = HEADER_SIZE, 1
    while number <= count:
        start = position
        try:
            section, position = parse_section(raw, position, number=number, count=count)
        except VqcError as error:
            losses.append(str(error))
            found = _find_stage(raw, start, above=last)
            if found is None:
                break
            doubt, position = True, found
            number += 1
            continue
        number += 1
        stage = section.stage
        if stage is None and section.critical:
            raise UnsupportedFeatureError(
                f"the file needs section type 0x{section.type:02x}, unknown to this release"
            )
        if stage is not None and doubt and stage != last + 1:
            losses.append(f"stage {stage} is whole, but of no use without those before it")
            continue
        if stage is not None:
            last, doubt = stage, False
        sections.append(section)
    else:
        if position != len(raw):
            losses.append(f"{len(raw) - position} bytes after the last section mean nothing")
    check_meaning(header.mode, sections)
    if losses and last < 0:
        raise CorruptError(f"nothing can be saved: {losses[0]}")
    return Recovered(header, sections, tuple(losses))


def _find_stage(raw: bytes, damaged: int, *, above: int) -> int | None:
    """Where the first whole section of a stage higher than `above` begins, behind a damaged one."""
    effort = _SEARCH_EFFORT * len(raw)
    kinds = bytes(range(0x90 + above + 1, 0xA0))
    if not kinds:
        return None
    for match in re.compile(b"[" + re.escape(kinds) + b"]").finditer(raw, damaged + 1):
        start = match.start()
        try:
            length, payload = decode_varint(raw, start + 1)
        except VqcError:
            continue
        if payload + length > len(raw):
            continue
        effort -= length
        if effort < 0:
            return None
        try:
            parse_section(raw, start, number=0, count=0)
        except VqcError:
            continue
        return start
    return None
