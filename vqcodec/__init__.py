"""vqcodec: an image codec built on vector quantisation.

data = vqcodec.compress(image, quality=50)      # PIL image or uint8 array -> bytes
image = vqcodec.decompress(data)                # bytes -> PIL image
vqcodec.info(data)                              # what the header says, no torch, no weights
vqcodec.truncate(data, stages=2)                # a smaller file of a coarser picture, no torch either
"""

from typing import TYPE_CHECKING, Any

from vqcodec.errors import VqcError
from vqcodec.inspection import FileInfo, info
from vqcodec.limits import Limits
from vqcodec.rate_control import RateTarget
from vqcodec.truncation import truncate

if TYPE_CHECKING:
    from vqcodec.codec import Codec, Salvage, compress, decompress, load_codec, salvage

__version__ = "0.5.0"

__all__ = [
    "Codec",
    "FileInfo",
    "Limits",
    "RateTarget",
    "Salvage",
    "VqcError",
    "__version__",
    "compress",
    "decompress",
    "info",
    "load_codec",
    "salvage",
    "truncate",
]


def __getattr__(name: str) -> Any:
    # The codec imports torch; reading a header must not.
    if name in ("Codec", "Salvage", "compress", "decompress", "load_codec", "salvage"):
        from vqcodec import codec

        return getattr(codec, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
