"""pynetdicom as its documentation has it, all at its defaults, to compare with: `hostile_pynetdicom.py PORT FOLDER`.

A baseline only: the UID in the path is not checked.
"""

import logging
import sys
from pathlib import Path

from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.events import Event


def main() -> None:
    port, folder = int(sys.argv[1]), Path(sys.argv[2])
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)

    def store(event: Event) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        dataset.save_as(folder / f"{dataset.SOPInstanceUID}.dcm", enforce_file_format=True)
        return 0x0000

    entity = AE("SCANSIDE")
    entity.supported_contexts = AllStoragePresentationContexts
    entity.add_supported_context("1.2.840.10008.5.1.4.1.1.2", ["1.2.840.10008.1.2.5"])
    entity.add_supported_context("1.2.840.10008.1.1")
    entity.start_server(("127.0.0.1", port), evt_handlers=[(evt.EVT_C_STORE, store)])


if __name__ == "__main__":
    main()
