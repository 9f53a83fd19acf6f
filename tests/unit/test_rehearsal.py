"""The rehearsal's judgement: what counts as found, and what counts as failed."""

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from appliance.dimse.header import Part10
from appliance.dimse.small_pacs import Received
from appliance.model import Conclusion, EngineIdentity, Finding, Job, Outcome, Reason
from appliance.phantom import Nodule
from appliance.rehearsal.material import Material
from appliance.rehearsal.outage import Outage
from appliance.rehearsal.patience import Patience, RehearsalFailed
from appliance.rehearsal.proof import ResultProof, prove_images, resent
from appliance.rehearsal.report import Course, Report, document, failures
from appliance.rehearsal.truth import Said, compare, said
from appliance.scanner import Found, Item, Sent
from tests.journals import CT_IMAGE, EXPLICIT
from tests.scanner import part10

ENGINE = EngineIdentity(id="ct-lesion", version="1", status="reference", package_sha256="", model_sha256="")


def finding(*centre: float, score: float = 0.9) -> Finding:
    place = (centre[0], centre[1], centre[2]) if centre else None
    return Finding(label="lesion", score=score, sop_instance_uid="1.2", box=(0, 0, 1, 1), centre_mm=place)


def job(*findings: Finding, conclusion: Conclusion = Conclusion.FINDING, reason: Reason | None = None) -> Job:
    outcome = Outcome(conclusion=conclusion, reason=reason, findings=findings, engine=ENGINE)
    return Job(
        id=1,
        engine="ct-lesion@1",
        scope="study",
        study_instance_uid="1",
        series_instance_uid="1.1",
        sop_instance_uid="",
        subject="1",
        revision=1,
        state="reported",
        input_digest="",
        last_instance_id=1,
        attempts=1,
        deadline_tick=0,
        evidence="silence",
        predecessor="",
        provisional_digest="",
        outcome=outcome,
        concluded_at="",
        implausible_clock=False,
    )


def material(folder: Path, numbers: Sequence[int] = (1, 2), **facts: bool | tuple[Nodule, ...]) -> Material:
    items = []
    for number in numbers:
        path = part10(folder, number)
        stored = Part10(
            path=path,
            data_set_offset=4,
            size=path.stat().st_size - 4,
            sop_class_uid=CT_IMAGE,
            sop_instance_uid=f"1.{number}",
            transfer_syntax_uid=EXPLICIT,
        )
        items.append(Item(stored=stored, name=path.name))
    return Material(title="test", found=Found(items=tuple(items), skipped=()), **facts)  # type: ignore[arg-type]


def held_by_pacs(uid: str, sha256: str, times: int = 1) -> Received:
    return Received(
        sop_instance_uid=uid,
        sop_class_uid=CT_IMAGE,
        sha256=sha256,
        digest=sha256,
        path=Path(f"{uid}.dcm"),
        transfer_syntax_uid=EXPLICIT,
        times=times,
    )


def faithful(sent: Material) -> list[Received]:
    return [held_by_pacs(uid, next(iter(digests))) for uid, digests in sent.digests.items()]


def report(sent: Material, received: Sequence[Received], course: Course, *jobs: Job) -> Report:
    findings = said(jobs)
    return Report(
        material=sent,
        engines=("ct-lesion",),
        course=course,
        images=prove_images(sent, received),
        results=(),
        jobs=jobs,
        findings=tuple(findings),
        planted=tuple(compare(sent.planted, findings)),
        timelines=(),
        held=(),
        resent=resent(received),
        seconds=1.0,
    )


SMOOTH = Course(begun=0.0, unfit={}, sent=(), outage=None)


def test_a_nodule_is_found_by_the_best_finding_that_lies_in_it() -> None:
    nodule = Nodule(centre_mm=(10, 20, 30), diameter_mm=10)
    findings = said([job(finding(100, 0, 0), finding(11, 20, 30), finding(10, 20, 30))])
    (match,) = compare([nodule], findings)
    assert (match.found and match.found.rank, match.distance_mm) == (2, 1.0)


def test_a_finding_stands_for_one_nodule_only() -> None:
    near = [Nodule(centre_mm=(0, 0, 0), diameter_mm=20), Nodule(centre_mm=(5, 0, 0), diameter_mm=20)]
    first, second = compare(near, said([job(finding(2, 0, 0))]))
    assert first.found is not None
    assert second.found is None


def test_a_finding_without_a_place_finds_nothing() -> None:
    (match,) = compare([Nodule(centre_mm=(0, 0, 0), diameter_mm=20)], [Said(engine="x", rank=1, finding=finding())])
    assert match.found is None


def test_when_everything_holds_there_are_no_failures(tmp_path: Path) -> None:
    sent = material(tmp_path)
    whole = report(sent, faithful(sent), SMOOTH)
    assert failures(whole) == []
    told = document(whole, files_stay=False)
    assert (told["images_sent"], told["images_in_pacs"], told["byte_identical"]) == (2, 2, True)


