"""The reader child against files and decoders that would cost a process its life, and that it reads what we would.

A decoder that misbehaves is put into the child by an "interpreter" of ours, which then runs the true program.
"""

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from appliance import phantom
from appliance.errors import CannotAnalyse, RuntimeFailed
from appliance.imaging import geometry, render, volume
from appliance.imaging.reading import IN_PROCESS, ReaderLost
from appliance.model import Finding, Reason
from appliance.runtimes.reader import ChildReader, ReaderSession, ReaderSettings
from appliance.stages.report.headers import SOURCE_TAGS
from tests.slices import ct_slice, film, save, stack
from tests.waiting import eventually

LIMIT_S = 60.0
MB = 1 << 20
SMALL = ReaderSettings(memory_mb=1024, cpu_s=10, deadline_s=20, reap_s=2)
NAME = "Secret^Name"  # of the patient in tests.slices


@pytest.fixture(scope="module")
def one() -> Iterator[ChildReader]:
    """For all tests that need no other."""
    made = ChildReader(SMALL)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def nothing_is_left_over(one: ChildReader) -> Iterator[None]:
    one.freshen()
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    children = len(psutil.Process().children())
    yield
    one.freshen()
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    assert len(psutil.Process().children()) == children


@pytest.fixture
def make() -> Iterator[Callable[[ReaderSettings], ChildReader]]:
    made: list[ChildReader] = []

    def start(settings: ReaderSettings) -> ChildReader:
        made.append(ChildReader(settings))
        return made[-1]

    yield start
    for reader in made:
        reader.close()


Make = Callable[[ReaderSettings], ChildReader]


def noisy(**elements: object) -> Dataset:
    return ct_slice(0, np.random.default_rng(3).integers(0, 4096, (64, 96), np.uint16), **elements)


def compressed(path: Path, dataset: Dataset, syntax: UID) -> Path:
    if syntax != ExplicitVRLittleEndian:
        dataset.compress(syntax, generate_instance_uid=False)
    return save(path, dataset)


# What it reads.


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_a_volume_is_the_same_byte_for_byte(tmp_path: Path, one: ChildReader, syntax: UID) -> None:
    paths = [
        compressed(tmp_path / f"{z}.dcm", noisy(ImagePositionPatient=[0, 0, z], PixelPaddingValue=7), syntax)
        for z in (6, 0, 3)
    ]
    volumes = []
    for name, reader in (("here", IN_PROCESS), ("there", one.session(LIMIT_S))):
        (tmp_path / name).mkdir()
        headers = [reader.header(path) for path in paths]
        volumes.append(volume.build(geometry.stack(headers, reader=reader), tmp_path / name, reader=reader))
    here, there = volumes
    assert here.stack == there.stack
    files = [(tmp_path / name / "volume.int16").read_bytes() for name in ("here", "there")]
    assert files[0] == files[1]
    assert len(files[0]) == 3 * 64 * 96 * 2
    assert np.array_equal(there.hu, here.hu)
    assert not there.hu.flags.writeable


def test_the_chest_of_the_phantom_reads_the_same(tmp_path: Path, one: ChildReader) -> None:
    session = one.session(LIMIT_S)
    truth = phantom.write_ct(tmp_path / "ct", 5, slices=4)
    headers = [session.header(path) for path in truth.files]
    assert headers == [IN_PROCESS.header(path) for path in truth.files]
    finding = Finding(label="lesion", score=0.9, sop_instance_uid=headers[1].sop_instance_uid, box=(10, 20, 40, 50))
    here, there = (render.key_picture(list(truth.files), [finding], reader) for reader in (IN_PROCESS, session))
    assert np.array_equal(here, there)
    assert session.same_pixels((headers[0], 0), (headers[0], 0))
    assert not session.same_pixels((headers[0], 0), (headers[1], 0))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEGLSLossless])
