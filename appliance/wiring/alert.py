"""Who is told of what needs somebody, in the forward process."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from appliance.config import Config
from appliance.config import Webhook as WebhookOptions
from appliance.errors import TransientDeliveryError
from appliance.journal.store import Journal
from appliance.life import Life
from appliance.spool import Spool
from appliance.stages.alert import BACKOFF, Alerter, Horn, LaneFacts, Post, latch_message
from appliance.stages.forward import Lane
from appliance.wiring.common import Log

LATCH_PATIENCE_S = 2.0  # a latch that is lifted at once, at a start, is nobody's business
END_S = 1.0


def alerters(config: Config, journal: Journal, lanes: Sequence[Lane], life: Life, log: Log) -> list[Alerter]:
    """One where the configuration names somebody, else none."""
    options = config.alerts.webhook
    if options is None:
        return []

    def facts() -> list[LaneFacts]:
        return [
            LaneFacts(destination=lane.name, state=lane.state, reason=lane.reason, is_owed=bool(lane.desk.coming(1)))
            for lane in lanes
        ]

    horn = Horn(
        journal=journal,
        lanes=facts,
        post=_post(options),
        log=log,
        stopping=life.stopping,
        node=config.node,
        every_s=options.every_s,
    )
    return [Alerter(horn)]


@contextmanager
def latch_told(config: Config, spool: Spool, log: Log) -> Iterator[None]:
    """While the store is latched inside, somebody is told so; once, and nothing waits for it."""
    options = config.alerts.webhook
    if options is None or not spool.latched():
        yield
        return
    over = threading.Event()
    telling = threading.Thread(target=_tell_latch, args=(config.node, options, over, log), name="alert", daemon=True)
    telling.start()
    try:
        yield
    finally:
        over.set()
        telling.join(END_S)


def _tell_latch(node: str, options: WebhookOptions, over: threading.Event, log: Log) -> None:
    failures, wait_s = 0, LATCH_PATIENCE_S
    while not over.wait(wait_s):
        try:
            _post(options)(latch_message(node, datetime.now(UTC).isoformat(timespec="milliseconds")))
        except TransientDeliveryError as error:
            failures += 1
            wait_s = BACKOFF(failures)
            log("alert_not_told", reason=str(error))
        else:
            log("alert_told", latched=True)
            return


def _post(options: WebhookOptions) -> Post:
    from appliance.destinations.webhook import Webhook  # noqa: PLC0415 - OpenSSL takes 6 MB, and most sites have none

    return Webhook(
        url=options.url, secret=options.secret.file, ca=options.ca.file if options.ca is not None else None
    ).post
