"""What a test needs and the machine lacks: skipped at a desk, with the reason; a failure in CI, where all must run."""

import os
from typing import NoReturn

import pytest


def missing(what: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(f"{what} (with CI set this is no reason to skip)", pytrace=False)
    pytest.skip(what)