@pytest.mark.parametrize(
    "elements",
    [
        {},
        {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": 700, "WindowWidth": 1000},
        {
            "PixelPaddingValue": 3,
            "RescaleSlope": 1.7,
            "RescaleIntercept": -3.3,
            "PatientOrientation": ["L", "F"],
            "PatientAge": "018M",
        },
    ],
)
def test_a_film_is_the_same(tmp_path: Path, one: ChildReader, elements: dict[str, object], syntax: UID) -> None:
    pixels = np.random.default_rng(4).integers(0, 4096, (60, 40), np.uint16)
    path = compressed(tmp_path / "film.dcm", film(pixels, **elements), syntax)
    session = one.session(LIMIT_S)
    found, wanted = session.film(session.header(path)), IN_PROCESS.film(IN_PROCESS.header(path))
    assert found.header == wanted.header
    assert found.image.dtype == np.float32
    assert np.array_equal(found.image, wanted.image)


def test_the_elements_that_a_result_needs_are_those_of_the_file_and_no_others(tmp_path: Path, one: ChildReader) -> None:
    path = save(tmp_path / "a.dcm", noisy(PatientID="4711", PatientComments="long", InstanceNumber=3))
    found = one.session(LIMIT_S).elements(path, SOURCE_TAGS)
    assert found == IN_PROCESS.elements(path, SOURCE_TAGS)
    assert (found.PatientID, found.PatientName, found.Rows) == ("4711", NAME, 64)
    assert "PatientComments" not in found


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_what_cannot_be_read_is_told_in_the_same_words(tmp_path: Path, one: ChildReader, syntax: UID) -> None:
    path = compressed(tmp_path / "a.dcm", film(np.arange(4096, dtype=np.uint16).reshape(64, 64)), syntax)
    whole = path.read_bytes()
    for size in (0, 100, 200, 400, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:size])
        said = []
        for reader in (IN_PROCESS, one.session(LIMIT_S)):
            with pytest.raises(CannotAnalyse) as caught:
                reader.film(reader.header(path))
            said.append((caught.value.reason, str(caught.value)))
        assert said[0] == said[1]
        assert NAME not in said[1][1]


def test_a_volume_that_cannot_be_written_is_no_fault_of_the_image(tmp_path: Path, one: ChildReader) -> None:
    path = save(tmp_path / "a.dcm", noisy())
    session = one.session(LIMIT_S)
    header = session.header(path)
    with Path("/dev/full").open("wb") as full, pytest.raises(CannotAnalyse) as caught:
        session.write_hu(header, header.planes[0], full.fileno(), 0)
    assert caught.value.reason == Reason.NO_ROOM


# What it is.


def test_it_is_limited_before_it_reads_anything(one: ChildReader, make: Make) -> None:
    one.freshen()
    child = psutil.Process(one.pid)
    assert child.rlimit(psutil.RLIMIT_AS)[0] == SMALL.memory_mb * MB
    assert 0 < child.rlimit(psutil.RLIMIT_CPU)[0] < SMALL.cpu_s + 10
    assert child.rlimit(psutil.RLIMIT_CORE) == (0, 0)
    assert Path(f"/proc/{one.pid}/oom_score_adj").read_text().strip() == "1000"
    with pytest.raises(RuntimeFailed, match="does not start"):  # whatever it needs to start is limited, too
        make(replace(SMALL, memory_mb=60)).freshen()


def test_its_time_counts_anew_for_each_thing_it_is_asked(tmp_path: Path, make: Make) -> None:
    reader = make(replace(SMALL, cpu_s=2))
    path = save(tmp_path / "a.dcm", noisy())
    session = reader.session(LIMIT_S)
    session.header(path)
    pid = reader.pid
    child = psutil.Process(pid)
    while sum(child.cpu_times()[:2]) < 3:
        session.same_pixels(*[(session.header(path), 0)] * 2)
    assert reader.pid == pid


def test_it_is_kept_and_replaced_after_its_time(tmp_path: Path, make: Make) -> None:
    reader = make(replace(SMALL, requests=3))
    path = save(tmp_path / "a.dcm", noisy())
    pids = []
    for _ in range(4):
        reader.session(LIMIT_S).header(path)
        pids.append(reader.pid)
    assert pids[0] == pids[1] == pids[2] != pids[3]


def test_it_is_replaced_after_pixels_that_cannot_be_read(tmp_path: Path, make: Make) -> None:
    reader = make(SMALL)
    path = compressed(tmp_path / "a.dcm", noisy(), JPEGLSLossless)
    path.write_bytes(path.read_bytes()[:-2000])
    session = reader.session(LIMIT_S)
    header = session.header(path)
    assert reader.pid is not None
    with pytest.raises(CannotAnalyse):
        session.slice_hu(header, header.planes[0])
    assert reader.pid is None
    assert not session.lost
    session.header(path)
    assert reader.pid is not None


def test_it_ends_with_the_thread_that_started_it() -> None:
    made = ChildReader(SMALL)
    thread = threading.Thread(target=made.freshen)
    thread.start()
    thread.join()
    child = psutil.Process(made.pid)
    eventually(lambda: child.status() == psutil.STATUS_ZOMBIE, 5)
    made.close()


# What it dies of.


def asked(reader: ChildReader, path: Path) -> tuple[ReaderLost, ReaderSession]:
    session = reader.session(LIMIT_S)
    with pytest.raises(ReaderLost) as caught:
        session.header(path)
    assert session.lost
    assert reader.pid is None
    return caught.value, session


def opened_by_another(fifo: Path) -> int | None:
    """Our end of it, when somebody reads."""
    with suppress(OSError):
        return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    return None


