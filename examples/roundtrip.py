"""Compress a picture at several qualities and compare what comes back with the original.

python examples/roundtrip.py [PICTURE]
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

import vqcodec


def psnr(original: Image.Image, decoded: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB of two pictures of one size and mode."""
    difference = np.asarray(original, np.float64) - np.asarray(decoded, np.float64)
    return float(10 * np.log10(255**2 / max(np.mean(difference**2), 1e-12)))


def main(path: Path) -> None:
    """Print one line for each quality."""
    original = ImageOps.exif_transpose(Image.open(path))
    if original.mode not in ("RGB", "L"):
        sys.exit(f"{path}: this comparison is for RGB and grey pictures, not mode {original.mode}")
    pixels = original.width * original.height
    print(f"{path.name}: {original.width} x {original.height}")
    for quality in (10, 30, 50, 70, 90):
        data = vqcodec.compress(original, quality=quality)
        decoded = vqcodec.decompress(data)
        print(
            f"quality {quality:2d}: {len(data):7,} bytes, {8 * len(data) / pixels:.3f} bpp, "
            f"{psnr(original, decoded):.2f} dB"
        )


if __name__ == "__main__":
    here = Path(__file__).parent
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else here / "picture.png")
