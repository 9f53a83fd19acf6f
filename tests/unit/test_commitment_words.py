"""What storage commitment says, as values."""

import pytest

from appliance.dimse.commitment import FAILURE_REASONS, Remedy, meaning, report_of, request
from appliance.dimse.data_set import DataSet, Tag, read, write
from appliance.dimse.sop_classes import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    STORAGE_COMMITMENT_INSTANCE,
)
from appliance.errors import DataSetRefused
from appliance.stages.prove.asking import verdict_of

CT = "1.2.840.10008.5.1.4.1.1.2"


def item(uid: str, reason: bytes | None = None) -> DataSet:
    found: DataSet = {Tag.REFERENCED_SOP_INSTANCE_UID: uid.encode()}
    return found if reason is None else {**found, Tag.FAILURE_REASON: reason}


@pytest.mark.parametrize("syntax", [EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN])
def test_a_report_says_what_is_kept_and_why_the_rest_is_not(syntax: str) -> None:
    data_set: DataSet = {
        Tag.TRANSACTION_UID: b"1.2",
        Tag.REFERENCED_SOP_SEQUENCE: [item("1.1"), item("1.2")],
        Tag.FAILED_SOP_SEQUENCE: [item("1.2", b"\x12\x01"), item("1.3"), item("1.4", b"\x00\x00\x00\x00")],
    }
    told = report_of(STORAGE_COMMITMENT_INSTANCE, 2, read(write(data_set, syntax), syntax))
    assert told.committed == {"1.1"}  # what is said to have failed has failed, whatever else is said of it
    assert told.failed == {"1.2": 0x0112, "1.3": 0x0110, "1.4": 0x0110}


@pytest.mark.parametrize(
    ("instance", "event", "data_set", "status"),
    [
        ("1.2", 1, {Tag.TRANSACTION_UID: b"1.2"}, 0x0112),
        (STORAGE_COMMITMENT_INSTANCE, 0, {Tag.TRANSACTION_UID: b"1.2"}, 0x0113),
        (STORAGE_COMMITMENT_INSTANCE, None, {Tag.TRANSACTION_UID: b"1.2"}, 0x0113),
        (STORAGE_COMMITMENT_INSTANCE, 1, {}, 0x0115),
        (STORAGE_COMMITMENT_INSTANCE, 1, {Tag.TRANSACTION_UID: b"x"}, 0x0115),
        (STORAGE_COMMITMENT_INSTANCE, 1, {Tag.TRANSACTION_UID: [{}]}, 0x0115),
        (STORAGE_COMMITMENT_INSTANCE, 1, {Tag.TRANSACTION_UID: b"1", Tag.REFERENCED_SOP_SEQUENCE: [{}]}, 0x0115),
    ],
)
def test_what_is_no_report_is_refused(instance: str, event: int | None, data_set: DataSet, status: int) -> None:
    with pytest.raises(DataSetRefused) as refused:
        report_of(instance, event, data_set)
    assert refused.value.status == status


def test_a_request_names_each_object_with_its_class() -> None:
    asked = request("1.2", [(CT, "1.1"), (CT, "1.3")])
    assert asked[Tag.TRANSACTION_UID] == b"1.2"
    found = asked[Tag.REFERENCED_SOP_SEQUENCE]
    assert isinstance(found, list)
    assert [one[Tag.REFERENCED_SOP_INSTANCE_UID] for one in found] == [b"1.1", b"1.3"]


def test_every_reason_has_words_and_only_that_of_the_asking_is_asked_again() -> None:
    assert [reason for reason, one in FAILURE_REASONS.items() if one.remedy is Remedy.ASK_AGAIN] == [0x0131]
    assert verdict_of(0).failure == ""
    assert verdict_of(0x0112).failure == "0x0112 no such object instance"
    assert verdict_of(0x0131).says_nothing_of_it
    assert verdict_of(0xABCD).failure.startswith("0xABCD ")
    assert meaning(0xABCD).remedy is Remedy.SEND_AGAIN
