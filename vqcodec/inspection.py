"""What a file says of itself: header and sections, without torch and without weights."""

from dataclasses import dataclass

from vqcodec.container import (
    MODE_NAMES,
    STAGE_ESCAPES,
    STAGE_SYMBOLS,
    UNIFORM_MODES,
    Section,
    read_container,
)

_UNIFORM_STAGES = {STAGE_SYMBOLS: "symbols", STAGE_ESCAPES: "escapes"}


@dataclass(frozen=True)
class SectionInfo:
    """One section. name: what it holds, "stage 2" or "symbols" for instance.

    stage and name are None for a type that this version does not know.
    """

    type: int
    stage: int | None
    name: str | None
    critical: bool
    bytes: int


@dataclass(frozen=True)
class FileInfo:
    """Header fields of a .vqc file; bpp counts the whole file's bytes, code_id is eight hex digits."""

    bytes: int
    version: int
    mode: str
    width: int
    height: int
    grey: bool
    rate: int
    code_id: str
    bpp: float
    sections: tuple[SectionInfo, ...]


def info(data: bytes) -> FileInfo:
    """Reads and checks the container of `data`. VqcError subclasses for what is wrong with it."""
    header, sections = read_container(data)
    return FileInfo(
        bytes=len(data),
        version=header.version,
        mode=MODE_NAMES[header.mode],
        width=header.width,
        height=header.height,
        grey=header.grey,
        rate=header.rate,
        code_id=f"{header.code_id:08x}",
        bpp=8 * len(data) / (header.width * header.height),
        sections=tuple(_describe(header.mode, section) for section in sections),
    )


def _describe(mode: int, section: Section) -> SectionInfo:
    stage = section.stage
    name = None
    if stage is not None:
        name = _UNIFORM_STAGES[stage] if mode in UNIFORM_MODES else f"stage {stage}"
    return SectionInfo(section.type, stage, name, section.critical, len(section.payload))
