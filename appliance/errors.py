"""Every error of ours, and what its catcher should do.

ScansideError
├── ConfigError                 the config file is wrong: show all messages, exit 2
├── IllegalTransition           a bug of ours: nothing was changed
├── StoreFailed                 a write or fsync failed: no ack, latch, exit (P1)
├── OutOfResources              too little space, inodes or slots: 0xA700, try again later (P5)
├── RemoteProtocolError         the peer broke the protocol: A-ABORT, that association ends
├── DataSetRefused              one object cannot be taken: answer its status, go on
├── DeliveryError               one object did not reach one destination
│   ├── TransientDeliveryError      again, backed off, for ever
│   ├── ObjectRefused               will not succeed by itself: held
│   └── DestinationRefused          the lane suspends, probes and resumes; no delivery changes state
├── CertificateUnusable         a certificate or key of ours cannot be used: no connection without it
├── PackageInvalid              an engine package is not what its manifest says: not loaded
├── PlanRefused                 a plan on the disk is not for this machine, or not whole: built again
├── EngineRefused               a release of an engine may not do what was asked: nothing was changed
├── CannotAnalyse               an engine cannot take this input: "not analysed: reason"
├── CannotRecode                an object cannot be had in another transfer syntax: as stored, or held
└── RuntimeFailed               the runtime child failed or was killed at its deadline
    └── RuntimeCancelled            the caller withdrew the question: says nothing of the engine
"""


class ScansideError(Exception):
    """Base of every error this project raises on purpose."""


class ConfigError(ScansideError):
    """The configuration is wrong; `messages` holds every error found, one line each."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__("\n".join(messages))
        self.messages = messages


class IllegalTransition(ScansideError):
    """A state machine was asked for a step its table does not have; nothing happened."""


class StoreFailed(ScansideError):
    """A write or fsync failed. Never retried: the kernel may have dropped the pages."""


class OutOfResources(ScansideError):
    """Short of space, inodes, memory or slots: refuse with 0xA700 before accepting."""


class RemoteProtocolError(ScansideError):
    """The peer broke PS3.7 or PS3.8; the association is aborted."""


class DataSetRefused(ScansideError):
    """One object cannot be taken; `status` is the C-STORE status to answer (PS3.4 Table B.2-1)."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class DeliveryError(ScansideError):
    """One object did not reach one destination; `status` is the DIMSE status, if one came."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


class TransientDeliveryError(DeliveryError):
    """May succeed later by itself: try again, backed off, for ever."""


class AssociationDenied(TransientDeliveryError):
    """The destination takes no association now, and says so: it may be one too many."""


class AnswerLate(TransientDeliveryError):
    """All was sent, and no answer came in time: the destination may have taken it."""


class ObjectRefused(DeliveryError):
    """The destination will not take this object, however often it is sent: hold it."""


class DestinationRefused(DeliveryError):
    """The destination takes nothing from us (AE title, certificate, port): suspend the lane and probe."""


class CertificateUnusable(ScansideError):
    """A certificate or key file of ours is no use; `part` is certificate, key or ca. The text quotes no key."""

    def __init__(self, part: str, reason: str) -> None:
        super().__init__(reason)
        self.part = part


class PackageInvalid(ScansideError):
    """An engine package is incomplete, altered or malformed."""


class PlanRefused(ScansideError):
    """A plan is missing, cut short, altered, or was built for something else: not loaded, but built again."""

    def __init__(self, text: str, key: str = "") -> None:
        """`key`: of the plan that is wanted, where that is known."""
        super().__init__(text)
        self.key = key


class EngineRefused(ScansideError):
    """A release of an engine cannot be had, or may not serve; the text says why, and what to do."""


class CannotAnalyse(ScansideError):
    """An engine cannot take this input; `reason` is a model.Reason value, the text says what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class CannotRecode(ScansideError):
    """An object cannot be re-encoded without loss; another one perhaps can."""


class RuntimeFailed(ScansideError):
    """The runtime child died, hung past its deadline or answered nonsense; `reason` is a model.Reason value."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class RuntimeCancelled(RuntimeFailed):
    """The caller's `cancelled` said yes while the child was at work; the child was killed. Not the engine's fault."""
