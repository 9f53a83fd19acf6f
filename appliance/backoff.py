"""How long to wait before the next try."""

import random


def backoff_s(failures: int, first_s: float, last_s: float) -> float:
    """Seconds after so many failures in a row: exponential from `first_s`, capped at `last_s`, jittered to half."""
    longest = min(last_s, first_s * 2.0 ** min(failures - 1, 16))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret
