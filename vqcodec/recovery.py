"""What is left of files that are not whole: cut short, or damaged.

Purpose: `read_container` refuses such files, and that is right unless somebody asks for what there is.
The rules are those of docs/format.md, chapter "Cut and damaged files".

Layout: `Recovered`; cut files; damaged files; which stages can be used.

Invariants
- Of a whole file, both functions give what `read_container` gives, and no losses.
- Nothing is used whose checksum does not match. Where anything is lost, only stages 0, 1, … without a
  gap are used: what is not there may be what was lost. Whatever is left out is in `losses`.
- Sections are found where the lengths lead, never by search: bytes inside a section that look like one
  are not one.
- Only `VqcError` subclasses are raised, in time that grows with the size of the file.
"""

from __future__ import annotations

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
from vqcodec.errors import ChecksumError, CorruptError, TruncatedError, VqcError

_CRC_BYTES = 4


@dataclass(frozen=True)
class Recovered:
    """Header and sections that are whole and of use, and what is lost, one sentence each."""

    header: Header
    sections: list[Section]
    losses: tuple[str, ...]


def read_cut(data: BytesLike) -> Recovered:
    """What stands before the place at which a file ends, though it announces more.

    Raises as `read_container` does for every fault but an early end, and TruncatedError if not even
    the header and the first stage are whole.
    """
    raw = as_bytes(data)
    header, count = parse_header(raw)
    sections: list[Section] = []
    position = HEADER_SIZE
    for number in range(1, count + 1):
        try:
            section, position = parse_section(raw, position, number=number, count=count)
        except TruncatedError as error:
            check_meaning(header.mode, sections)
            return _keep_usable(header, sections, [str(error)], TruncatedError)
        sections.append(section)
    if position != len(raw):
        raise CorruptError(f"{len(raw) - position} bytes follow the last section")
    check_meaning(header.mode, sections)
    return Recovered(header, sections, ())


def read_damaged(data: BytesLike) -> Recovered:
    """What is whole of a file, whatever happened to the rest.

    A damaged section is passed over if the lengths of all sections lead exactly to the end of the file;
    otherwise it ends what can be read. Raises as `read_container` does if the header is damaged, or
    what is whole has a meaning that is unknown or not allowed, and CorruptError if no stage is left.
    """
    raw = as_bytes(data)
    try:
        header, count = parse_header(raw)
    except ChecksumError as error:
        raise ChecksumError(f"{error}; without a header nothing can be saved") from error
    ends = _frame(raw, count)
    sections: list[Section] = []
    losses: list[str] = []
    position = HEADER_SIZE
    for number in range(1, count + 1):
        try:
            section, position = parse_section(raw, position, number=number, count=count)
        except VqcError as error:
            losses.append(str(error))
            if ends is None:
                break
            position = ends[number - 1]
        else:
            sections.append(section)
    else:
        if position != len(raw):
            losses.append(f"{len(raw) - position} bytes after the last section mean nothing")
    if losses:
        return _keep_usable(header, sections, losses, CorruptError)
    check_meaning(header.mode, sections)
    return Recovered(header, sections, ())


def _frame(raw: bytes, count: int) -> list[int] | None:
    """Where each section ends by the lengths alone, None unless they lead to the end of the file."""
    ends = []
    position = HEADER_SIZE
    for _ in range(count):
        try:
            length, start = decode_varint(raw, position + 1)
        except VqcError:
            return None
        position = start + length + _CRC_BYTES
        ends.append(position)
    return ends if position == len(raw) else None


def _keep_usable(
    header: Header, sections: list[Section], losses: list[str], otherwise: type[VqcError]
) -> Recovered:
    """The stages before the first gap, and what is optional; `otherwise` if there is no stage."""
    kept: list[Section] = []
    following = 0
    for section in sections:
        if section.stage is not None and section.stage != following:
            losses.append(f"stage {section.stage} is whole, but of no use without those before it")
            continue
        following += section.stage is not None
        kept.append(section)
    check_meaning(header.mode, kept)
    if following == 0:
        raise otherwise(f"nothing can be saved: {losses[0]}")
    return Recovered(header, kept, tuple(losses))
