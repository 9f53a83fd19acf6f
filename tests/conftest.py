"""Fixtures for all tiers."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real, public, de-identified cases; they are never part of the repository."""
    folder = Path(os.environ.get("SCANSIDE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real cases at {folder}: set SCANSIDE_DATA")
    return folder
