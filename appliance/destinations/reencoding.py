"""Objects in another transfer syntax than they are stored in, as a rule of the destination allows: losslessly
compressed where its line is thin, decoded where it takes nothing compressed. Only without loss, unless the config says
so in words; and compared before anything is sent (see imaging.transcode).

Thin is measured: an image is compressed where the bytes that saves take longer than compressing it does.
"""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from appliance.destinations.reencoding_rules import PLAIN, Choice, Rules, Speed
from appliance.dimse.header import Part10, part10, read_header
from appliance.dimse.requestor import Pair
from appliance.errors import CannotRecode, ObjectRefused, OutOfResources, RuntimeFailed, TransientDeliveryError
from appliance.ports import Recoded, Recoder, Recoding

LEAST = 1 << 15  #: bytes below which nothing is compressed
QUICKEST_BYTES_S = 50e6  #: no codec here is much quicker; a line that is, is not tried
MOST_SAVED = 0.75  # of an image's bytes, by compressing it
MOST_SERIES = 64  # whose choice is remembered
MOST_AHEAD = 8  # jobs
MOST_DECODED, EXPANSION, ROOM = 1 << 30, 20, 64 << 20  # bytes of a decoded object: by its stored size, and at least
LATE_S = 3600.0  # beyond all deadlines of the recoder


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """Where and by whom objects are re-encoded."""

    recoder: Recoder
    folder: Path  #: there are only our files in it
    check_scratch: Callable[[int], None]  #: raises OutOfResources where so many bytes have no room now


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What is known of an association."""

    taken: frozenset[Pair]
    bytes_s: float  #: 0: not known


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """Under way, or done."""

    wanted: Recoding
    future: Future[Recoded]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """What came of it on one image."""

    needs_s: float  #: of the line and the codec's processor, at work at the same time; the clock may catch a stall
    job: _Job
    made: Recoded


class Reencoder:
    """One destination's. Used by all of its sessions."""

    def __init__(self, rules: Rules, workshop: Workshop) -> None:
        self._rules, self._shop = rules, workshop
        self._lock = threading.Lock()
        self._choices: OrderedDict[str, Choice] = OrderedDict()
        self._ahead: OrderedDict[tuple[str, str], _Job] = OrderedDict()
        self._speeds: dict[str, Speed] = {}  # by transfer syntax
        self._numbers = itertools.count()
        self._sessions = 0
        self._bytes_s = 0.0  # of one session, lately
        self.busy = False  #: the last object was re-encoded

    def pairs(self, stored: Iterable[Pair]) -> list[Pair]:
        """What to propose beside what is stored."""
        more: list[Pair] = []
        for sop_class, syntax in stored:
            if self._rules.may_compress(sop_class, syntax):
                more += [(sop_class, one) for one in self._rules.compress]
            if self._rules.may_decode(syntax):
                more += [(sop_class, one) for one in PLAIN]
        return more

    @property
    def compresses(self) -> bool:
        """Where the line is thin."""
        return bool(self._rules.compress)

    def opened(self) -> None:
        with self._lock:
            self._sessions += 1

    def closed(self) -> None:
        with self._lock:
            self._sessions -= 1
            left = [] if self._sessions else list(self._ahead.values())
            if left:
                self._ahead.clear()
        for job in left:
            self._drop(job)

    def may_begin(self, bytes_s: float) -> bool:
        """Whether `prepare` may find something to do; where a line is quick, even a look costs something."""
        return self.busy or (self.compresses and 0 < self._line_bytes_s(bytes_s) < QUICKEST_BYTES_S)

    def prepare(self, stored: Part10, line: Line) -> None:
        """Begin with it in what it is likely to go in, or with what will be tried on it for certain."""
        for syntax in self._likely(stored, line):
            key = (str(stored.path), syntax)
            with self._lock:
                if key in self._ahead:
                    continue
            with suppress(OutOfResources):
                job = self._begin(stored, syntax)
                with self._lock:
                    twice = key in self._ahead
                    old = [] if twice else self._put_ahead(key, job)
                for one in [job] if twice else old:
                    self._drop(one)

    def _put_ahead(self, key: tuple[str, str], job: _Job) -> list[_Job]:
        self._ahead[key] = job
        return [self._ahead.popitem(last=False)[1] for _ in range(len(self._ahead) - MOST_AHEAD)]

    def _likely(self, stored: Part10, line: Line) -> Sequence[str]:
        pair = (stored.sop_class_uid, stored.transfer_syntax_uid)
        if pair not in line.taken:
            plain = self._plain(stored, line) if self._rules.may_decode(stored.transfer_syntax_uid) else ""
            return [plain] if plain else []
        bytes_s = self._line_bytes_s(line.bytes_s)
        if not self._may_compress(stored, line, bytes_s):
            return []
        choice = self._choices.get(_series(stored))
        if choice is None:
            return self._certain(stored, line, bytes_s)
        syntax = choice.syntax
        return [syntax] if syntax and choice.will_be_due(bytes_s) else []

    def _certain(self, stored: Part10, line: Line, bytes_s: float) -> Sequence[str]:
        """What will be tried on it, whatever comes of the others."""
        likely = [one for one in self._candidates(stored, line) if self._may_win(one, stored.size, bytes_s, None)]
        return [one for one in likely if one not in self._speeds] or likely[:1]

    @contextmanager
    def outgoing(self, stored: Part10, line: Line) -> Iterator[Part10]:
        """What is to be sent for it, in a context that was taken; its scratch file goes afterwards.

        Raises ObjectRefused, TransientDeliveryError, StoreFailed.
        """
        if (stored.sop_class_uid, stored.transfer_syntax_uid) in line.taken:
            job = self._compressed(stored, line)
        else:
            job = self._decoded(stored, line)
        self.busy = job is not None
        try:
            yield stored if job is None else part10(job.wanted.target)
        finally:
            if job is not None:
                self._drop(job)
            self._forget(stored)

    def _decoded(self, stored: Part10, line: Line) -> _Job | None:
        """None: nothing can be done, or is known how to be done; the association says what is the matter."""
        syntax = stored.transfer_syntax_uid
        plain = self._plain(stored, line)
        if not self._rules.may_decode(syntax):
            self._rules.refuse(syntax)
            return None
        if not plain:
            return None
        try:
            job = self._take(stored, plain) or self._begin(stored, plain)
            self._wait(stored, job)
        except CannotRecode as error:
            raise ObjectRefused(f"not taken as stored, and cannot be re-encoded: {error}") from error
        except (OutOfResources, RuntimeFailed) as error:
            raise TransientDeliveryError(f"not re-encoded just now: {error}") from error
        return job

    @staticmethod
    def _plain(stored: Part10, line: Line) -> str:
        return next((one for one in PLAIN if (stored.sop_class_uid, one) in line.taken), "")

    def _compressed(self, stored: Part10, line: Line) -> _Job | None:
        bytes_s = self._line_bytes_s(line.bytes_s)
        if not self._may_compress(stored, line, bytes_s):
            return None
        series = _series(stored)
        choice = self._choices.get(series)
        if choice is None:
            return self._tried(stored, line, bytes_s, series)
        syntax = choice.syntax
        if not syntax or not choice.is_due(bytes_s):
            return None
        try:
            job = self._take(stored, syntax) or self._begin(stored, syntax)
            choice.learn(stored.size, self._wait(stored, job))
        except (CannotRecode, OutOfResources, RuntimeFailed) as error:
            choice.failed(counts=isinstance(error, CannotRecode))
            return None
        choice.failures = 0
        return job

    def unwelcome(self, stored: Part10) -> None:
        """The destination takes the transfer syntax, but not what is in it: that series goes as stored."""
        with self._lock:
            self._choices[_series(stored)] = Choice()

    def _may_compress(self, stored: Part10, line: Line, bytes_s: float) -> bool:
        thin = 0 < bytes_s < QUICKEST_BYTES_S
        plain = stored.transfer_syntax_uid in PLAIN and stored.size >= LEAST
        return thin and plain and bool(self._candidates(stored, line))

    def _candidates(self, stored: Part10, line: Line) -> Sequence[str]:
        """The quickest first, and before them those of which that is not known."""
        taken = [one for one in self._rules.compress if (stored.sop_class_uid, one) in line.taken]
        return sorted(taken, key=lambda one: self._speeds[one].s_per_byte if one in self._speeds else 0.0)

    def _tried(self, stored: Part10, line: Line, bytes_s: float, series: str) -> _Job | None:
        """Measure what the destination takes on this image of a new series; returns the best, if that pays."""
        best: _Trial | None = None
        tried = False
        for syntax in self._candidates(stored, line):
            if not self._may_win(syntax, stored.size, bytes_s, None if best is None else best.needs_s):
                self._speeds[syntax].rested += 1
                continue
            with suppress(OutOfResources):  # for now: another image will tell
                job = self._take(stored, syntax) or self._begin(stored, syntax)
                tried = True
                best = self._better(best, self._measured(stored, job, bytes_s))
        return self._chosen(stored, bytes_s, series, best) if tried else None

    def _measured(self, stored: Part10, job: _Job, bytes_s: float) -> _Trial | None:
        try:
            made = self._wait(stored, job)
        except (CannotRecode, RuntimeFailed):
            return None
        took = made.seconds / stored.size
        self._speeds.setdefault(job.wanted.transfer_syntax_uid, Speed(took)).told(took)
        return _Trial(needs_s=max(made.cpu_s, made.size / bytes_s), job=job, made=made)

    def _better(self, one: _Trial | None, other: _Trial | None) -> _Trial | None:
        if one is None or other is None:
            return one or other
        better, worse = (other, one) if other.needs_s < one.needs_s else (one, other)
        self._drop(worse.job)
        return better

    def _chosen(self, stored: Part10, bytes_s: float, series: str, best: _Trial | None) -> _Job | None:
        choice = Choice.of(best.job.wanted.transfer_syntax_uid, stored.size, best.made) if best else Choice()
        with self._lock:
            if best or series not in self._choices:  # by another session, meanwhile
                self._choices[series] = choice
            while len(self._choices) > MOST_SERIES:
                self._choices.popitem(last=False)
        if best is None:
            return None
        if not choice.pays(bytes_s):
            self._drop(best.job)
            return None
        return best.job

    def _may_win(self, syntax: str, size: int, bytes_s: float, best_s: float | None) -> bool:
        """By how quick it was the last time: trying each on each film would cost more than it brings."""
        speed, most = self._speeds.get(syntax), MOST_SAVED / bytes_s
        return speed is None or speed.may_be_below(most if best_s is None else min(most, best_s / size))

    def _line_bytes_s(self, bytes_s: float) -> float:
        """What the destination's line carries, in all associations; `bytes_s`: in one, 0: not known."""
        with self._lock:
            self._bytes_s = bytes_s or self._bytes_s
            return self._bytes_s * max(1, self._sessions)

    def _take(self, stored: Part10, syntax: str) -> _Job | None:
        with self._lock:
            return self._ahead.pop((str(stored.path), syntax), None)

    def _forget(self, stored: Part10) -> None:
        """What was begun with it and is not what it goes in."""
        with self._lock:
            names = [key for key in self._ahead if key[0] == str(stored.path)]
            left = [self._ahead.pop(key) for key in names]
        for job in left:
            self._drop(job)

    def _begin(self, stored: Part10, syntax: str) -> _Job:
        decoded = min(max(EXPANSION * stored.size, ROOM), MOST_DECODED)
        most = decoded if syntax in PLAIN else stored.size
        self._shop.check_scratch(most)
        try:
            self._shop.folder.mkdir(parents=True, mode=0o750, exist_ok=True)
        except OSError as error:
            raise OutOfResources(f"no folder to re-encode in: {error.strerror}") from error
        target = self._shop.folder / f"{next(self._numbers)}.dcm"
        wanted = Recoding(source=stored.path, target=target, transfer_syntax_uid=syntax, most=most)
        return _Job(wanted=wanted, future=self._shop.recoder.recode(wanted))

    def _wait(self, stored: Part10, job: _Job) -> Recoded:
        """Until it is there, and is what was wanted: the child has seen what strangers sent."""
        try:
            made = job.future.result(LATE_S)
            found = part10(job.wanted.target)
        except (CannotRecode, RuntimeFailed, OutOfResources):
            self._drop(job)
            raise
        except (OSError, ValueError) as error:
            self._drop(job)
            raise CannotRecode("the re-encoder made no DICOM file") from error
        wanted = (stored.sop_class_uid, stored.sop_instance_uid, job.wanted.transfer_syntax_uid)
        if (found.sop_class_uid, found.sop_instance_uid, found.transfer_syntax_uid) != wanted:
            self._drop(job)
            raise CannotRecode("the re-encoder made another object")
        return made

    @staticmethod
    def _drop(job: _Job) -> None:
        """Nobody needs it (any more)."""

        def remove(_: object) -> None:
            with suppress(OSError):
                job.wanted.target.unlink(missing_ok=True)

        job.future.cancel()
        job.future.add_done_callback(remove)


def _series(stored: Part10) -> str:
    """By its own header; "" where that cannot be read: all those are one series."""
    with suppress(OSError):
        return read_header(stored.path, stored.data_set_offset, stored.transfer_syntax_uid).series_instance_uid
    return ""
