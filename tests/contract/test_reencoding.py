"""Objects that a destination does not take as they are stored, or that its line is too thin for: what it gets instead,
by real children, from real files, at DCMTK's storescp. And what files and decoders that misbehave cost: that object.
"""

import os
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from appliance.destinations.dimse import DimseNode, DimseSession
from appliance.destinations.reencoding import MOST_AHEAD, Line, Reencoder, Workshop
from appliance.destinations.reencoding_rules import Rules
from appliance.dimse.header import part10
from appliance.dimse.small_pacs import ScriptedPacs
from appliance.dimse.wire import Target
from appliance.errors import ObjectRefused, OutOfResources, RuntimeFailed, TransientDeliveryError
from appliance.ports import Recoded, Recoder, Recoding, RecodingSession
from appliance.runtimes.recoder import LOSSLESS_SYNTAXES, ChildRecoder, RecoderSettings
from tests.missing import missing
from tests.slices import SERIES, ct_slice, save
from tests.thin_line import ThinLine
from tests.waiting import eventually, listens_at

SMALL = {"memory_mb": 1024, "cpu_s": 10, "deadline_s": 20.0, "reap_s": 2.0}
COMPRESS = Rules(compress=LOSSLESS_SYNTAXES)
THIN = 300_000  # bytes a second


@dataclass(frozen=True, slots=True)
class Item:
    """A stored object, as a destination is told of it."""

    path: Path

    @property
    def sop_class_uid(self) -> str:
        return part10(self.path).sop_class_uid

    @property
    def sop_instance_uid(self) -> str:
        return part10(self.path).sop_instance_uid

    @property
    def transfer_syntax_uid(self) -> str:
        return part10(self.path).transfer_syntax_uid

    @property
    def size(self) -> int:
        return part10(self.path).size


@dataclass
class Place:
    """A storescp, and a node that sends to it by these rules."""

    port: int
    folder: Path
    scratch: Path
    rooms: list[int] = field(default_factory=list)
    full: bool = False

    def node(self, rules: Rules, recoder: Recoder, port: int = 0) -> DimseNode:
        target = Target(host="127.0.0.1", port=port or self.port, calling_ae="SCANSIDE", called_ae="PACS", timeout_s=20)
        return DimseNode(target, self.reencoder(rules, recoder))

    def reencoder(self, rules: Rules, recoder: Recoder) -> Reencoder:
        return Reencoder(rules, Workshop(recoder=recoder, folder=self.scratch, check_scratch=self.room))

    def room(self, size: int) -> None:
        self.rooms.append(size)
        if self.full:
            raise OutOfResources("no room")

    def got(self) -> dict[str, Dataset]:
        return {one.SOPInstanceUID: one for one in map(dcmread, self.folder.iterdir())}


QUICK, SLOW = (0.001, 0.001), (3.0, 3.0)  # seconds by the clock, and of the processor
STALLED = (60.0, 0.001)


@dataclass
class Timed:
    """A re-encoder that does what it is asked at once, and says that it took so long: here no clock decides."""

    recoder: ChildRecoder
    takes: list[tuple[float, float]] = field(default_factory=list)  #: the first ones; all others are QUICK
    asked: list[str] = field(default_factory=list)

    def recode(self, wanted: Recoding) -> Future[Recoded]:
        self.asked.append(wanted.transfer_syntax_uid)
        seconds, cpu_s = self.takes.pop(0) if self.takes else QUICK
        future: Future[Recoded] = Future()
        future.set_result(replace(self.recoder.recode(wanted).result(60), seconds=seconds, cpu_s=cpu_s))
        return future


