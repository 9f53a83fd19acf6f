"""What the scanner of the rehearsal has to send: a synthetic chest with known nodules, or somebody's study."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import file_digest
from pathlib import Path

from appliance import phantom, scanner
from appliance.dimse.header import Part10, read_header
from appliance.phantom import Nodule
from appliance.scanner import Found

SEED = 20260101


@dataclass(frozen=True, kw_only=True)
class Material:
    title: str
    found: Found
    planted: tuple[Nodule, ...] = ()
    synthetic: bool = False

    @cached_property
    def digests(self) -> Mapping[str, frozenset[str]]:
        """SHA-256 of the data sets by SOP Instance UID: several where a UID comes with different bytes."""
        digests: dict[str, set[str]] = {}
        for item in self.found.items:
            digests.setdefault(item.stored.sop_instance_uid, set()).add(digest_of(item.stored))
        return {uid: frozenset(values) for uid, values in digests.items()}

    @cached_property
    def studies(self) -> tuple[str, ...]:
        """Study Instance UIDs, in the order of the files."""
        headers = (
            read_header(one.stored.path, one.stored.data_set_offset, one.stored.transfer_syntax_uid)
            for one in self.found.items
        )
        return tuple(dict.fromkeys(header.study_instance_uid for header in headers))


def digest_of(stored: Part10) -> str:
    """SHA-256 of the data set of a Part 10 file, File Meta left out: what travels."""
    with stored.path.open("rb") as file:
        file.seek(stored.data_set_offset)
        return file_digest(file, "sha256").hexdigest()


def synthetic_chest(folder: Path) -> Material:
    """A CT with planted nodules and a film, of nobody."""
    truth = phantom.write_ct(folder / "ct", seed=SEED)
    phantom.write_cr(folder / "cr", seed=SEED)
    planted = truth.nodules
    return Material(
        title=f"a synthetic chest CT with {len(planted)} planted nodules, and a film",
        found=scanner.find(folder, folder),
        planted=planted,
        synthetic=True,
    )


def given_study(path: Path, workdir: Path) -> Material:
    """What lies at `path`. Raises NothingToSend."""
    workdir.mkdir(parents=True)
    return Material(title=str(path), found=scanner.find(path, workdir))
