"""A storage SCU on pynetdicom, to compare with: as most scripts have it, or as quick as its public API allows.

    forward_pynetdicom.py {stock,best} HOST PORT FOLDER

Prints the seconds from the request for the association to its release: not those that Python takes to load it.
"""

import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pydicom import dcmread
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.events import Event

SUCCESS = 0x0000


def no_delay(event: Event) -> None:
    wrapped = event.assoc.dul.socket
    if wrapped is not None and wrapped.socket is not None:
        wrapped.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def main() -> None:
    kind, host, port, files = sys.argv[1], sys.argv[2], int(sys.argv[3]), sorted(Path(sys.argv[4]).iterdir())
    best = kind == "best"
    if best:
        _config.LOG_HANDLER_LEVEL = "none"  # before the AE is made
        _config.STORE_SEND_CHUNKED_DATASET = True
    entity = AE("BENCH")
    for file in files:
        found = dcmread(file, specific_tags=["SOPClassUID"], stop_before_pixels=True)
        context = (str(found.SOPClassUID), str(found.file_meta.TransferSyntaxUID))
        if context not in [(one.abstract_syntax, one.transfer_syntax[0]) for one in entity.requested_contexts]:
            entity.add_requested_context(*context)
    begun = time.monotonic()
    handlers = [(evt.EVT_CONN_OPEN, no_delay)] if best else []
    association = entity.associate(host, port, ae_title="STORESCP", evt_handlers=handlers)  # type: ignore[arg-type]
    send_all(association, files, best=best)
    association.release()
    sys.stdout.write(f"{time.monotonic() - begun}\n")


def send_all(association: Association, files: Sequence[Path], *, best: bool) -> None:
    for file in files:
        answer = association.send_c_store(file if best else dcmread(file))
        if "Status" not in answer or answer.Status != SUCCESS:
            sys.exit(f"{file.name} was not stored: {answer}")


if __name__ == "__main__":
    main()
