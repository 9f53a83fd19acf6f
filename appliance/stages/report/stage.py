"""The report stage: a committed outcome becomes result objects, built once, stored like an instance, and owed (P3).

Files are durable before the journal knows them. A crash in between leaves files nobody owns, which are swept, and the
same bytes are built again: they are a function of what is committed.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from appliance.digest import digest_of
from appliance.engine_ops import LesionCandidates
from appliance.errors import CannotAnalyse, OutOfResources
from appliance.file_head import file_head, make_seal
from appliance.imaging import preprocess, render
from appliance.imaging.reading import ImageReader
from appliance.journal import identity, jobs, results
from appliance.journal.results import Built as Owing
from appliance.model import Conclusion, Instance, Job, Kind, Outcome, Owed, Priority, Result
from appliance.spool import Spool
from appliance.stages.desk import Desk, EngineOnDuty
from appliance.stages.report.codes import LUNG
from appliance.stages.report.context import Built, Label, ReportContext
from appliance.stages.report.headers import SOURCE_TAGS, bare_header
from appliance.stages.report.picture import build_picture
from appliance.stages.report.priority import PriorityRule, priority
from appliance.stages.report.raw_values import text
from appliance.stages.report.sr import build_sr
from appliance.states import JobState

MAX_TRIES = 3
MAX_LOST = 2  # headers that cost the reader its life, of one job: where one does, others of the sender may
READ_S = 60.0  # for the headers of one job, and for its picture


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    """A built result, and what goes into the journal with it."""

    built: Built
    patient: bytes  #: identity.of_inputs
    owed: Sequence[Owed]
    priority: Priority


#: (kind, SOP class, engine, job's source instance, priority) -> where a result is owed
ResultRoutes = Callable[[Built, EngineOnDuty, Instance, Priority], Sequence[Owed]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Press:
    """What the report stage works with besides the desk."""

    node: str
    spool: Spool
    rules: Sequence[PriorityRule]
    routes: ResultRoutes
    takers: Callable[[EngineOnDuty, Instance, Priority], bool]  #: whether anybody would take a result at all
    ring: Callable[..., None]
    utc_offset: Callable[[datetime], timedelta]  #: of the box, at some moment


class Reporter:
    def __init__(self, desk: Desk, press: Press) -> None:
        self._desk, self._press = desk, press
        self._tried = (0, 0)  # job id, how many processes tried to build its results

    def step(self) -> bool:
        """Report at most one concluded job; says whether there was one.

        Where nobody can read images just now (RuntimeFailed) the job waits: a result without the patient's name would
        be lost. Raises OutOfResources, StoreFailed, too.
        """
        concluded = jobs.unfinished(self._desk.journal, JobState.CONCLUDED)
        if not concluded:
            return False
        job = concluded[0]
        tries = self._count_try(job)
        built: list[_Item] = []
        if tries > MAX_TRIES:
            note = f"the result could not be built: {MAX_TRIES} tries ended the process"
            self._desk.log("result_not_built", engine=job.engine, study=job.study_instance_uid)
        else:
            built, note = self._build(job, with_pixels=tries < MAX_TRIES)
        self._publish(job, built, note)
        return True

    def _count_try(self, job: Job) -> int:
        """Once in each process: it is deaths that are counted, not shortages that pass."""
        if self._tried[0] != job.id:
            self._tried = job.id, results.count_try(self._desk.journal, job)
        return self._tried[1]

    def _publish(self, job: Job, built: Sequence[_Item], note: str) -> None:
        """Files first, then the journal. Where it takes nothing they go again; a failed store leaves them to the next
        start, which may find the commit in the WAL.
        """
        owing: list[Owing] = []
        urgent = any(item.priority is Priority.URGENT for item in built)
        try:
            for item in built:
                owing.append(self._store(job, item))  # noqa: PERF401 - what is stored is removed when one fails
            reported = results.report(self._desk.journal, job, owing, note, urgent=urgent)
        except OutOfResources:
            self._remove(owing)
            raise
        if not reported:
            self._remove(owing)
        elif owing:
            self._press.ring("forward")

    def _remove(self, owing: Sequence[Owing]) -> None:
        for one in owing:
            self._press.spool.remove(one.result.file)

    def _build(self, job: Job, *, with_pixels: bool) -> tuple[list[_Item], str]:
        """The results of a job and where they are owed; or none, and why. Without pixels no decoder is in the way."""
        outcome = job.outcome
        engine = self._desk.author(job.engine, outcome.engine.package_sha256) if outcome is not None else None
        if engine is None or outcome is None:
            return [], "the engine is no longer configured"
        if not engine.publish:
            return [], "shadow: recorded, nothing sent"
        inputs = jobs.inputs(self._desk.journal, job)
        ours = [one for one in inputs if engine.answers_for(one)] or inputs
        instances = inputs if job.series_instance_uid else ours  # of a study of which no series was chosen yet
        how_urgent = priority(outcome, self._press.rules)
        if not ours or not self._press.takers(engine, ours[0], how_urgent):
            return [], "no destination takes results of this engine"
        headers = self._headers(outcome, instances)
        if not headers:
            self._desk.log("result_not_built", engine=job.engine, study=job.study_instance_uid)
            return [], "no source header is readable: nothing a result could refer to"
        patient = identity.of_inputs(instances)
        context = self._context(job, engine, outcome, patient)
        objects = [build_sr(context, headers)]
        if outcome.conclusion is not Conclusion.NOT_ANALYSED:
            pixels = self._picture(engine, outcome, instances) if with_pixels else None
            objects.append(build_picture(context, headers, pixels))
        items = [
            _Item(
                built=one,
                patient=patient,
                owed=self._press.routes(one, engine, ours[0], how_urgent),
                priority=how_urgent,
            )
            for one in objects
        ]
        return items, ""

    def _headers(self, outcome: Outcome, instances: Sequence[Instance]) -> list[Dataset]:
        """A header for each input: whole for the key images (those of findings, else the one nearest to the middle that
        can be read), bare for all others. Empty where none can be read.
        """
        keys = {finding.sop_instance_uid for finding in outcome.findings}
        middle = len(instances) // 2
        order = sorted(
            range(len(instances)), key=lambda n: (instances[n].sop_instance_uid not in keys, abs(n - middle))
        )
        whole: dict[str, Dataset] = {}
        lost = 0
        for instance in (instances[n] for n in order):
            if lost > MAX_LOST or (whole and instance.sop_instance_uid not in keys):
                break
            reader = self._desk.reader(READ_S)
            if (header := self._whole_header(instance, reader)) is not None:
                whole[instance.sop_instance_uid] = header
            lost += reader.lost
        return [whole.get(one.sop_instance_uid, bare_header(one)) for one in instances] if whole else []

    def _whole_header(self, instance: Instance, reader: ImageReader) -> Dataset | None:
        if not instance.file:
            return None
        try:
            header = reader.elements(self._desk.path(instance.file), SOURCE_TAGS)
        except CannotAnalyse as error:
            self._desk.log("header_unreadable", reason=str(error))
            return None
        if text(header, "SOPInstanceUID") != instance.sop_instance_uid:
            self._desk.log("header_unreadable", reason="it is not of the instance that was asked about")
            return None
        return header

    def _picture(
        self, engine: EngineOnDuty, outcome: Outcome, instances: Sequence[Instance]
    ) -> NDArray[np.uint8] | None:
        """The key images with the findings drawn on; None (a plain card) where there are none or none is readable.

        Slices are shown as the engine's model sees them, where it has a window.
        """
        keys = {finding.sop_instance_uid for finding in outcome.findings}
        if not keys:
            return None
        try:
            paths = self._desk.paths([one for one in instances if one.sop_instance_uid in keys])
            window = preprocess.hu_window(engine.package.manifest.preprocess) or render.LUNG_WINDOW
            return render.key_picture(paths, outcome.findings, self._desk.reader(READ_S), window)
        except CannotAnalyse as error:
            self._desk.log("picture_without_image", reason=str(error))
            return None

    def _context(self, job: Job, engine: EngineOnDuty, outcome: Outcome, patient: bytes) -> ReportContext:
        manifest = engine.package.manifest
        concluded_at = datetime.fromisoformat(job.concluded_at)
        return ReportContext(
            node=self._press.node,
            outcome=outcome,
            title=manifest.title,
            labels={
                key: Label(
                    text=label.text,
                    code=Code(label.code.value, label.code.scheme, label.code.meaning),
                    threshold=label.threshold,
                )
                for key, label in manifest.labels.items()
            },
            study_instance_uid=job.study_instance_uid,
            subject=job.subject,
            engine_key=job.engine,
            input_digest=job.input_digest,
            revision=job.revision,
            concluded_at=concluded_at,
            predecessor=job.predecessor,
            predecessor_series=results.series_of_result(self._desk.journal, job.predecessor),
            corrects_identity=identity.differs_from_earlier(self._desk.journal, job, patient),
            box_utc_offset=self._press.utc_offset(concluded_at),
            implausible_clock=job.implausible_clock,
            finding_site=LUNG if isinstance(manifest.postprocess, LesionCandidates) else None,
        )

    def _store(self, job: Job, item: _Item) -> Owing:
        """Write one result durably into the spool."""
        built = item.built
        head = file_head(
            built.sop_class_uid,
            built.sop_instance_uid,
            built.transfer_syntax_uid,
            "",
            json.dumps(_to_recover(job, item)).encode(),
        )
        data_set = memoryview(built.file_bytes)[built.data_set_offset :]
        file = self._press.spool.begin(head)
        try:
            file.write([data_set])
            file.seal(make_seal(file.size, file.digest))
            file.finish()
        except OutOfResources:
            file.discard()
            raise
        result = Result(
            kind=built.kind,
            sop_class_uid=built.sop_class_uid,
            sop_instance_uid=built.sop_instance_uid,
            series_instance_uid=built.series_instance_uid,
            transfer_syntax_uid=built.transfer_syntax_uid,
            digest=digest_of(data_set),
            size=len(data_set),
            file=file.name,
        )
        modality = "SR" if built.kind is Kind.SR else "OT"
        return Owing(result=result, modality=modality, patient=item.patient, owed=item.owed)


def _to_recover(job: Job, item: _Item) -> dict[str, object]:
    """What `recover` needs to owe a result again, and not to have it made a second time."""
    return {
        "kind": item.built.kind,
        "priority": item.priority,
        "patient": item.patient.hex(),
        "engine": job.engine,
        "status": job.outcome.engine.status if job.outcome else "",
        "scope": job.scope,
        "study_instance_uid": job.study_instance_uid,
        "series_instance_uid": job.series_instance_uid,
        "sop_instance_uid": job.sop_instance_uid,
        "result_series_instance_uid": item.built.series_instance_uid,
        "subject": job.subject,
        "revision": job.revision,
        "input_digest": job.input_digest,
    }
