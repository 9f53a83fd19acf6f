"""A storage SCP on pynetdicom, to compare with: as most scripts have it, or as quick as its public API allows, durable.

    ingest_pynetdicom.py {stock,best} PORT FOLDER

A baseline only: the UID in the path is not checked.
"""

import os
import sys
from pathlib import Path
from typing import cast

from pynetdicom import AE, AllStoragePresentationContexts, _config, evt
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event

LOOPBACK = "127.0.0.1"
ASSOCIATIONS = 80
SYNTAXES = ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"]


class Stock:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def store(self, event: Event) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        dataset.save_as(self._folder / f"{dataset.SOPInstanceUID}.dcm", enforce_file_format=True)
        return 0x0000


class Best:
    """No decoding, no logging, long PDUs; file and folder synced before the answer."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)

    def store(self, event: Event) -> int:
        path = self._folder / f"{_primitive(event).AffectedSOPInstanceUID}.dcm"
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            file.write(event.encoded_dataset())
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
        os.fsync(self._fd)
        return 0x0000


def _primitive(event: Event) -> C_STORE:
    return cast("C_STORE", event.request)


def main() -> None:
    kind, port, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    if kind == "best":
        _config.LOG_HANDLER_LEVEL = "none"  # before the AE is made
    entity = AE("BASE")
    entity.maximum_associations = ASSOCIATIONS
    if kind == "best":
        entity.maximum_pdu_size = 131072
    for context in AllStoragePresentationContexts:
        entity.add_supported_context(context.abstract_syntax or "", SYNTAXES)
    entity.add_supported_context("1.2.840.10008.1.1")
    keeper = Best(folder) if kind == "best" else Stock(folder)
    entity.start_server((LOOPBACK, port), evt_handlers=[(evt.EVT_C_STORE, keeper.store)])


if __name__ == "__main__":
    main()
