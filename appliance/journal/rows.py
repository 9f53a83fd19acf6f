"""Rows of the journal as values of the model."""

import sqlite3

from pydantic import TypeAdapter

from appliance.model import Delivery, HistoryLine, Instance, Job, Kind, Origin, Outcome, Series, Urgency

SERIES_COLUMNS = (
    "id, study_instance_uid, series_instance_uid, modality, calling_ae, state, revision, arrivals, stated_count,"
    " first_tick, last_tick, released, interrupted, evidence"
)
JOB_COLUMNS = (
    "id, engine, scope, study_instance_uid, series_instance_uid, sop_instance_uid, subject, revision, state,"
    " input_digest, last_instance_id, attempts, deadline_tick, evidence, predecessor, provisional_digest, outcome,"
    " concluded_at, implausible_clock"
)
INSTANCE_SELECT = (
    "SELECT i.id, i.origin, i.kind, i.sop_class_uid, i.sop_instance_uid, i.transfer_syntax_uid, i.digest, i.size,"
    " coalesce((SELECT min(file) FROM copy WHERE instance=i.id), '') AS file, i.study_instance_uid,"
    " i.series_instance_uid, i.modality, i.patient, i.calling_ae FROM instance i"
)
DELIVERY_SELECT = (
    "SELECT d.id, d.instance AS instance_id, d.destination, d.urgency, d.state, d.created_tick, d.attempts, d.reason,"
    " i.sop_class_uid, i.sop_instance_uid, i.transfer_syntax_uid,"
    " coalesce((SELECT min(file) FROM copy WHERE instance=i.id), '') AS file, d.size"
    " FROM delivery d JOIN instance i ON i.id = d.instance"
)

OUTCOME = TypeAdapter(Outcome)


def series_of(row: sqlite3.Row) -> Series:
    values = dict(row)
    return Series(**values | {"released": bool(row["released"]), "interrupted": bool(row["interrupted"])})


def instance_of(row: sqlite3.Row) -> Instance:
    return Instance(**dict(row) | {"origin": Origin(row["origin"]), "kind": Kind(row["kind"])})


def job_of(row: sqlite3.Row) -> Job:
    outcome = OUTCOME.validate_json(row["outcome"]) if row["outcome"] else None
    return Job(**dict(row) | {"outcome": outcome, "implausible_clock": bool(row["implausible_clock"])})


def delivery_of(row: sqlite3.Row) -> Delivery:
    return Delivery(**dict(row) | {"urgency": Urgency(row["urgency"])})


def history_of(row: sqlite3.Row, detail: dict[str, object]) -> HistoryLine:
    values = {key: row[key] for key in row.keys() if key not in ("id", "detail")}  # noqa: SIM118 - sqlite3.Row
    return HistoryLine(**values, detail=detail)
