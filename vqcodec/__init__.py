"""vqcodec: an image codec built on vector quantisation.

data = vqcodec.compress(image, quality=50)      # PIL image or uint8 array -> bytes
image = vqcodec.decompress(data)                # bytes -> PIL image
vqcodec.info(data)                              # what the header says, no torch, no weights
"""

from typing import TYPE_CHECKING, Any

from vqcodec.errors import VqcError
from vqcodec.inspection import FileInfo, info

if TYPE_CHECKING:
    from vqcodec.codec import Codec, compress, decompress, load_codec

__version__ = "0.1.0"

__all__ = [
    "Codec",
    "FileInfo",
    "VqcError",
    "__version__",
    "compress",
    "decompress",
    "info",
    "load_codec",
]


def __getattr__(name: str) -> Any:
    # The codec imports torch; reading a header must not.
    if name in ("Codec", "compress", "decompress", "load_codec"):
        from vqcodec import codec

        return getattr(codec, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
