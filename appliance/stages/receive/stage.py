"""Keeping what is stored: one data set at a time into the spool, and from there, durable, into the journal."""

import threading
from collections import Counter
from collections.abc import Sequence

from appliance.dimse.command import Command
from appliance.dimse.header import read_header_fd
from appliance.dimse.services import Caller, Context, Sink
from appliance.disk import refusal
from appliance.errors import DataSetRefused, OutOfResources, StoreFailed
from appliance.file_head import file_head, make_seal
from appliance.journal import inbox
from appliance.journal.inbox import Recorded
from appliance.model import Arrival, Header
from appliance.spool import Incoming
from appliance.stages.receive.closer import Closer
from appliance.stages.receive.context import Inbox
from appliance.stages.receive.courtesy import BULK_FROM, WINDOW, Courtesy
from appliance.stages.receive.recorder import Recorder
from appliance.stages.receive.rejections import Rejections
from appliance.stages.receive.traffic import Traffic

DATA_SET_DOES_NOT_MATCH = 0xA900
SUCCESS = 0x0000
CHECK_ROOM_EVERY = 8 << 20  # bytes of one data set


class _DataSet:
    """One data set on its way into the spool."""

    def __init__(self, receiver: "Receiver", caller: Caller, context: Context, request: Command) -> None:
        self._receiver, self._caller, self._context, self._request = receiver, caller, context, request
        self._file = receiver.open_file(caller, context, request)
        receiver.traffic.begin(self, caller.calling_ae, receiver.tick())
        self._checked = self._paused = 0  # bytes that were there then
        self._may_be_recorded = False

    def write(self, views: Sequence[memoryview]) -> None:
        self._file.write(views)
        if self._file.size - self._checked >= CHECK_ROOM_EVERY:  # one endless data set must not eat the reserve
            self._receiver.check_room()
            self._checked = self._file.size
        if self._file.size > BULK_FROM and self._file.size - self._paused >= WINDOW:
            self._receiver.courtesy.let_pass()
            self._paused = self._file.size

    def finish(self) -> int:
        with self._receiver.courtesy.committing():
            return self._keep()

    def _keep(self) -> int:
        if not self._file.size:
            raise DataSetRefused(DATA_SET_DOES_NOT_MATCH, "the data set is empty")
        header = self._header()
        _check(header, self._request)
        self._file.seal(make_seal(self._file.size, self._file.digest))
        self._file.finish()
        recorded = self._record(header)
        self._receiver.check_sound()  # what failed meanwhile may have been a sync that this one's relied on
        self._receiver.traffic.arrived(self)
        if recorded.redundant:
            self._file.discard()
        return SUCCESS

    def _header(self) -> Header:
        self._file.check_there()
        try:
            return read_header_fd(self._file.fd, self._file.data_set_offset, self._context.transfer_syntax)
        except OSError as error:
            raise refusal(error, f"cannot read {self._file.name} back") from error

    def _record(self, header: Header) -> Recorded:
        """A commit that failed may still be found in the WAL by the next start: then the file must be there, too."""
        self._may_be_recorded = True
        try:
            return self._receiver.recorder.record(self._arrival(header))
        except OutOfResources:
            self._may_be_recorded = False  # rolled back
            raise

    def discard(self) -> None:
        self._receiver.turned_away(self._caller, self)
        if not self._may_be_recorded:
            self._file.discard()

    def _arrival(self, header: Header) -> Arrival:
        return Arrival(
            sop_class_uid=self._request.sop_class_uid,
            sop_instance_uid=self._request.sop_instance_uid,
            transfer_syntax_uid=self._context.transfer_syntax,
            digest=self._file.digest,
            size=self._file.size,
            file=self._file.name,
            calling_ae=self._caller.calling_ae,
            called_ae=self._caller.called_ae,
            peer=self._caller.address,
            association=self._caller.number,
            header=header,
        )


