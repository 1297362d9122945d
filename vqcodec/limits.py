"""How large a picture may be, and what decoding it takes, from the header alone.

Purpose: a file of fifty bytes can claim any size. Everything here is arithmetic on what the header
says, before a model is loaded or memory is taken.

Layout: the limits; the check of a header; the memory of the machine.
"""

from dataclasses import dataclass

from vqcodec.container import STRIDE, Header, tile_grid
from vqcodec.errors import TooLargeError

DEFAULT_MAX_PIXELS = 100_000_000
DEFAULT_MAX_SIDE = 1 << 16
_SMALL = 1 << 16
_MEMORY_GROUP = "/sys/fs/cgroup"


@dataclass(frozen=True)
class Limits:
    """What a decoder accepts.

    max_pixels: of a picture; about twice as many may be in the blocks of 16x16 pixels that it touches.
    max_side: width and height, in pixels. max_memory: bytes that one decode may take, by estimate;
    None for what the machine has available. All at least 1 (else ValueError).
    """

    max_pixels: int = DEFAULT_MAX_PIXELS
    max_side: int = DEFAULT_MAX_SIDE
    max_memory: int | None = None

    def __post_init__(self) -> None:
        for name in ("max_pixels", "max_side", "max_memory"):
            value = getattr(self, name)
            if value is None and name == "max_memory":
                continue
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")

    def check(self, header: Header) -> None:
        """TooLargeError for a picture over the limits on pixels and sides."""
        width, height = header.width, header.height
        if max(width, height) > self.max_side:
            raise TooLargeError(
                f"{width} x {height} pixels, more than the limit of {self.max_side} a side"
            )
        if width * height > self.max_pixels:
            raise TooLargeError(f"{width} x {height} pixels, more than the limit of {self.max_pixels}")
        # Memory follows the padded grid, which is 16 times a picture of one row or column. A small
        # picture may be padded as it likes.
        grid = tile_grid(width, height)
        padded = grid.rows * grid.cols * STRIDE**2
        if padded > 2 * self.max_pixels + _SMALL:
            raise TooLargeError(
                f"{width} x {height} pixels take the memory of {padded}, more than twice the limit of "
                f"{self.max_pixels}"
            )

    def check_memory(self, needed: int) -> None:
        """TooLargeError if `needed` bytes are more than a decode may take."""
        allowed = available_memory() if self.max_memory is None else self.max_memory
        if allowed is not None and needed > allowed:
            where = "are available" if self.max_memory is None else "are allowed"
            raise TooLargeError(
                f"decoding takes about {_megabytes(needed)}, {_megabytes(allowed)} {where}"
            )


def available_memory() -> int | None:
    """Bytes of main memory that a process can take without swapping, as far as the system tells.

    The least of what the machine has and what a container (cgroup v2) may take; None if neither is known.
    """
    known = [size for size in (_machine_memory(), _container_memory()) if size is not None]
    return min(known, default=None)


def _machine_memory() -> int | None:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _container_memory() -> int | None:
    numbers = []
    try:
        for name in ("memory.max", "memory.current"):
            with open(f"{_MEMORY_GROUP}/{name}", encoding="ascii") as file:
                numbers.append(int(file.read()))
    except (OSError, ValueError):  # no such file, or "max": no limit
        return None
    return max(0, numbers[0] - numbers[1])


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