def test_missing_and_altered_images_are_failures(tmp_path: Path) -> None:
    sent = material(tmp_path, (1, 2, 3))
    received = [held_by_pacs("1.1", "other"), faithful(sent)[1]]
    broken = report(sent, received, SMOOTH)
    assert failures(broken) == [
        "1 of 3 images are not in the PACS, 1.3 the first",
        "1 of 3 images are not what was sent, 1.1 the first",
    ]
    assert document(broken, files_stay=False)["byte_identical"] is False


def test_two_versions_of_one_image_are_both_good(tmp_path: Path) -> None:
    sent = material(tmp_path, (1,))
    (one,) = sent.found.items
    other = material(tmp_path, (7,)).found.items[0].stored
    twice = Item(
        stored=Part10(
            path=other.path,
            data_set_offset=4,
            size=other.size,
            sop_class_uid=CT_IMAGE,
            sop_instance_uid=one.stored.sop_instance_uid,
            transfer_syntax_uid=EXPLICIT,
        ),
        name="again",
    )
    both = Material(title="two versions", found=Found(items=(one, twice), skipped=()))
    for digest in both.digests["1.1"]:
        assert prove_images(both, [held_by_pacs("1.1", digest)]).holds


def test_what_the_scanner_was_not_told_is_a_failure(tmp_path: Path) -> None:
    sent = material(tmp_path)
    answers = (
        Sent(item=sent.found.items[0], status=0xA700),
        Sent(item=sent.found.items[1], status=None, error="connection lost"),
    )
    course = Course(begun=0.0, unfit={}, sent=answers, outage=None)
    assert failures(report(sent, faithful(sent), course)) == [
        "1 of 2 images were not acknowledged to the scanner: status 0xA700",
        "1 of 2 images were not acknowledged to the scanner: connection lost",
    ]


def test_of_synthetic_images_more_is_asked(tmp_path: Path) -> None:
    nodule = Nodule(centre_mm=(0, 0, 0), diameter_mm=8)
    sent = material(tmp_path, synthetic=True, planted=(nodule,))
    silent = report(sent, faithful(sent), SMOOTH)
    blind = report(sent, faithful(sent), SMOOTH, job(finding(50, 50, 50)))
    refused = report(sent, faithful(sent), SMOOTH, job(conclusion=Conclusion.NOT_ANALYSED, reason=Reason.GEOMETRY))
    assert "ct-lesion concluded nothing" in failures(silent)
    assert failures(blind) == ["the nodule of 8 mm planted at (0, 0, 0) mm was not found"]
    assert any("not analysed: geometry" in line for line in failures(refused))


def test_an_engine_that_does_not_serve_is_one_failure_not_three(tmp_path: Path) -> None:
    sent = material(tmp_path, synthetic=True, planted=(Nodule(centre_mm=(0, 0, 0), diameter_mm=8),))
    course = Course(begun=0.0, unfit={"ct-lesion@1": "altered"}, sent=(), outage=None)
    assert failures(report(sent, faithful(sent), course)) == ["ct-lesion@1 does not serve: altered"]


def test_a_result_that_is_not_what_was_built_is_a_failure(tmp_path: Path) -> None:
    sent = material(tmp_path)
    one = ResultProof(engine="e@1", kind="sr", sop_instance_uid="1.9", size=1, path=None, byte_identical=False)
    whole = report(sent, faithful(sent), SMOOTH)
    broken = Report(**{name: getattr(whole, name) for name in Report.__dataclass_fields__} | {"results": (one,)})
    assert failures(broken) == ["sr 1.9 of e@1 is not in the PACS"]


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [(40, 40, []), (0, 0, ["nothing was owed"]), (40, 39, ["40 deliveries were owed before the kill, 39 after"])],
)
def test_a_drill_that_proves_nothing_or_loses_something_fails(
    tmp_path: Path, before: int, after: int, told: list[str]
) -> None:
    sent = material(tmp_path)
    outage = Outage(at_pacs_when_cut=1, owed_when_scanned=before, owed_after_kill=after)
    found = failures(report(sent, faithful(sent), Course(begun=0.0, unfit={}, sent=(), outage=outage)))
    assert len(found) == len(told)
    assert all(line.startswith(start) for line, start in zip(found, told, strict=True))


def test_waiting_ends_with_the_limit_the_fault_or_the_truth() -> None:
    stirred, log = threading.Event(), Path("the.log")
    Patience(stirred=stirred, fault=lambda: "", log=log).wait(lambda: True, "x", 0.0)
    with pytest.raises(RehearsalFailed, match=r"not within 0 s: the sun rises.*the\.log"):
        Patience(stirred=stirred, fault=lambda: "", log=log).wait(lambda: False, "the sun rises", 0.01)
    with pytest.raises(RehearsalFailed, match=r"it died.*the\.log"):
        Patience(stirred=stirred, fault=lambda: "it died", log=log).wait(lambda: False, "x", 60.0)