def _check(header: Header, request: Command) -> None:
    """Refuse what says of itself that it is something else: stored so, it could not be delivered (PS3.4 B.2.3)."""
    if header.sop_class_uid and header.sop_class_uid != request.sop_class_uid:
        raise DataSetRefused(DATA_SET_DOES_NOT_MATCH, "SOP Class UID differs from the command's")
    if header.sop_instance_uid and header.sop_instance_uid != request.sop_instance_uid:
        raise DataSetRefused(DATA_SET_DOES_NOT_MATCH, "SOP Instance UID differs from the command's")


class Receiver:
    """Keeps what is stored; hears of associations. Both called from many threads."""

    def __init__(self, box: Inbox, *, proven: bool = True) -> None:
        """With `proven` False nothing is taken until `proven` is set, even if somebody removes the latch."""
        self._box = box
        self._lock = threading.Lock()
        self._open: Counter[str] = Counter()
        self.fatal = threading.Event()  #: a write or sync failed: the process must end
        self.proven = threading.Event()  #: the disk takes and keeps what is written, and has been swept
        if proven:
            self.proven.set()
        self.rejections = Rejections(box.log)
        self.traffic = Traffic()
        self.courtesy = Courtesy()
        self.tick = box.journal.clock.tick
        self.closer = Closer(box, self.traffic)
        self.recorder = Recorder(box, self._recorded)

    def begin(self, caller: Caller, context: Context, request: Command) -> Sink:
        try:
            self.check_room()
            return _DataSet(self, caller, context, request)
        except OutOfResources:
            self.turned_away(caller)
            raise

    def turned_away(self, caller: Caller, data_set: object = None) -> None:
        """A data set did not get through: its series is not complete, however silent it is now."""
        self.traffic.failed(data_set, caller.calling_ae, self.tick())
        self.closer.look()

    def check_room(self) -> None:
        """Raises OutOfResources, and StoreFailed when not even that can be told."""
        self.check_sound()
        if not self.proven.is_set():
            raise OutOfResources("the store has failed, and is not proved yet")
        self._box.spool.check_room()

    def check_trusted(self) -> None:
        """Whether anything may be promised or taken down now. Raises OutOfResources."""
        self.check_sound()
        if not self.proven.is_set() or self._box.spool.latched():
            raise OutOfResources("the store has failed, and is not proved yet")

    def check_sound(self) -> None:
        """A failed write or sync is final: from then on nothing is acknowledged (P1). Raises OutOfResources."""
        if self.fatal.is_set():
            raise OutOfResources("the store has failed")

    def failed(self, reason: str) -> None:
        self.fatal.set()
        self._box.spool.latch(reason)
        self._box.log("store_failed", reason=reason)
        self._box.ring("forward", "analyse")  # they stop, too
        self._box.fatal()

    def open_file(self, caller: Caller, context: Context, request: Command) -> Incoming:
        head = file_head(request.sop_class_uid, request.sop_instance_uid, context.transfer_syntax, caller.calling_ae)
        with self._lock:
            return self._box.spool.begin(head)

    def opened(self, caller: Caller) -> None:
        with self._lock:
            self._open[caller.calling_ae] += 1

    def ended(self, caller: Caller, *, stored: int, in_order: bool, reason: str) -> None:
        with self._lock:
            self._open[caller.calling_ae] -= 1
            others_open = self._open[caller.calling_ae] > 0
        self._box.log(
            "association_ended", calling_ae=caller.calling_ae, stored=stored, in_order=in_order, reason=reason
        )
        if not (stored or in_order):
            return  # what brought nothing interrupted nothing
        try:
            inbox.association_ended(self._box.journal, caller.calling_ae, in_order=in_order, others_open=others_open)
        except OutOfResources as error:
            self._box.log("journal_full", reason=str(error))
        except StoreFailed as error:
            self.failed(str(error))
        self._box.ring("analyse")

    def rejected(self, calling_ae: str, address: str, reason: str) -> None:
        self.rejections.tell(self.tick(), calling_ae=calling_ae, address=address, reason=reason)

    def _recorded(self) -> None:
        self.closer.look()
        self._box.ring("forward")
