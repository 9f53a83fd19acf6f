"""What an HTTP server's answers to STOW-RS mean for a delivery (PS3.18 10.5.3, PS3.18 Annex I). No socket here.

Nothing a server says in words is passed on: it may name the patient (P10).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from appliance.destinations.dimse import Rule, judge
from appliance.errors import DeliveryError, DestinationRefused, ObjectRefused, TransientDeliveryError

LONGEST_ANSWER = 1 << 20  # bytes that are read of one
MOST_REST_S = 3600.0  # that a server may have us wait with Retry-After
_JSON = ("application/dicom+json", "application/json", "")  # Orthanc 1.10 names none where it refuses

_REFERENCED, _FAILED = "00081199", "00081198"  # Referenced and Failed SOP Sequence
_INSTANCE, _WARNING, _FAILURE = "00081155", "00081196", "00081197"

# RFC 9110 and PS3.18 Table 10.5.3-1; the first rule that fits holds. `error` None: the body says of each object what
# became of it. What speaks neither against the object nor against us may pass.
RULES = (
    Rule(200, 299, None, ""),
    Rule(300, 399, DestinationRefused, "points elsewhere, and we follow nobody: set that address"),
    Rule(401, 401, DestinationRefused, "wants other credentials: look at the token"),
    Rule(403, 403, DestinationRefused, "does not let us: look at the token or certificate"),
    Rule(404, 405, DestinationRefused, "takes no DICOM instances at this address"),
    Rule(406, 406, DestinationRefused, "cannot answer in DICOM JSON"),
    Rule(407, 407, DestinationRefused, "is a proxy that wants credentials"),
    Rule(408, 408, TransientDeliveryError, "waited too long for us"),
    Rule(409, 409, ObjectRefused, "did not store it"),
    Rule(410, 411, DestinationRefused, "takes no DICOM instances at this address"),
    Rule(413, 413, ObjectRefused, "takes nothing so large"),
    Rule(415, 415, ObjectRefused, "does not take its transfer syntax, or no single instances"),
    Rule(422, 422, ObjectRefused, "cannot process it"),
    Rule(421, 425, TransientDeliveryError, "does not take it now"),
    Rule(429, 429, TransientDeliveryError, "has too much to do"),
    Rule(400, 499, ObjectRefused, "refused it"),
    Rule(501, 501, DestinationRefused, "takes no DICOM instances"),
    Rule(503, 503, TransientDeliveryError, "is not available now"),
    Rule(505, 505, DestinationRefused, "does not speak our HTTP"),
    Rule(507, 507, TransientDeliveryError, "has no room left"),
    Rule(511, 511, DestinationRefused, "is a network that wants somebody to log in"),
    Rule(500, 599, TransientDeliveryError, "has failed"),
    Rule(0, 999, DestinationRefused, "speaks no HTTP that we know"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One, whole, but `body` None: longer than LONGEST_ANSWER."""

    status: int
    headers: Mapping[str, str]  #: names in lower case
    body: bytes | None


def rule_of(status: int) -> Rule:
    return next(rule for rule in RULES if rule.first <= status <= rule.last)


def look(answer: Answer) -> None:
    """What the answer to a query says of the server. Raises DestinationRefused or TransientDeliveryError.

    A server that only stores knows no query.
    """
    rule = rule_of(answer.status)
    if rule.error is None or rule.error is ObjectRefused or answer.status in (404, 405, 406, 410, 411, 501):
        return
    raise rule.error(_words(answer.status, rule), answer.status)


def judged(answer: Answer, sop_instance_uid: str) -> str:
    """The text of a warning, "" for none, where it is stored. Raises what it means that it is not (ports.Session)."""
    rule = rule_of(answer.status)
    said = _Said.of(answer)
    if rule.error is None or answer.status in (400, 409):
        for reason in said.failures(sop_instance_uid):
            raise _failure(reason)
    if rule.error is not None:
        raise rule.error(_words(answer.status, rule), answer.status)
    warnings = said.warnings(sop_instance_uid)
    if warnings is None:
        raise DestinationRefused(
            f"HTTP {answer.status}, but the answer does not say that the object is stored: is this a DICOMweb server?",
            answer.status,
        )
    return f"0x{warnings:04X} {_meaning(warnings)}" if warnings else ""


def rest_s(answer: Answer) -> float:
    """Seconds that the server asks us to wait (Retry-After, RFC 9110 10.2.3). A date counts from the server's own."""
    if rule_of(answer.status).error is not TransientDeliveryError:
        return 0.0
    asked = answer.headers.get("retry-after", "").strip()
    if asked.isascii() and asked.isdigit() and len(asked) < 10:
        return min(float(asked), MOST_REST_S)
    until, now = _date(asked), _date(answer.headers.get("date", ""))
    if until is None or now is None:
        return 0.0
    return max(0.0, min((until - now).total_seconds(), MOST_REST_S))


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text[:64])
    except (ValueError, TypeError, IndexError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _words(status: int, rule: Rule) -> str:
    return f"HTTP {status}: the server {rule.meaning}"


def _failure(reason: int) -> DeliveryError:
    """Failure reasons are C-STORE statuses (PS3.18 Table 10.5.3-3); an object in that list is not stored."""
    rule = judge(reason)
    kind = rule.error or ObjectRefused
    return kind(f"0x{reason:04X} {rule.meaning if rule.error and rule.meaning else 'not stored'}", reason)


def _meaning(reason: int) -> str:
    rule = judge(reason)
    return rule.meaning if rule.error is None and rule.meaning else "stored, with a warning"


@dataclass(frozen=True, slots=True)
class _Said:
    """The Store Instances Response Module (PS3.18 Annex I.2) of an answer, as far as it can be read."""

    module: Mapping[str, Any]

    @staticmethod
    def of(answer: Answer) -> "_Said":
        kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        if answer.body is None or kind not in _JSON:
            return _Said({})
        try:
            read = json.loads(answer.body)
        except (ValueError, RecursionError):
            return _Said({})
        if isinstance(read, list) and len(read) == 1:
            read = read[0]
        return _Said(read if isinstance(read, dict) else {})

    def failures(self, sop_instance_uid: str) -> Iterator[int]:
        """Reasons; 0x0110 where none is given. One object was sent: an entry without a UID is about it, too."""
        for item in self._items(_FAILED):
            if _value(item, _INSTANCE) in (sop_instance_uid, None):
                yield _status(item, _FAILURE) or 0x0110

    def warnings(self, sop_instance_uid: str) -> int | None:
        """0: stored, without; None: it does not say that it is stored."""
        for item in self._items(_REFERENCED):
            if _value(item, _INSTANCE) == sop_instance_uid:
                return _status(item, _WARNING)
        return None

    def _items(self, tag: str) -> Iterator[Mapping[str, Any]]:
        element = self.module.get(tag)
        values = element.get("Value") if isinstance(element, dict) else None
        yield from (item for item in (values if isinstance(values, list) else ()) if isinstance(item, dict))


def _value(item: Mapping[str, Any], tag: str) -> object:
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values[0] if isinstance(values, list) and values else None


def _status(item: Mapping[str, Any], tag: str) -> int:
    value = _value(item, tag)
    return value if isinstance(value, int) and 0 < value <= 0xFFFF else 0