def still_reads(reader: ChildReader, folder: Path) -> None:
    paths = stack(folder, [0, 3])
    assert len([reader.session(LIMIT_S).header(path) for path in paths]) == 2


@pytest.mark.promise("P9")
def test_a_crash_while_it_reads_is_given_another_chance_and_then_told(tmp_path: Path, make: Make) -> None:
    reader = make(SMALL)
    reader.freshen()
    first = reader.pid
    os.mkfifo(tmp_path / "fifo")  # which it waits for
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(asked, reader, tmp_path / "fifo")
        pids: list[int] = []
        for _ in range(2):
            end = eventually(partial(opened_by_another, tmp_path / "fifo"), 10)
            pid = reader.pid
            assert end is not None
            assert pid is not None
            pids.append(pid)
            os.kill(pid, signal.SIGSEGV)
            eventually(lambda: reader.pid != pids[-1], 10)
            os.close(end)
        error, _ = future.result(20)
    assert pids[0] == first != pids[1]
    assert error.reason == Reason.UNDECODABLE
    assert str(error) == "while the image was read: the child was killed by SIGSEGV"
    still_reads(reader, tmp_path)


@pytest.mark.promise("P9")
def test_one_death_costs_nothing(tmp_path: Path, make: Make) -> None:
    """The kernel takes it first where memory is short: that says nothing of the image."""
    reader = make(SMALL)
    path = save(tmp_path / "a.dcm", noisy())
    reader.freshen()
    assert reader.pid is not None
    child = psutil.Process(reader.pid)
    child.suspend()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(reader.session(LIMIT_S).header, path)
        child.kill()
        assert future.result(20) == IN_PROCESS.header(path)


@pytest.mark.promise("P9")
def test_a_child_that_is_stopped_passes_its_deadline(tmp_path: Path, make: Make) -> None:
    reader = make(replace(SMALL, deadline_s=0.5))
    reader.freshen()
    assert reader.pid is not None
    child = psutil.Process(reader.pid)
    child.suspend()
    error, session = asked(reader, save(tmp_path / "a.dcm", noisy()))
    assert error.reason == Reason.UNDECODABLE
    assert "passed its deadline of 0.5 s" in str(error)
    assert not child.is_running()
    with pytest.raises(CannotAnalyse):
        session.header(tmp_path / "nothing.dcm")
    still_reads(reader, tmp_path)


def test_to_close_it_waits_for_no_file(tmp_path: Path, make: Make) -> None:
    reader = make(SMALL)
    os.mkfifo(tmp_path / "fifo")
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(reader.session(3).header, tmp_path / "fifo")
        eventually(lambda: reader.pid, 10)
        reader.close()
        assert not future.done()
        with pytest.raises(ReaderLost):
            future.result(20)


@pytest.mark.promise("P6")
def test_a_session_is_over_when_its_time_is(tmp_path: Path, make: Make) -> None:
    reader = make(SMALL)
    os.mkfifo(tmp_path / "fifo")
    session = reader.session(0.3)
    for _ in range(2):
        with pytest.raises(ReaderLost) as caught:
            session.header(tmp_path / "fifo")
        assert caught.value.reason == Reason.DEADLINE
    still_reads(reader, tmp_path)


def shim(folder: Path, text: str) -> Path:
    """An interpreter that does something before it runs the true program."""
    path = folder / "python"
    start = "import os, runpy, sys, types\nsys.argv = sys.argv[2:]\n"
    path.write_text(f"#!{sys.executable} -I\n{start}{text}\nrunpy.run_path(sys.argv[0], run_name='__main__')\n")
    path.chmod(0o755)
    return path


FAKE = """
import ctypes, signal
def decode(*_, **__):
    {body}
fake = types.ModuleType("jpeg_ls")
fake.__version__ = "9"
fake.decode_pixel_data = fake.decode_buffer = fake.decode = decode
sys.modules["jpeg_ls"], sys.modules["gdcm"] = fake, None
"""


@pytest.mark.promise("P9")
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("ctypes.string_at(0)", "the child was killed by SIGSEGV"),
        ("os.abort()", "the child was killed by SIGABRT"),
        ("while True: pass", "the child was killed by SIGXCPU"),
        ("signal.pause()", "passed its deadline of 2 s"),
        (f"sys.stderr.write('{NAME}'); sys.stderr.flush(); os._exit(3)", "the child ended with status 3"),
        (f"raise SystemExit('{NAME}')", "the child ended with status 1"),
        (f"raise BaseException('{NAME}')", "the child ended with status 1"),
    ],
)
def test_a_decoder_that_does_its_worst_costs_one_image(tmp_path: Path, make: Make, body: str, words: str) -> None:
    deadline_s = 2 if "pause" in body else 30
    program = shim(tmp_path, FAKE.format(body=body))
    reader = make(replace(SMALL, interpreter=program, cpu_s=2, deadline_s=deadline_s))
    path = compressed(tmp_path / "film.dcm", film(np.zeros((64, 64), np.uint16)), JPEGLSLossless)
    session = reader.session(LIMIT_S)
    header = session.header(path)
    with pytest.raises(ReaderLost) as caught:
        session.film(header)
    assert caught.value.reason == Reason.UNDECODABLE
    assert re.search(words, str(caught.value))
    assert NAME not in str(caught.value)
    assert session.lost
    still_reads(reader, tmp_path)