Start = Callable[..., Place]
Make = Callable[..., ChildRecoder]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A storescp with these options of DCMTK."""
    program = Path("/usr/bin/storescp")
    if not program.exists():
        missing("DCMTK's storescp is not installed")
    with ExitStack() as stack:

        def started(*options: str) -> Place:
            with closing(socket.create_server(("127.0.0.1", 0))) as probe:
                port = probe.getsockname()[1]
            folder = tmp_path / "pacs"
            folder.mkdir()
            command = [str(program), "+B", "+uf", *options, "-od", str(folder), str(port)]
            process = subprocess.Popen(command, env={**os.environ, "TCP_NODELAY": "1"}, stderr=subprocess.DEVNULL)
            stack.callback(process.wait, 10)
            stack.callback(process.terminate)
            eventually(lambda: listens_at(port), 10)
            return Place(port, folder, tmp_path / "scratch" / "pacs")

        yield started


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    recoders: list[ChildRecoder] = []

    def started(text: str = "", **settings: object) -> ChildRecoder:
        interpreter = {"interpreter": shim(tmp_path, text)} if text else {}
        recoders.append(ChildRecoder(RecoderSettings(**{**SMALL, **interpreter, "idle_s": 0.1, **settings})))  # type: ignore[arg-type]
        return recoders[-1]

    yield started
    eventually(lambda: not any(one.pid for one in recoders), 10, "idle children go")
    assert not any((tmp_path / "scratch").rglob("*.dcm"))


def shim(folder: Path, text: str) -> Path:
    """An interpreter that does something before it runs the true program."""
    path = folder / "python"
    start = "import os, runpy, sys, types\nsys.argv = sys.argv[2:]\n"
    path.write_text(f"#!{sys.executable} -I\n{start}{text}\nrunpy.run_path(sys.argv[0], run_name='__main__')\n")
    path.chmod(0o755)
    return path


#: A codec for JPEG-LS that does something else.
FAKE = """
import ctypes, signal
def work(*_, **__):
    {body}
