"""A DICOM node as a destination: C-STORE, and what each answer means for a delivery."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from appliance.destinations.acquaintance import Acquaintance
from appliance.destinations.reencoding import Line, Reencoder
from appliance.dimse.association import MAX_CONTEXTS
from appliance.dimse.header import Part10, part10
from appliance.dimse.pieces import unreadable
from appliance.dimse.requestor import VERIFICATION_PAIR, Pair, RequestedAssociation, connect
from appliance.dimse.wire import Target
from appliance.errors import AnswerLate, DeliveryError, DestinationRefused, ObjectRefused, TransientDeliveryError
from appliance.model import Sent
from appliance.ports import Outgoing, Turn, at_once


@dataclass(frozen=True, slots=True)
class Rule:
    """What C-STORE statuses from `first` to `last` mean. `error` None: delivered."""

    first: int
    last: int
    error: type[DeliveryError] | None
    meaning: str


# PS3.4 Table B.2-1 and PS3.7 Annex C; the first rule that fits holds. Where the standard leaves open whether a failure
# passes, it is transient only if nothing in it speaks against the object.
RULES = (
    Rule(0x0000, 0x0000, None, ""),
    Rule(0x0001, 0x0001, None, "stored, with attributes the destination does not support"),
    Rule(0x0107, 0x0107, None, "stored, with an attribute list error"),
    Rule(0x0110, 0x0110, TransientDeliveryError, "processing failure"),
    Rule(0x0116, 0x0116, None, "stored, with an attribute value out of range"),
    # Not a C-STORE status, but used for "I have this UID". It does not prove that those are our bytes: a person looks.
    Rule(0x0111, 0x0111, ObjectRefused, "duplicate SOP instance"),
    Rule(0x0117, 0x0117, ObjectRefused, "invalid SOP instance"),
    Rule(0x0122, 0x0122, ObjectRefused, "SOP class not supported"),
    Rule(0x0124, 0x0124, DestinationRefused, "not authorised"),
    Rule(0x0210, 0x0210, TransientDeliveryError, "duplicate invocation"),
    Rule(0x0211, 0x0211, DestinationRefused, "no storage service at this address"),
    Rule(0x0212, 0x0212, ObjectRefused, "mistyped argument"),
    Rule(0x0213, 0x0213, TransientDeliveryError, "resource limitation"),
    Rule(0xA700, 0xA7FF, TransientDeliveryError, "out of resources"),
    Rule(0xA900, 0xA9FF, ObjectRefused, "data set does not match its SOP class"),
    Rule(0xB000, 0xB000, None, "stored, with data elements coerced"),
    Rule(0xB006, 0xB006, None, "stored, with elements discarded"),
    Rule(0xB007, 0xB007, None, "stored, though the data set does not match its SOP class"),
    Rule(0xB000, 0xBFFF, None, "stored, with a warning"),
    Rule(0xC000, 0xCFFF, ObjectRefused, "cannot understand the data set"),
    Rule(0xFE00, 0xFE00, TransientDeliveryError, "cancelled by the destination"),
    Rule(0xFF00, 0xFFFF, TransientDeliveryError, "pending, which is no answer to C-STORE"),
    Rule(0x0000, 0xFFFF, ObjectRefused, "refused"),
)


def judge(status: int) -> Rule:
    return next(rule for rule in RULES if rule.first <= status <= rule.last)


class DimseNode:
    """A ports.Destination: a DICOM application entity that takes C-STORE."""

    def __init__(self, target: Target, reencoder: Reencoder | None = None) -> None:
        """`reencoder`: has what it need not, or cannot, take as it is stored; None: all is sent as it is stored."""
        self._target, self._reencoder = target, reencoder
        self._once_taken: set[Pair] = set()
        self._known = Acquaintance(target.timeout_s)

    def open(self, items: Sequence[Outgoing]) -> "DimseSession":
        """Propose what the items need, as far as MAX_CONTEXTS go; the first items count most. And Verification: a node
        that takes not even that takes nothing just now, as while it starts.
        """
        pairs = list(dict.fromkeys((item.sop_class_uid, item.transfer_syntax_uid) for item in items))
        stored = pairs[: MAX_CONTEXTS - 1]
        if self._reencoder is not None:
            pairs = list(dict.fromkeys([*stored, *self._reencoder.pairs(stored)]))
        proposed = frozenset(pairs[: MAX_CONTEXTS - 1])
        target = replace(self._target, answer_s=self._known.answer_s, bytes_s=self._known.bytes_s)
        association = connect(target, [*pairs[: MAX_CONTEXTS - 1], VERIFICATION_PAIR])
        if self._takes_nothing_now(proposed, association.taken):
            association.release()
            raise DestinationRefused("no presentation context was accepted")
        self._once_taken |= proposed & association.taken
        return DimseSession(association, frozenset(stored), self._known, self._reencoder)

    def _takes_nothing_now(self, proposed: frozenset[Pair], taken: frozenset[Pair]) -> bool:
        """Whether a refusal says something of the node; what it never took while it takes others is the object's."""
        if not proposed or proposed & taken:
            return False
        return not taken or bool(proposed & self._once_taken)

    def probe(self) -> None:
        """C-ECHO. A node that takes the association but no C-ECHO counts as well."""
        with connect(self._target, [VERIFICATION_PAIR]) as association:
            if association.accepted(*VERIFICATION_PAIR) and (status := association.echo().status):
                raise TransientDeliveryError(f"C-ECHO answered 0x{status:04X}", status)


