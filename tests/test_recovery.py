"""Cut and damaged files: what is taken, what is refused, and that every loss is told."""

import random
import zlib
from pathlib import Path

import numpy as np
import pytest
from synthetic import synthetic_picture

import vqcodec
from vqcodec.codec import Codec, load_codec
from vqcodec.container import (
    HEADER_SIZE,
    MODE_AE,
    Header,
    Section,
    read_container,
    stage_section,
    write_container,
)
from vqcodec.errors import (
    ChecksumError,
    CorruptError,
    NotVqcError,
    TruncatedError,
    UnsupportedFeatureError,
    UnsupportedVersionError,
    VqcError,
)
from vqcodec.recovery import read_cut, read_damaged

GOLDEN = Path(__file__).with_name("golden")
HEADER = Header(mode=0, grey=False, rate=25, width=100, height=70, code_id=7)
STAGES = [stage_section(n, bytes([n]) * (20 + 130 * n)) for n in range(4)]
NOTE = Section(type=0x41, critical=False, payload=b"note")


def ends_of(sections: list[Section], header: Header = HEADER) -> list[int]:
    """Where each section of a file ends."""
    return [len(write_container(header, sections[: n + 1])) for n in range(len(sections))]


def section_bytes(section: Section) -> bytes:
    return write_container(HEADER, [section])[HEADER_SIZE:]


def header_bytes(count: int) -> bytes:
    """A header that announces `count` sections."""
    fields = bytearray(write_container(HEADER, [])[:20])
    fields[7] = count
    return bytes(fields) + zlib.crc32(fields).to_bytes(4, "little")


# --- cut files -------------------------------------------------------------------------------


def test_a_whole_file_has_no_losses() -> None:
    for sections in ([], STAGES, [NOTE, *STAGES, NOTE], STAGES[:1]):
        data = write_container(HEADER, sections)
        for found in (read_cut(data), read_damaged(data), read_damaged(bytearray(data))):
            assert (found.header, found.sections, found.losses) == (HEADER, sections, ())


def test_every_cut_gives_the_stages_before_it() -> None:
    sections = [STAGES[0], NOTE, *STAGES[1:]]
    data, ends = write_container(HEADER, sections), ends_of(sections)
    for size in range(len(data)):
        for read in (read_cut, read_damaged):
            whole = sum(end <= size for end in ends)
            if whole == 0:
                with pytest.raises((TruncatedError, CorruptError)):
                    read(data[:size])
                continue
            found = read(data[:size])
            assert found.sections == sections[:whole]
            assert len(found.losses) == 1 and f"section {whole + 1} of 5" in found.losses[0]


def test_a_cut_file_must_have_a_stage() -> None:
    for sections in ([NOTE, STAGES[0]], [STAGES[1], STAGES[2]]):
        data = write_container(HEADER, sections)
        with pytest.raises(TruncatedError, match="nothing can be saved: .* section 2 of 2"):
            read_cut(data[:-1])
        with pytest.raises(CorruptError, match="nothing can be saved: .* section 2 of 2"):
            read_damaged(data[:-1])


def test_a_gap_counts_where_something_is_lost() -> None:
    # Section 1 of 4 was taken out: nobody knows that it was none.
    holed = header_bytes(4) + b"".join(section_bytes(STAGES[n]) for n in (0, 2, 3))
    for read in (read_cut, read_damaged):
        found = read(holed)
        assert found.sections == [STAGES[0]]
        assert found.losses == (
            "the file ends before section 4 of 4",
            "stage 2 is whole, but of no use without those before it",
            "stage 3 is whole, but of no use without those before it",
        )
        whole = write_container(HEADER, [STAGES[0], STAGES[2], STAGES[3]])
        assert read(whole).sections == [STAGES[0], STAGES[2], STAGES[3]]


def test_a_cut_file_may_have_no_other_fault() -> None:
    data = bytearray(write_container(HEADER, STAGES))
    with pytest.raises(CorruptError, match="follow the last section"):
        read_cut(data + b"x")
    data[ends_of(STAGES)[0] + 4] ^= 1
    with pytest.raises(ChecksumError):
        read_cut(data[:-1])
    disordered = header_bytes(3) + section_bytes(STAGES[1]) + section_bytes(STAGES[0])
    with pytest.raises(CorruptError, match="stage 0 follows stage 1"):
        read_cut(disordered + b"\x92")


