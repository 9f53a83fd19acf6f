"""Tries come further and further apart, never further than the cap, and not all boxes' at once."""

import random

from appliance.backoff import backoff_s

FIRST_S, LAST_S = 0.5, 60.0


def test_tries_are_backed_off_capped_and_jittered() -> None:
    random.seed(1)
    for failures in (*range(1, 40), 100_000):
        found = [backoff_s(failures, FIRST_S, LAST_S) for _ in range(50)]
        longest = min(LAST_S, FIRST_S * 2 ** min(failures - 1, 60))
        assert longest / 2 <= min(found) < max(found) <= longest