fake = types.ModuleType("jpeg_ls")
fake.__version__ = "9"
fake.decode_pixel_data = fake.decode_buffer = fake.decode = fake.encode_array = fake.encode_buffer = work
fake.encode = fake.encode_pixel_data = work
sys.modules["jpeg_ls"], sys.modules["gdcm"] = fake, None
"""


def image(
    folder: Path, number: int, syntax: UID = ExplicitVRLittleEndian, size: int = 128, series: str = SERIES
) -> Item:
    """Smooth with a little noise, as a CT is."""
    ramp = np.add.outer(np.arange(size), np.arange(size)) * 4 % 4000
    pixels = (ramp + np.random.default_rng(number).integers(0, 32, (size, size))).astype(np.uint16)
    dataset = ct_slice(number, pixels, SeriesInstanceUID=series)
    if syntax in (JPEGLSLossless, JPEG2000Lossless, RLELossless):
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.file_meta.TransferSyntaxUID = syntax
    return Item(save(folder / f"{number}.dcm", dataset))


def send(session: DimseSession, *items: Item) -> list[str]:
    """What each was sent as."""
    sent = []
    for item, coming in zip(items, [*items[1:], None], strict=True):
        assert session.send(item, item.path) == ""
        if coming:
            session.prepare(coming, coming.path)
        sent.append(session.sent.transfer_syntax_uid if session.sent else item.transfer_syntax_uid)
    return sent


def same(stored: Item, found: Dataset) -> None:
    ours = dcmread(stored.path)
    for element in ours:
        if element.keyword != "PixelData" and element.tag.element:
            assert found[element.tag].value == element.value
    assert len(ours) == len(found)
    assert np.array_equal(ours.pixel_array, found.pixel_array)


# What a destination does not take as it is stored.


@pytest.mark.promise("P3")
@pytest.mark.parametrize("option", ["+xi", "+xe"])
def test_what_is_taken_only_uncompressed_arrives_so(tmp_path: Path, start: Start, make: Make, option: str) -> None:
    syntaxes = (
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        JPEGLSLossless,
        JPEG2000Lossless,
        RLELossless,
        DeflatedExplicitVRLittleEndian,
    )
    items = [image(tmp_path, number, syntax) for number, syntax in enumerate(syntaxes)]
    place = start(option)
    with place.node(Rules(), make()).open(items) as session:
        assert isinstance(session, RecodingSession)
        sent = send(session, *items)
    wanted = ImplicitVRLittleEndian if option == "+xi" else ExplicitVRLittleEndian
    taken = {ImplicitVRLittleEndian, *(() if option == "+xi" else (ExplicitVRLittleEndian,))}
    assert sent == [syntax if syntax in taken else wanted for syntax in syntaxes]
    for item in items:
        same(item, place.got()[item.sop_instance_uid])


def test_a_destination_that_takes_all_gets_all_as_it_is(tmp_path: Path, start: Start, make: Make) -> None:
    items = [image(tmp_path, n, syntax) for n, syntax in enumerate((ImplicitVRLittleEndian, JPEGLSLossless))]
    place, recoder = start("+xa"), make()
    with place.node(Rules(), recoder).open(items) as session:
        assert send(session, *items) == [item.transfer_syntax_uid for item in items]
        assert session.sent is None
    assert recoder.pid is None
    assert place.rooms == []


@pytest.mark.parametrize("name", ["SC_rgb_jpeg_dcmtk.dcm", "JPEG2000.dcm", "JPEGLSNearLossless_16.dcm"])
def test_what_was_compressed_with_loss_is_decoded_only_where_the_config_says_so(
    start: Start, make: Make, name: str
) -> None:
    item = Item(Path(get_testdata_file(name, download=False) or ""))
    place, recoder = start("+xi"), make()
    with place.node(Rules(), recoder).open([item]) as session:
        with pytest.raises(ObjectRefused, match="'decode_lossy: true' would have it tried"):
            session.send(item, item.path)
        assert session.alive
    assert recoder.pid is None
    with place.node(Rules(decode_lossy=True), recoder).open([item]) as session:
        assert send(session, item) == [ImplicitVRLittleEndian]
    (found,), stored = place.got().values(), dcmread(item.path)
    assert found.get("LossyImageCompression") == stored.get("LossyImageCompression")
    for one in (stored, found):
        one.pixel_array_options(raw=True)
    assert np.array_equal(found.pixel_array, stored.pixel_array)


def test_where_re_encoding_is_off_the_reason_names_the_key(tmp_path: Path, start: Start, make: Make) -> None:
    item = image(tmp_path, 1, JPEGLSLossless)
    with (
        start("+xi").node(Rules(decode=False), make()).open([item]) as session,
        pytest.raises(ObjectRefused, match="'reencode: true' would have it tried"),
    ):
        session.send(item, item.path)


def test_without_room_it_waits(tmp_path: Path, start: Start, make: Make) -> None:
    item, place = image(tmp_path, 1, JPEGLSLossless), start("+xi")
    place.full = True
    with place.node(Rules(), make()).open([item]) as session:
        with pytest.raises(TransientDeliveryError, match="no room"):
            session.send(item, item.path)
        place.full = False
        assert send(session, item) == [ImplicitVRLittleEndian]


# What its line is too thin for.


@pytest.mark.promise("P3")
@pytest.mark.parametrize(("option", "syntax"), [("+xa", None), ("+xt", JPEGLSLossless), ("+xv", JPEG2000Lossless)])
def test_over_a_thin_line_images_go_compressed(
    tmp_path: Path, start: Start, make: Make, option: str, syntax: UID | None
) -> None:
    items = [image(tmp_path, number, size=256) for number in range(6)]
    place, recoder = start(option), Timed(make())
    with ThinLine(place.port, THIN) as line, place.node(COMPRESS, recoder, line.port).open(items) as session:
        assert session.weighs_line
        sent = send(session, *items)
        assert not session.weighs_line
        assert session.sent is not None
        assert session.sent.size < items[-1].size * 0.7
    assert sent[0] == ExplicitVRLittleEndian  # nothing was measured yet
    assert set(sent[1:]) == {sent[-1]}
    assert sent[-1] == syntax or (syntax is None and sent[-1] in (JPEGLSLossless, JPEG2000Lossless))
    for item in items:
        same(item, place.got()[item.sop_instance_uid])


# What is tried, and when again: on a line of which this much is known.

PLAIN, LS, J2K = ExplicitVRLittleEndian, JPEGLSLossless, JPEG2000Lossless


def line_to(*taken: UID) -> Line:
    return Line(taken=frozenset((str(CTImageStorage), str(one)) for one in (PLAIN, *taken)), bytes_s=THIN)


def carry(reencoder: Reencoder, line: Line, *items: Item) -> list[str]:
    """What each goes as."""
    sent = []
    for item in items:
        with reencoder.outgoing(part10(item.path), line) as outgoing:
            sent.append(outgoing.transfer_syntax_uid)
    return sent


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(0, tmp_path / "pacs", tmp_path / "scratch")


@pytest.mark.parametrize(
    ("stalls", "sent"), [(1, [*[PLAIN] * 3, *[LS] * 6]), (2, [*[PLAIN] * 3, LS, *[PLAIN] * 4, LS])]
)
def test_a_stall_of_the_machine_does_not_settle_it_for_a_series(
    tmp_path: Path, place: Place, make: Make, stalls: int, sent: list[UID]
) -> None:
    items = [image(tmp_path, number) for number in range(len(sent))]
    reencoder = place.reencoder(COMPRESS, Timed(make(), [STALLED] * stalls))
    assert carry(reencoder, line_to(LS), *items) == sent


def test_a_stall_of_the_machine_does_not_decide_between_codecs(tmp_path: Path, place: Place, make: Make) -> None:
    items = [image(tmp_path, number) for number in range(5)]
    reencoder = place.reencoder(COMPRESS, Timed(make(), [STALLED, SLOW]))
    assert carry(reencoder, line_to(LS, J2K), *items) == [*[PLAIN] * 3, LS, LS]


def test_what_is_tried_on_a_new_series_is_begun_before_its_turn(tmp_path: Path, place: Place, make: Make) -> None:
    items = [image(tmp_path, number) for number in range(2)]
    recoder, line = Timed(make()), line_to(LS, J2K)
    reencoder = place.reencoder(COMPRESS, recoder)
    reencoder.prepare(part10(items[0].path), line)
    assert recoder.asked == [LS, J2K]
    reencoder.prepare(part10(items[0].path), line)
    carry(reencoder, line, items[0])
    assert recoder.asked == [LS, J2K]  # and not begun again
    assert list(place.scratch.iterdir()) == []
    reencoder.prepare(part10(items[1].path), line)
    assert len(recoder.asked) == 3  # by now it is known what is best
    carry(reencoder, line, items[1])
    assert len(recoder.asked) == 3


def test_of_another_series_only_the_quickest_is_begun_before_it_is_known_whether_another_may_win(
    tmp_path: Path, place: Place, make: Make
) -> None:
    items = [image(tmp_path, number, series=f"1.2.3.{number}") for number in range(3)]
    recoder, line = Timed(make(), [QUICK, SLOW]), line_to(LS, J2K)
    reencoder = place.reencoder(COMPRESS, recoder)
    reencoder.opened()
    assert carry(reencoder, line, *items[:2]) == [LS, LS]
    assert recoder.asked == [LS, J2K, LS]
    reencoder.prepare(part10(items[2].path), line)
    assert recoder.asked == [LS, J2K, LS, LS]
    reencoder.closed()
    assert list(place.scratch.iterdir()) == []


def test_a_codec_that_was_slow_once_is_passed_over_for_some_series_and_tried_again(
    tmp_path: Path, place: Place, make: Make
) -> None:
    items = [image(tmp_path, number, series=f"1.2.3.{number}") for number in range(12)]
    recoder = Timed(make(), [SLOW, SLOW])
    sent = carry(place.reencoder(COMPRESS, recoder), line_to(LS), *items)
    assert sent == [*[PLAIN] * 8, *[LS] * 4]
    assert len(recoder.asked) == 6  # on the first, on the fourth, and from the ninth on


def test_without_room_it_is_tried_on_the_next_image(tmp_path: Path, place: Place, make: Make) -> None:
    items = [image(tmp_path, number) for number in range(4)]
    reencoder, place.full = place.reencoder(COMPRESS, Timed(make())), True
    assert carry(reencoder, line_to(LS), *items[:2]) == [PLAIN, PLAIN]
    place.full = False
    assert carry(reencoder, line_to(LS), *items[2:]) == [LS, LS]


def test_over_a_quick_line_nothing_is_compressed_and_nobody_is_started(
    tmp_path: Path, start: Start, make: Make
) -> None:
    items = [image(tmp_path, number, size=512) for number in range(12)]
    place, recoder = start("+xa"), make()
    with place.node(COMPRESS, recoder).open(items) as session:
        sent = send(session, *items)
        quick = session.bytes_s > 60e6
    if quick:  # what this machine's loopback is, unless it is very busy
        assert set(sent) == {ExplicitVRLittleEndian}
        assert recoder.pid is None


def test_what_is_no_image_or_compressed_or_small_goes_as_it_is(tmp_path: Path, start: Start, make: Make) -> None:
    report = Item(Path(get_testdata_file("test-SR.dcm", download=False) or ""))
    items = [image(tmp_path, 1, JPEGLSLossless), report, image(tmp_path, 2, size=64), image(tmp_path, 3, RLELossless)]
    place, recoder = start("+xa"), make()
    with ThinLine(place.port, THIN) as line, place.node(COMPRESS, recoder, line.port).open(items) as session:
        assert send(session, *items, *items) == [item.transfer_syntax_uid for item in (*items, *items)]
    assert recoder.pid is None


# What goes wrong.


@pytest.mark.promise("P9")
@pytest.mark.parametrize(
    "body", ["ctypes.string_at(0)", "while True: pass", "signal.pause()", "return b'nonsense'", "bytearray(8 << 30)"]
)
def test_a_decoder_that_misbehaves_costs_that_object(tmp_path: Path, start: Start, make: Make, body: str) -> None:
    bad, good = image(tmp_path, 1, JPEGLSLossless), image(tmp_path, 2, RLELossless)
    recoder = make(FAKE.format(body=body), cpu_s=2, deadline_s=3.0)
    place = start("+xi")
    with place.node(Rules(), recoder).open([bad, good]) as session:
        with pytest.raises(ObjectRefused, match="cannot be re-encoded"):
            session.send(bad, bad.path)
        assert session.alive
        assert send(session, good) == [ImplicitVRLittleEndian]


def test_a_destination_that_cannot_do_with_what_it_takes_gets_it_as_stored(tmp_path: Path, make: Make) -> None:
    items = [image(tmp_path, number) for number in range(3)]
    place = Place(0, tmp_path / "pacs", tmp_path / "scratch")
    with ScriptedPacs(tmp_path / "pacs", [0xC000]) as pacs:
        node = place.node(COMPRESS, make(), pacs.port)
        node._known.bytes_s = 20_000.0  # an earlier association was so thin
        with node.open(items) as session:
            assert set(send(session, *items)) == {ExplicitVRLittleEndian}
        assert pacs.script == deque()
        assert len(place.got()) == 3


@pytest.mark.parametrize("body", ["ctypes.string_at(0)", "return b'nonsense'"])
def test_an_encoder_that_misbehaves_costs_time_only(tmp_path: Path, start: Start, make: Make, body: str) -> None:
    items = [image(tmp_path, number) for number in range(4)]
    place = start("+xt")
    recoder = make(FAKE.format(body=body))
    with ThinLine(place.port, THIN) as line, place.node(COMPRESS, recoder, line.port).open(items) as session:
        assert set(send(session, *items)) == {ExplicitVRLittleEndian}
    assert len(place.got()) == 4


def test_a_child_that_does_not_start_holds_nothing(tmp_path: Path, start: Start, make: Make) -> None:
    item = image(tmp_path, 1, JPEGLSLossless)
    with (
        start("+xi").node(Rules(), make("os._exit(7)")).open([item]) as session,
        pytest.raises(TransientDeliveryError, match="not re-encoded just now"),
    ):
        session.send(item, item.path)


def test_what_was_prepared_and_never_sent_leaves_nothing(tmp_path: Path, start: Start, make: Make) -> None:
    items = [image(tmp_path, number, JPEGLSLossless) for number in range(2 * MOST_AHEAD)]
    place, recoder = start("+xi"), make(idle_s=4.0)
    with place.node(Rules(), recoder).open(items) as session:
        assert send(session, items[0]) == [ImplicitVRLittleEndian]
        for item in items[1:]:
            session.prepare(item, item.path)
        assert send(session, items[-1]) == [ImplicitVRLittleEndian]
        assert recoder.pid is not None
    # The fixture sees to the rest.


def test_what_was_prepared_is_not_taken_for_another_file_of_that_name(tmp_path: Path, start: Start, make: Make) -> None:
    items = []
    for number, area in enumerate(("received", "results", "more")):
        (tmp_path / area).mkdir()
        items.append(image(tmp_path / area, number, JPEGLSLossless))
        items[-1] = Item(items[-1].path.rename(tmp_path / area / "0.dcm"))
    place = start("+xi")
    with place.node(Rules(), make()).open(items) as session:
        assert send(session, items[0]) == [ImplicitVRLittleEndian]
        session.prepare(items[1], items[1].path)
        assert send(session, items[2], items[1]) == [ImplicitVRLittleEndian] * 2
    assert len(place.got()) == 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_a_re_encoder_that_has_ended(tmp_path: Path, make: Make) -> None:
    source, recoder = image(tmp_path, 1, JPEGLSLossless).path, make()
    wanted = [tmp_path / "0", Path("no\0file"), *(tmp_path / str(number) for number in range(3))]
    futures = [
        recoder.recode(Recoding(source=source, target=one, transfer_syntax_uid=ImplicitVRLittleEndian, most=1 << 20))
        for one in wanted
    ]
    assert futures[0].result(20).size > 0
    assert isinstance(futures[1].exception(20), ValueError)
    for future in futures[2:]:  # by another that was started meanwhile, or not at all
        assert isinstance(future.exception(20), RuntimeFailed | None)
    eventually(lambda: not any(one.name == "recoder" for one in threading.enumerate()), 10)