# --- damaged files ---------------------------------------------------------------------------


def test_every_flip_loses_the_damaged_stage_and_what_needs_it() -> None:
    sections = [STAGES[0], STAGES[1], NOTE, STAGES[2]]
    data, ends = write_container(HEADER, sections), ends_of(sections)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        place = bit // 8
        if place < ends[0]:
            with pytest.raises(VqcError):
                read_damaged(damaged)
            continue
        found = read_damaged(damaged)
        assert found.losses
        if place < ends[1]:
            # What is found behind the lost stage cannot be used, but for the note.
            assert found.sections in ([STAGES[0]], [STAGES[0], NOTE])
        elif place < ends[2]:
            # A damaged length leads nowhere, all else is passed over.
            assert found.sections == STAGES[: 2 if place == ends[1] + 1 else 3]
        else:
            assert found.sections == sections[:3]


def test_a_damaged_length_ends_what_can_be_read() -> None:
    note = Section(type=0x41, critical=False, payload=b"x" * 100)
    data = bytearray(write_container(HEADER, [STAGES[0], note, STAGES[1], STAGES[2]]))
    data[ends_of([STAGES[0]])[0] + 1] ^= 0x40
    found = read_damaged(data)
    assert found.sections == [STAGES[0]]
    assert len(found.losses) == 1


def test_a_file_within_a_file_is_not_taken_for_it() -> None:
    other = write_container(HEADER, [stage_section(n, bytes([9 + n]) * 50) for n in range(2)])
    note = Section(type=0x41, critical=False, payload=other)
    data = write_container(HEADER, [note, *STAGES])
    for bit in range(8 * HEADER_SIZE, 8 * ends_of([note])[0]):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            found = read_damaged(damaged)
        except CorruptError:
            continue
        assert found.sections in (STAGES, [Section(note.type ^ 1 << bit % 8, False, other), *STAGES])
        assert found.losses


def test_many_damaged_sections() -> None:
    notes = [Section(type=n, critical=False, payload=bytes([n]) * 10) for n in range(3)]
    sections = [notes[0], STAGES[0], notes[1], STAGES[1], notes[2], STAGES[2]]
    data, ends = bytearray(write_container(HEADER, sections)), ends_of(sections)
    for number in (0, 2, 4):
        data[ends[number] - 5] ^= 1
    found = read_damaged(data)
    assert found.sections == STAGES[:3]
    assert [loss[:9] for loss in found.losses] == ["section 1", "section 3", "section 5"]


def test_repeated_and_inserted_bytes() -> None:
    first, second, third = (section_bytes(STAGES[n]) for n in range(3))
    repeated = header_bytes(3) + first + second + second + third
    assert read_damaged(repeated).sections == STAGES[:2]
    assert len(read_damaged(repeated).losses) == 2
    inserted = header_bytes(3) + first + b"?????" + second + third
    assert read_damaged(inserted).sections == STAGES[:1]
    # All checksums are right, but no writer may do this.
    with pytest.raises(CorruptError, match="stage 1 follows stage 1"):
        read_damaged(header_bytes(3) + first + second + second)
    assert read_damaged(header_bytes(2) + first + second + third).sections == STAGES[:2]


def test_bytes_behind_the_end_are_told() -> None:
    found = read_damaged(write_container(HEADER, STAGES) + b"abc")
    assert found.sections == STAGES
    assert found.losses == ("3 bytes after the last section mean nothing",)


def test_what_cannot_be_saved() -> None:
    data = write_container(HEADER, STAGES)
    with pytest.raises(ChecksumError, match="without a header nothing can be saved"):
        read_damaged(data[:9] + b"\xff" + data[10:])
    for bad, error in (
        (b"", TruncatedError),
        (b"PNG!" * 10, NotVqcError),
        (data[:23], TruncatedError),
        (data[:4] + b"\x02" + data[5:], UnsupportedVersionError),
    ):
        with pytest.raises(error):
            read_damaged(bad)


def test_a_newer_file_is_not_called_damaged() -> None:
    unknown = bytearray(section_bytes(Section(0x42, False, b"new")))
    unknown[0] |= 0x80
    body = bytes(unknown[:-4])
    data = header_bytes(2) + section_bytes(STAGES[0]) + body + zlib.crc32(body).to_bytes(4, "little")
    with pytest.raises(UnsupportedFeatureError):
        read_damaged(data)
    with pytest.raises(UnsupportedFeatureError):
        read_cut(data)


def test_escapes_are_of_no_use_without_symbols() -> None:
    header = Header(**{**HEADER.__dict__, "mode": MODE_AE})
    data = bytearray(write_container(header, STAGES[:2]))
    data[HEADER_SIZE + 5] ^= 1
    with pytest.raises(CorruptError, match="nothing can be saved"):
        read_damaged(data)


def test_random_damage_raises_our_errors_only() -> None:
    rng = random.Random(5)
    data = write_container(HEADER, [STAGES[0], NOTE, *STAGES[1:]])
    for _ in range(3000):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 5)):
            start = rng.randrange(HEADER_SIZE, len(damaged))
            damaged[start : start + rng.randint(0, 9)] = rng.randbytes(rng.randint(0, 9))
        for read in (read_cut, read_damaged):
            try:
                found = read(damaged)
            except VqcError:
                continue
            assert all(section in [NOTE, *STAGES] for section in found.sections)


# --- pictures --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def codec(tiny_model: Path) -> Codec:
    return load_codec(tiny_model, "cpu")


def test_cut_and_truncated_files_show_the_same_picture(codec: Codec) -> None:
    data = codec.compress(synthetic_picture(2, 96, 64), quality=100)
    _, sections = read_container(data)
    assert len(sections) == 2
    coarse = codec.decompress(vqcodec.truncate(data, stages=1))
    cut = data[:-1]
    with pytest.raises(TruncatedError):
        codec.decompress(cut)
    np.testing.assert_array_equal(codec.salvage(cut, cut_only=True).image, coarse)
    saved = codec.salvage(cut)
    np.testing.assert_array_equal(saved.image, coarse)
    assert saved.losses == ("the file ends in section 2 of 2",)
    assert codec.salvage(cut, cut_only=True).losses == saved.losses


def test_salvage_of_a_whole_file(codec: Codec) -> None:
    data = codec.compress(synthetic_picture(2, 50, 64), quality=80)
    saved = codec.salvage(data)
    assert saved.losses == ()
    np.testing.assert_array_equal(saved.image, codec.decompress(data))


def test_salvage_of_a_stream_that_does_not_decode(codec: Codec) -> None:
    data = codec.compress(synthetic_picture(2, 96, 64), quality=100)
    header, (first, second) = read_container(data)
    # A right checksum over a stream that goes on too long.
    wrong = write_container(header, [first, stage_section(1, second.payload + b"\x55" * 8)])
    with pytest.raises(CorruptError):
        codec.decompress(wrong)
    saved = codec.salvage(wrong)
    assert len(saved.losses) == 1 and "stage 1 does not decode" in saved.losses[0]
    with pytest.raises(CorruptError):
        codec.salvage(wrong, cut_only=True)
    np.testing.assert_array_equal(saved.image, codec.decompress(write_container(header, [first])))
    with pytest.raises(CorruptError):
        codec.salvage(write_container(header, [stage_section(0, first.payload + b"\x55" * 8)]))


def test_the_functions_of_the_package(
    codec: Codec, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VQCODEC_MODELS", str(tiny_model.parent))
    data = codec.compress(synthetic_picture(2, 96, 64), quality=100)
    expected = codec.decompress(vqcodec.truncate(data, stages=1))
    for cut_only in (False, True):
        saved = vqcodec.salvage(data[:-3], device="cpu", cut_only=cut_only)
        np.testing.assert_array_equal(saved.image, expected)
        assert saved.losses
    damaged = data[:-3] + b"abc"
    assert vqcodec.salvage(damaged, device="cpu").losses
    with pytest.raises(ChecksumError):
        vqcodec.salvage(damaged, device="cpu", cut_only=True)


def test_lost_escapes() -> None:
    codec = load_codec(GOLDEN / "uniform.safetensors", "cpu")
    data = (GOLDEN / "ae-escape-limits.vqc").read_bytes()
    for broken, cut_only in ((data[:-1], True), (data[:-1], False), (data[:-1] + b"?", False)):
        with pytest.raises(CorruptError, match="nothing can be saved: .*section 2 of 2.*escapes"):
            codec.salvage(broken, cut_only=cut_only)
