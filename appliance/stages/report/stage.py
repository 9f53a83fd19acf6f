"""The report stage: a committed outcome becomes result objects, built once, stored like an instance, and owed (P3).

Files are durable before the journal knows them. A crash in between leaves files nobody owns, which are swept, and the
same bytes are built again: they are a function of what is committed.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from appliance.engine_ops import LabelScores
from appliance.errors import CannotAnalyse
from appliance.imaging import render
from appliance.imaging.headers import parsing
from appliance.journal import jobs, results
from appliance.journal.results import Built as Owing
from appliance.model import Conclusion, Instance, Job, Kind, Outcome, Owed, Priority, Result
from appliance.spool import Spool, file_head
from appliance.stages.desk import Desk, EngineOnDuty
from appliance.stages.report.codes import LUNG
from appliance.stages.report.context import Built, Label, ReportContext
from appliance.stages.report.headers import bare_header
from appliance.stages.report.picture import build_picture
from appliance.stages.report.priority import PriorityRule, priority
from appliance.stages.report.sr import build_sr
from appliance.states import JobState

MAX_TRIES = 3

Item = tuple[Built, Sequence[Owed], Priority]

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
    box_utc_offset: timedelta


class Reporter:
    def __init__(self, desk: Desk, press: Press) -> None:
        self._desk, self._press = desk, press

    def step(self) -> bool:
        """Report at most one concluded job; says whether there was one. Raises OutOfResources, StoreFailed."""
        concluded = jobs.unfinished(self._desk.journal, JobState.CONCLUDED)
        if not concluded:
            return False
        job = concluded[0]
        built: list[Item] = []
        if results.count_try(self._desk.journal, job) > MAX_TRIES:
            note = f"the result could not be built: {MAX_TRIES} tries ended the process"
            self._desk.log("result_not_built", engine=job.engine, study=job.study_instance_uid)
        else:
            built, note = self._build(job)
        owing = [self._store(job, item, owed, how_urgent) for item, owed, how_urgent in built]
        urgent = any(how_urgent is Priority.URGENT for _, _, how_urgent in built)
        if not results.report(self._desk.journal, job, owing, note, urgent=urgent):
            for item in owing:
                self._press.spool.remove(item.result.file)
        elif owing:
            self._press.ring("forward")
        return True

    def _build(self, job: Job) -> tuple[list[Item], str]:
        """The results of a job and where they are owed; or none, and why."""
        engine, outcome = self._desk.engine(job.engine), job.outcome
        if engine is None or outcome is None:
            return [], "the engine is no longer configured"
        if not engine.publish:
            return [], "shadow: recorded, nothing sent"
        instances = jobs.inputs(self._desk.journal, job)
        how_urgent = priority(outcome, self._press.rules)
        if not instances or not self._press.takers(engine, instances[0], how_urgent):
            return [], "no destination takes results of this engine"
        headers = self._headers(outcome, instances)
        if not headers:
            return [], "no source header is readable: nothing a result could refer to"
        context = self._context(job, engine, outcome)
        items = [build_sr(context, headers)]
        if outcome.conclusion is not Conclusion.NOT_ANALYSED:
            items.append(build_picture(context, headers, self._picture(outcome, instances)))
        return [(item, self._press.routes(item, engine, instances[0], how_urgent), how_urgent) for item in items], ""

    def _headers(self, outcome: Outcome, instances: Sequence[Instance]) -> list[Dataset]:
        """A header for each input: whole for the key images (those of findings, else one from the middle), bare for
        all others. Empty where no key image is readable.
        """
        keys = {finding.sop_instance_uid for finding in outcome.findings}
        keys = keys or {instances[len(instances) // 2].sop_instance_uid}
        headers, readable = [], 0
        for instance in instances:
            header = self._whole_header(instance) if instance.sop_instance_uid in keys else None
            readable += header is not None
            headers.append(bare_header(instance) if header is None else header)
        return headers if readable else []

    def _whole_header(self, instance: Instance) -> Dataset | None:
        if not instance.file:
            return None
        try:
            with parsing("the header of a source image"):
                return dcmread(self._desk.path(instance.file), stop_before_pixels=True, force=True)
        except CannotAnalyse as error:
            self._desk.log("header_unreadable", reason=str(error))
            return None

    def _picture(self, outcome: Outcome, instances: Sequence[Instance]) -> NDArray[np.uint8] | None:
        """The key images with the findings drawn on; None (a plain card) where there are none or none is readable."""
        keys = {finding.sop_instance_uid for finding in outcome.findings}
        if not keys:
            return None
        try:
            paths = self._desk.paths([one for one in instances if one.sop_instance_uid in keys])
            return render.key_picture(paths, outcome.findings)
        except CannotAnalyse as error:
            self._desk.log("picture_without_image", reason=str(error))
            return None

    def _context(self, job: Job, engine: EngineOnDuty, outcome: Outcome) -> ReportContext:
        manifest = engine.package.manifest
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
            engine_key=job.engine,
            input_digest=job.input_digest,
            revision=job.revision,
            concluded_at=datetime.fromisoformat(job.concluded_at),
            predecessor=job.predecessor,
            predecessor_series=results.series_of_result(self._desk.journal, job.predecessor),
            box_utc_offset=self._press.box_utc_offset,
            implausible_clock=job.implausible_clock,
            finding_site=None if isinstance(manifest.postprocess, LabelScores) else LUNG,
        )

    def _store(self, job: Job, built: Built, owed: Sequence[Owed], how_urgent: Priority) -> Owing:
        """Write one result durably into the spool."""
        head = file_head(
            built.sop_class_uid,
            built.sop_instance_uid,
            built.transfer_syntax_uid,
            "",
            json.dumps(_to_recover(job, built, how_urgent)).encode(),
        )
        data_set = memoryview(built.file_bytes)[built.data_set_offset :]
        file = self._press.spool.begin(head)
        file.write([data_set])
        file.finish()
        result = Result(
            kind=built.kind,
            sop_class_uid=built.sop_class_uid,
            sop_instance_uid=built.sop_instance_uid,
            series_instance_uid=built.series_instance_uid,
            transfer_syntax_uid=built.transfer_syntax_uid,
            digest=sha256(data_set).digest(),
            size=len(data_set),
            file=file.name,
        )
        return Owing(result=result, modality="SR" if built.kind is Kind.SR else "OT", owed=owed)


def _to_recover(job: Job, built: Built, how_urgent: Priority) -> dict[str, object]:
    """What `recover` needs to owe a result again, and not to have it made a second time."""
    return {
        "kind": built.kind,
        "priority": how_urgent,
        "engine": job.engine,
        "status": job.outcome.engine.status if job.outcome else "",
        "scope": job.scope,
        "study_instance_uid": job.study_instance_uid,
        "series_instance_uid": job.series_instance_uid,
        "sop_instance_uid": job.sop_instance_uid,
        "result_series_instance_uid": built.series_instance_uid,
        "subject": job.subject,
        "revision": job.revision,
        "input_digest": job.input_digest,
    }