class DimseSession:
    """A ports.Session: one association."""

    def __init__(
        self,
        association: RequestedAssociation,
        proposed: frozenset[Pair],
        known: Acquaintance,
        reencoder: Reencoder | None = None,
    ) -> None:
        self._association = association
        self._proposed = proposed
        self._known = known
        self._reencoder = reencoder
        self._ahead: Part10 | None = None
        self.sent: Sent | None = None  #: see ports.RecodingSession
        if reencoder is not None:
            reencoder.opened()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reencoder is not None:
            self._reencoder.closed()
        self._association.__exit__(kind, error, trace)

    @property
    def alive(self) -> bool:
        return self._association.is_there()

    @property
    def bytes_s(self) -> float:
        return self._association.bytes_s

    @property
    def round_trip_s(self) -> float:
        return self._association.round_trip_s

    @property
    def held_back(self) -> bool | None:
        return self._association.held_back

    def send(self, item: Outgoing, path: Path, turn: Turn = at_once) -> str:
        """See ports.Session. The peer's error comment stays out of the texts: it may name the patient (P10)."""
        self.sent = None
        if (item.sop_class_uid, item.transfer_syntax_uid) not in self._proposed:
            raise TransientDeliveryError("not proposed in this association")
        ahead, self._ahead = self._ahead, None
        stored = _checked(item, ahead if ahead is not None and ahead.path == path else _read(path))
        if self._reencoder is None or not self.alive:
            return self._store(stored, turn)
        with self._reencoder.outgoing(stored, self._line) as outgoing:
            try:
                text = self._store(outgoing, turn)
            except ObjectRefused:
                if outgoing is stored or not self._association.accepted(item.sop_class_uid, item.transfer_syntax_uid):
                    raise
                self._reencoder.unwelcome(stored)
                return self._store(stored, turn)
        if outgoing is not stored:
            self.sent = Sent(transfer_syntax_uid=outgoing.transfer_syntax_uid, size=outgoing.size)
        return text

    @property
    def weighs_line(self) -> bool:
        """See ports.RecodingSession."""
        return self._reencoder is not None and self._reencoder.compresses and not self.bytes_s

    def prepare(self, item: Outgoing, path: Path) -> None:
        """See ports.RecodingSession."""
        if (item.sop_class_uid, item.transfer_syntax_uid) not in self._proposed:
            return
        with suppress(ObjectRefused, TransientDeliveryError):  # `send` says so, if it comes to that
            self._ahead = _checked(item, _read(path))
            if self._reencoder is not None and self._reencoder.may_begin(self.bytes_s):
                self._reencoder.prepare(self._ahead, self._line)

    @property
    def _line(self) -> Line:
        return Line(taken=self._association.taken, bytes_s=self.bytes_s)

    def _store(self, stored: Part10, turn: Turn) -> str:
        try:
            status = self._association.store(stored, turn).status
        except AnswerLate:
            self._known.answered(self.bytes_s, late=True)
            raise
        self._known.answered(self.bytes_s, late=False)
        rule = judge(status)
        text = f"0x{status:04X} {rule.meaning}" if status else ""
        if rule.error is not None:
            raise rule.error(text, status)
        return text


def _read(path: Path) -> Part10:
    try:
        return part10(path)
    except (OSError, ValueError) as error:
        raise unreadable(error) from error


def _checked(item: Outgoing, stored: Part10) -> Part10:
    identity = (item.sop_class_uid, item.sop_instance_uid, item.transfer_syntax_uid)
    if identity != (stored.sop_class_uid, stored.sop_instance_uid, stored.transfer_syntax_uid):
        raise ObjectRefused("stored file holds another object")
    return stored
