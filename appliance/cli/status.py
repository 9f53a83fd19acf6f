"""status: one look at a box."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from appliance.cli.attention import Attention, attentions
from appliance.cli.attention.studies import awaited_words
from appliance.cli.opening import FAILED, ConfigOption, JsonOption, config_path, load_config, teaching
from appliance.cli.planner import Backlog, plan
from appliance.cli.situation import Situation, look
from appliance.cli.tables import Column, Output, plural, run_by, size_of, span_of
from appliance.cli.unproven import unproven_words
from appliance.config import Config, EngineMode
from appliance.wiring.common import HOUR_MS

app = typer.Typer(rich_markup_mode=None)


@app.command(
    epilog=teaching(
        "scanside status --config /etc/scanside/scanside.yaml",
        "scanside status --json | jq .attention",
        failed="something needs somebody (it is named), or the appliance is not running",
    )
)
def status(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """What runs, what is owed to whom, and what needs somebody.

    Also works while the appliance is down. Names no patients.
    """
    path = config_path(config)
    loaded = load_config(path)
    now = look(loaded)
    needs = attentions(loaded, now)
    output = Output(as_json=as_json)
    output.document(_document(path, loaded, now, needs))
    _print(output, loaded, now, needs)
    if needs:
        raise typer.Exit(FAILED)


def _document(path: Path, config: Config, now: Situation, needs: list[Attention]) -> dict[str, Any]:
    return {
        "node": config.node,
        "config": str(path),
        "running": now.running,
        "processes": dict(now.processes),
        "receive": {"ae_title": config.ae_title, "bind": str(config.receive.bind), "port": now.port, **_doors(now)},
        "engines": dict(now.engines),
        "engine_alarms": dict(now.engine_alarms),
        "lanes": dict(now.lanes),
        "reports": dict(now.reports),
        "proofs": dict(now.proofs),
        "disk": asdict(now.disk) | {"refusing": now.disk.refusing},
        "outage": {"lasts_h": now.disk.lasts_h, "destinations": [asdict(one) for one in plan(config, now)]},
        "latched": now.latched,
        "journal": asdict(now.journal) if now.journal is not None else None,
        "journal_fault": now.journal_fault,
        "clock_implausible": now.clock_implausible,
        "attention": [asdict(need) for need in needs],
    }


def _doors(now: Situation) -> dict[str, Any]:
    keys = ("tls", "unencrypted_port", "unencrypted_reason", "rejections")
    return {key: now.receive.get(key) for key in keys}


def _print(output: Output, config: Config, now: Situation, needs: list[Attention]) -> None:
    for need in needs:
        output.line(f"! {need.what}", style="bold red")
        if need.do:
            output.line(f"    {need.do}", style="dim")
    if not needs:
        output.line("All is well.", style="bold green")
    output.line()
    for line in _facts(config, now):
        output.line(line)
    _print_engines(output, now)
    _print_owed(output, config, now)
    _print_rejections(output, now)


def _facts(config: Config, now: Situation) -> list[str]:
    up = [name for name, there in now.processes.items() if there]
    lines = [f"{config.node}: {', '.join(up) + ' running' if up else 'not running'}"]
    if now.port:
        lines += _listening(config, now)
    if not config.receive.peers:
        lines.append("nobody may send: receive.peers is empty")
    if not any(one.mode is not EngineMode.OFF for one in config.engines):
        lines.append("AI off: no engine is configured")
    if not config.destinations:
        lines.append("nothing is sent on: destinations is empty")
    lines.append(f"disk: {size_of(now.disk.free_bytes)} free, {size_of(now.disk.reserve_bytes)} of it in reserve")
    lines.append(_holding(now))
    if now.journal is None:
        return [*lines, "no journal" if now.journal_fault else "no journal yet: it has never run"]
    unfinished = ", ".join(f"{count} {state}" for state, count in now.journal.jobs.items()) or "none"
    stored, open_series = plural(now.journal.instances, "object"), now.journal.open_series
    lines.append(f"{stored} recorded so far, {open_series} series open, unfinished jobs: {unfinished}")
    lines += [awaited_words(one, now.journal.tick) for one in now.journal.awaited]
    lines += [unproven_words(one, now.journal.tick) for one in now.journal.unproven]
    return lines + [
        f"{one.calling_ae} waits for {plural(one.count, 'storage commitment report')},"
        f" the oldest for {span_of(now.journal.tick - one.oldest_tick)}"
        for one in now.journal.commitments
    ]


def _listening(config: Config, now: Situation) -> list[str]:
    tls, bind = now.receive.get("tls"), config.receive.bind
    how = f"TLS, client certificates {tls['client_certificates']}" if tls else "not encrypted"
    lines = [f"listening as {config.ae_title} on {bind} port {now.port} ({how})"]
    if port := now.receive.get("unencrypted_port"):
        lines.append(f"NOT ENCRYPTED: also on {bind} port {port}: {now.receive.get('unencrypted_reason')}")
    return lines


def _print_rejections(output: Output, now: Situation) -> None:
    rejections = now.receive.get("rejections") or {}
    if rejections:
        output.line()
    output.table(
        [Column("turned away because"), Column("times", right=True), Column("last"), Column("who")],
        [
            (reason, one["count"], _ago(now, one["last_tick"]), f"{one['calling_ae']} {one['address']}".strip())
            for reason, one in sorted(rejections.items(), key=lambda item: -item[1]["last_tick"])
        ],
    )


def _ago(now: Situation, tick: int) -> str:
    return f"{span_of(max(0, now.journal.tick - tick))} ago" if now.journal is not None else ""


def _holding(now: Situation) -> str:
    held, lasts_h = f"{size_of(now.disk.held_bytes)} of images and results held", now.disk.lasts_h
    if lasts_h is None:
        return held
    return f"{held}; without any PACS the disk would do for {span_of(lasts_h * HOUR_MS)} at the busiest time seen"


def _print_engines(output: Output, now: Situation) -> None:
    if now.engines:
        output.line()
    output.table(
        [Column("engine"), Column("serves"), Column("results"), Column("by"), Column("on, or why not")],
        [
            (
                key,
                "yes" if fact["serves"] else "NO",
                "sent" if fact["publish"] else "shadow",
                run_by(fact.get("runtime", ""), fact.get("plan_sha256", "")),
                fact["reason"] or fact.get("device", ""),
            )
            for key, fact in now.engines.items()
        ],
    )


def _print_owed(output: Output, config: Config, now: Situation) -> None:
    backlogs = plan(config, now)
    if backlogs:
        output.line()
    output.table(
        [
            Column("destination"),
            Column("state"),
            Column("owed", right=True),
            Column("results", right=True),
            Column("size", right=True),
            Column("oldest waits", right=True),
            Column("takes", right=True),
            Column("held", right=True),
        ],
        [_owed_row(one, now) for one in backlogs],
    )


def _owed_row(one: Backlog, now: Situation) -> tuple[object, ...]:
    lane, held = now.lanes.get(one.destination, {}), sum(some.objects for some in one.held)
    return (
        one.destination,
        lane.get("state", "not running"),
        one.objects,
        one.results,
        size_of(one.bytes) if one.objects else "",
        span_of(one.oldest_ms) if one.oldest_ms is not None else "",
        span_of(one.drains_s * 1000) if one.drains_s is not None else "not measured" if one.objects else "",
        held,
    )
