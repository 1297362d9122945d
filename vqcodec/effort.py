"""Encoding effort: how long mode vq searches. No torch, so that the command line may name it."""

EFFORTS = range(1, 10)
GREEDY_EFFORT = 1
"""Every symbol is assigned once."""
DEFAULT_EFFORT = 4
# Rounds of the search at each effort.
_ROUNDS = dict(zip(EFFORTS, (0, 1, 2, 3, 4, 6, 9, 14, 24), strict=True))


def check_effort(effort: int) -> int:
    """The effort, if it is one. ValueError otherwise."""
    if isinstance(effort, bool) or not isinstance(effort, int) or effort not in EFFORTS:
        raise ValueError(f"effort must be {EFFORTS[0]}..{EFFORTS[-1]}, got {effort!r}")
    return effort


def rounds_of(effort: int) -> int:
    """Rounds of `vqcodec.search` at an effort. ValueError for what is none."""
    return _ROUNDS[check_effort(effort)]
