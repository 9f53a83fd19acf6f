"""Routing as a truth table: which destination gets what, and how soon."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.config import Config
from appliance.model import Header, Kind, Owed, Priority, Urgency
from appliance.routing import UNROUTED, Routed, deliveries_for_received, deliveries_for_result, stated_priority

CT = "1.2.840.10008.5.1.4.1.1.2"
DX = "1.2.840.10008.5.1.4.1.1.1.1"
COMPREHENSIVE_SR = "1.2.840.10008.5.1.4.1.1.88.33"

IMAGE = Routed(kind=Kind.IMAGE, calling_ae="CT01", modality="CT", sop_class_uid=CT)
REPORT = Routed(
    kind=Kind.SR,
    calling_ae="CT01",
    modality="CT",
    sop_class_uid=COMPREHENSIVE_SR,
    engine="ct-lesion",
    engine_status="site_accepted",
)
PICTURE = replace(REPORT, kind=Kind.SC)


def pacs(name: str = "pacs", takes: str = "image sr sc", **options: Any) -> dict[str, Any]:
    sound = {"kind": "dimse", "host": "192.0.2.20", "port": 104, "called_ae": "PACS"}
    return {**sound, "name": name, "takes": takes.split(), **options}


def sending_to(*destinations: dict[str, Any]) -> Config:
    return Config.model_validate({"destinations": destinations})


def names(owed: tuple[Owed, ...]) -> list[str]:
    return [one.destination for one in owed]


def gets(destination: dict[str, Any], facts: Routed) -> bool:
    """Whether the one destination gets the object."""
    route = deliveries_for_received if facts.kind is Kind.IMAGE else deliveries_for_result
    owed = route(sending_to(destination), facts)
    return [one.destination for one in owed if not one.held] == [destination["name"]]


@pytest.mark.parametrize("facts", [IMAGE, REPORT, PICTURE], ids=lambda facts: facts.kind.value)
@pytest.mark.parametrize("takes", ["image", "sr", "sc", "image sr", "image sr sc"])
def test_a_destination_gets_the_kinds_it_takes(takes: str, facts: Routed) -> None:
    assert gets(pacs(takes=takes), facts) is (facts.kind.value in takes.split())


@pytest.mark.parametrize(
    ("when", "image", "report"),
    [
        ({}, True, True),
        ({"calling_ae": ["CT01"]}, True, True),
        ({"calling_ae": ["CT02", "CT01"]}, True, True),
        ({"calling_ae": ["ct01"]}, False, False),
        ({"calling_ae": ["DX01"]}, False, False),
        ({"modality": ["ct"]}, True, True),
        ({"modality": ["DX", "CR"]}, False, False),
        ({"sop_class": [CT]}, True, False),
        ({"sop_class": [DX, COMPREHENSIVE_SR]}, False, True),
        ({"engine": ["ct-lesion"]}, True, True),
        ({"engine": ["cxr-acquisition"]}, True, False),
        ({"priority": ["routine"]}, True, True),
        ({"priority": ["urgent"]}, False, False),
        ({"priority": ["routine", "urgent"]}, True, True),
        ({"calling_ae": ["CT01"], "modality": ["CT"], "engine": ["ct-lesion"]}, True, True),
        ({"calling_ae": ["CT01"], "modality": ["DX"]}, False, False),
    ],
)
def test_every_condition_must_hold_and_an_empty_one_always_does(
    when: dict[str, list[str]], image: bool, report: bool
) -> None:
    assert gets(pacs(when=when), IMAGE) is image
    assert gets(pacs(when=when), REPORT) is report


def test_padding_and_case_of_what_a_scanner_says_do_not_matter() -> None:
    when = {"calling_ae": ["CT01"], "modality": ["CT"]}
    assert gets(pacs(when=when), replace(IMAGE, calling_ae="CT01  ", modality=" ct"))


def test_an_engine_is_known_by_its_id_whatever_its_version() -> None:
    assert gets(pacs(when={"engine": ["ct-lesion"]}), replace(REPORT, engine="ct-lesion@0.1.0"))
    assert not gets(pacs(when={"engine": ["ct"]}), REPORT)


@pytest.mark.parametrize(
    ("status", "accept_reference", "sent"),
    [
        ("site_accepted", False, True),
        ("site_accepted", True, True),
        ("reference", False, False),
        ("reference", True, True),
        ("", False, False),
        ("", True, True),
    ],
)
@pytest.mark.promise("P6")
def test_reference_results_go_only_where_they_are_accepted(status: str, accept_reference: bool, sent: bool) -> None:
    destination = pacs(accept_reference=accept_reference)
    assert gets(destination, replace(REPORT, engine_status=status)) is sent
    assert gets(destination, replace(PICTURE, engine_status=status)) is sent
    assert gets(destination, IMAGE)


def test_all_destinations_that_fit_are_owed_in_the_order_of_the_configuration() -> None:
    config = sending_to(pacs("b"), pacs("reports", "sr"), pacs("a"))
    assert names(deliveries_for_received(config, IMAGE)) == ["b", "a"]
    assert names(deliveries_for_result(config, REPORT)) == ["b", "reports", "a"]


@pytest.mark.promise("P4")
def test_an_image_that_nobody_takes_is_held_and_told() -> None:
    held = (Owed(destination="", urgency=Urgency.IMAGE, held=UNROUTED),)
    assert deliveries_for_received(sending_to(), IMAGE) == held
    urgent = replace(IMAGE, priority=Priority.URGENT)  # which says in what order it is analysed, too
    assert deliveries_for_received(sending_to(pacs(takes="sr sc")), urgent) == (
        replace(held[0], urgency=Urgency.URGENT_IMAGE),
    )


def test_a_result_that_nobody_takes_is_owed_nowhere() -> None:
    assert deliveries_for_result(sending_to(), REPORT) == ()
    assert deliveries_for_result(sending_to(pacs(takes="image")), REPORT) == ()


@pytest.mark.parametrize(
    ("facts", "routine", "urgent"),
    [
        (REPORT, Urgency.RESULT, Urgency.URGENT_SR),
        (PICTURE, Urgency.RESULT, Urgency.URGENT_RESULT),
        (IMAGE, Urgency.IMAGE, Urgency.URGENT_IMAGE),
    ],
    ids=["sr", "sc", "image"],
)
@pytest.mark.promise("P7")
def test_urgent_first(facts: Routed, routine: Urgency, urgent: Urgency) -> None:
    route = deliveries_for_received if facts.kind is Kind.IMAGE else deliveries_for_result
    for priority, expected in ((Priority.ROUTINE, routine), (Priority.URGENT, urgent)):
        owed = route(sending_to(pacs()), replace(facts, priority=priority))
        assert [one.urgency for one in owed] == [expected]


@pytest.mark.parametrize(
    ("said", "priority"),
    [
        *((word, Priority.URGENT) for word in ("STAT", "HIGH", "A", "S", "stat", "HIGH ", "S\0")),
        *((word, Priority.ROUTINE) for word in ("", "ROUTINE", "R", "MEDIUM", "LOW", "STATUS", "P")),
    ],
)
def test_what_the_sender_says_of_urgency(said: str, priority: Priority) -> None:
    assert stated_priority(Header(requested_priority=said)) is priority


FACTS = st.builds(
    Routed,
    kind=st.just(Kind.IMAGE),
    calling_ae=st.sampled_from(["CT01", "DX01", ""]),
    modality=st.sampled_from(["CT", "DX", ""]),
    sop_class_uid=st.sampled_from([CT, DX]),
    priority=st.sampled_from(Priority),
)
CONDITIONS = st.fixed_dictionaries(
    {
        "calling_ae": st.lists(st.sampled_from(["CT01", "DX01"]), max_size=2),
        "modality": st.lists(st.sampled_from(["CT", "DX"]), max_size=2),
        "sop_class": st.lists(st.sampled_from([CT, DX]), max_size=2),
        "priority": st.lists(st.sampled_from(Priority), max_size=2),
    }
)


@given(FACTS, st.lists(CONDITIONS, max_size=3))
@pytest.mark.promise("P4")
def test_no_image_is_ever_owed_nowhere(facts: Routed, conditions: list[dict[str, Any]]) -> None:
    config = sending_to(*(pacs(f"d{number}", when=when) for number, when in enumerate(conditions)))
    owed = deliveries_for_received(config, facts)
    assert owed
    assert len({one.destination for one in owed}) == len(owed)
    assert all(bool(one.held) is not bool(one.destination) for one in owed)
