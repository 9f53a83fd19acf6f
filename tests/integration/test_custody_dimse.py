"""What one odd object, or a moment's shortage, may cost on an association: that object, and nothing else."""

import os
import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.destinations.dimse import DimseNode, judge
from appliance.destinations.folder import Folder
from appliance.dimse.pdu import encode_p_data
from appliance.dimse.small_pacs import SmallPacs
from appliance.dimse.wire import Target
from appliance.errors import TransientDeliveryError
from appliance.ports import Destination
from tests.journals import CT_IMAGE, EXPLICIT, SERIES
from tests.keeping import Server
from tests.scanner import data_set, part10


class Stored:
    sop_class_uid, sop_instance_uid, transfer_syntax_uid, size = CT_IMAGE, f"{SERIES}.1", EXPLICIT, 1


@contextmanager
def no_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(lowest_free := os.dup(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("uid", [b"1.2.840.STRANGE_1", b"1." + b"2" * 70, b""], ids=["letters", "long", "none"])
def test_a_uid_that_is_none_costs_one_object_not_the_association(server: Server, uid: bytes) -> None:
    def element(tag: int, value: bytes) -> bytes:
        return struct.pack("<HHI", 0, tag, len(value)) + value

    command = element(0x0002, CT_IMAGE.encode()) + element(0x0100, b"\x01\0") + element(0x0110, b"\x05\0")
    command += element(0x0800, b"\x02\x01") + element(0x1000, uid)
    with server.client() as client:
        client.send(encode_p_data(1, command, is_command=True))
        client.send(encode_p_data(1, data_set(5), is_command=False))
        assert client.response().status == 0xC000
        assert client.store(6).status == 0
        client.release()


@pytest.mark.promise("P3")
@pytest.mark.parametrize("kind", ["dimse", "folder"])
def test_a_shortage_of_ours_holds_no_delivery(tmp_path: Path, kind: str) -> None:
    """Or thousands would be held, one after another, until a person queues them again."""
    file = part10(tmp_path, 1)
    (tmp_path / "pacs").mkdir()
    with SmallPacs(tmp_path / "pacs", ae_title="PACS") as pacs:
        target = Target(host="127.0.0.1", port=pacs.port, calling_ae="SCANSIDE", called_ae="PACS")
        destination: Destination = DimseNode(target) if kind == "dimse" else Folder(tmp_path / "pacs")
        with destination.open([Stored()]) as session:
            with no_descriptors(), pytest.raises(TransientDeliveryError, match="Too many open files"):
                session.send(Stored(), file)
            assert session.alive
            assert session.send(Stored(), file) == ""


def test_a_resource_limitation_passes() -> None:
    assert judge(0x0213).error is TransientDeliveryError
