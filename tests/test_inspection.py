"""Tests of vqcodec.inspection: what is said of a file without reading its symbols."""

import pytest

from vqcodec import errors, info
from vqcodec.container import (
    MODE_NAMES,
    UNIFORM_MODES,
    Header,
    Section,
    stage_section,
    write_container,
)


def make_file(mode: int, sections: list[Section]) -> bytes:
    header = Header(mode=mode, grey=True, rate=7, width=30, height=20, code_id=0xAB)
    return write_container(header, sections)


@pytest.mark.parametrize(("mode", "name"), MODE_NAMES.items())
def test_header_fields(mode: int, name: str) -> None:
    data = make_file(mode, [stage_section(0, b"abc")])
    found = info(data)
    assert (found.mode, found.version, found.rate, found.code_id) == (name, 1, 7, "000000ab")
    assert (found.width, found.height, found.grey) == (30, 20, True)
    assert (found.bytes, found.bpp) == (len(data), 8 * len(data) / 600)


@pytest.mark.parametrize("mode", MODE_NAMES)
def test_sections_are_named_by_what_the_mode_keeps_in_them(mode: int) -> None:
    sections = [stage_section(0, b"abc"), Section(0x41, False, b"x"), stage_section(1, b"")]
    found = info(make_file(mode, sections)).sections
    names = ["symbols", None, "escapes"] if mode in UNIFORM_MODES else ["stage 0", None, "stage 1"]
    assert [section.name for section in found] == names
    assert [section.stage for section in found] == [0, None, 1]
    assert [section.type for section in found] == [0x10, 0x41, 0x11]
    assert [section.critical for section in found] == [True, False, True]
    assert [section.bytes for section in found] == [3, 1, 0]


def test_a_damaged_file_is_refused() -> None:
    data = make_file(2, [stage_section(0, b"abc")])
    with pytest.raises(errors.TruncatedError):
        info(data[:-1])
    with pytest.raises(errors.ChecksumError):
        info(data[:-1] + bytes([data[-1] ^ 1]))