@pytest.mark.promise("P9")
@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless])
def test_a_frame_that_takes_more_memory_than_there_is_costs_itself(tmp_path: Path, make: Make, syntax: UID) -> None:
    """A film within all bounds that a few kilobytes describe, and that is half a gigabyte on its way."""
    pixels = np.zeros((4096, 8192), np.uint16)
    pixels[::64] = 9
    path = compressed(tmp_path / "film.dcm", film(pixels), syntax)
    assert path.stat().st_size < MB
    reader = make(replace(SMALL, memory_mb=280, cpu_s=30, deadline_s=60))
    session = reader.session(LIMIT_S)
    header = session.header(path)
    with pytest.raises(CannotAnalyse) as caught:
        session.film(header)
    assert caught.value.reason == Reason.UNDECODABLE
    assert reader.pid is None
    still_reads(reader, tmp_path)
    roomy = make(replace(SMALL, cpu_s=30, deadline_s=60))
    assert roomy.session(LIMIT_S).film(header).image.shape == pixels.shape


# What it says.

SCRIPT = f"""#!{sys.executable} -I
import json, signal, socket, struct
wire = socket.socket(fileno=0)
def read():
    size, = struct.unpack(">I", wire.recv(4, socket.MSG_WAITALL))
    return json.loads(wire.recv(size, socket.MSG_WAITALL))
def raw(body):
    wire.sendall(struct.pack(">I", len(body)) + body)
def say(**message):
    raw(json.dumps(message).encode())
read(); say(ok=True, protocol=1)
read()
"""


@pytest.mark.promise("P9")
@pytest.mark.parametrize(
    "answer",
    [
        "raw(b'garbage')",
        "raw(b'[' * 100_000)",
        "wire.sendall(b'\\xff\\xff\\xff\\xff'); signal.pause()",
        "say(ok=True)",
        "say(ok=True, header=None)",
        "say(ok=True, header=dict(modality='CT'))",
        "say(ok=True, cannot=dict(reason='mood', detail=''))",
        "say(ok=True, cannot=dict(reason='undecodable', detail='x' * 501))",
        "say(ok=False, reason='run', detail='no luck')",
        "say(ok=True, same=True)",
    ],
)
def test_a_child_that_answers_nonsense_is_lost(tmp_path: Path, make: Make, answer: str) -> None:
    path = tmp_path / "python"
    path.write_text(SCRIPT + answer)
    path.chmod(0o755)
    asked(make(replace(SMALL, interpreter=path)), tmp_path / "any.dcm")


@pytest.mark.parametrize("text", ["sys.exit('no licence')", "sys.modules['pydicom'] = None", "os._exit(7)"])
def test_a_child_that_does_not_start_is_nobodys_images_fault(tmp_path: Path, make: Make, text: str) -> None:
    reader = make(replace(SMALL, interpreter=shim(tmp_path, text)))
    for ask in (reader.freshen, lambda: reader.session(LIMIT_S).header(tmp_path / "any.dcm")):
        with pytest.raises(RuntimeFailed, match="the image reader does not start: the child ended") as caught:
            ask()
        assert caught.value.reason == Reason.ENGINE_FAILED


@pytest.mark.promise("P9")
def test_an_answer_without_what_was_asked_is_none(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "python"
    path.write_text(SCRIPT + "say(ok=True)")
    path.chmod(0o755)
    reader = make(replace(SMALL, interpreter=path))
    header = IN_PROCESS.header(save(tmp_path / "a.dcm", noisy()))
    with pytest.raises(ReaderLost):
        reader.session(LIMIT_S).elements(header.path, SOURCE_TAGS)
    with pytest.raises(ReaderLost):
        reader.session(LIMIT_S).same_pixels((header, 0), (header, 0))


@pytest.mark.promise("P9")
def test_no_memory_is_made_for_an_image_larger_than_any_detector(tmp_path: Path, one: ChildReader) -> None:
    session = one.session(LIMIT_S)
    header = session.header(save(tmp_path / "a.dcm", film(np.zeros((4, 4), np.uint16), Rows=65535, Columns=65535)))
    asked_before = one._asked
    with pytest.raises(CannotAnalyse, match="65535 x 65535") as caught:
        session.film(header)
    assert caught.value.reason is Reason.UNSUITABLE
    assert one._asked == asked_before
