"""What can be asked of which mode. No torch, so that the command line may say it before loading any.

`vqcodec.container` has the numbers and names; docs/modes.md says what the modes are.
"""

from vqcodec.container import MODE_NAMES

POSTERIOR_MODES = ("vae", "hvae")
"""Their analysis gives a Gaussian: a latent can be drawn from it in place of its mean."""
NORMAL_MODES = (*POSTERIOR_MODES, "wae")
"""Their latents are meant to be N(0, 1), the lower level of hvae given the upper one."""
UNDRAWN_MODES = {
    "ae": "an autoencoder has no prior to draw from",
    "dae": "a denoising autoencoder has no prior to draw from",
    "vq": "mode vq codes pictures, it does not draw them",
}
"""Modes that cannot generate, and why not."""
DIGITS_MODE = "cvae"
"""Draws the digit that is asked for and codes nothing: `vqcodec.digits`."""
NO_FILES = f"mode {DIGITS_MODE} draws digits and has no files: its prior needs a label, which photos lack"
DRAWN_MODES = tuple(mode for mode in MODE_NAMES.values() if mode not in UNDRAWN_MODES)
