"""P9: objects made to hurt whoever decodes them are stored, delivered as they are, and concluded as not analysed.

The process that reads them lives on, and reads the next image well.
"""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from benchmarks.hostile_objects import data_sets, identity

from appliance import phantom
from appliance.dimse.sop_classes import DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN
from appliance.file_head import file_head
from tests.acceptance.rig import SCANNER, Appliance, Scanner, engines, folder_destination, hashes, settings
from tests.waiting import eventually

CR_IMAGE = "1.2.840.10008.5.1.4.1.1.1"
RLE = "1.2.840.10008.1.2.5"
SYNTAXES = {"deflate": DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, "rle-65535": RLE}
VERIFIED_S, CONCLUDED_S, DELIVERED_S = 90.0, 60.0, 20.0
READ_MEMORY_MB = 2_048
MOST_MEMORY = 1_000_000_000  # bytes that analyse is resident with
CONCLUDED = "SELECT sop_instance_uid, outcome FROM job WHERE state IN ('concluded', 'reported')"


def film(number: int) -> bytes:
    """Elements that make an object a radiograph of the chest, which an engine answers for."""
    return identity(
        (0x00080016, b"UI", CR_IMAGE.encode()),
        (0x00080018, b"UI", f"2.25.7{number}".encode()),
        (0x00080060, b"CS", b"CR"),
        (0x00100020, b"LO", b"HOSTILE"),
        (0x00180015, b"CS", b"CHEST"),
        (0x0020000D, b"UI", f"2.25.8{number}".encode()),
        (0x0020000E, b"UI", f"2.25.9{number}".encode()),
    )


def hostile_films(folder: Path) -> dict[str, Path]:
    """SOP Instance UID -> file."""
    folder.mkdir()
    files = {}
    for number, name in enumerate(sorted(data_sets())):
        if name == "uid-path":  # names another object than the command: refused before that
            continue
        uid = f"2.25.7{number}"
        head = file_head(CR_IMAGE, uid, SYNTAXES.get(name, EXPLICIT_VR_LITTLE_ENDIAN), SCANNER)
        files[uid] = folder / f"{name}.dcm"
        files[uid].write_bytes(head + data_sets(film(number))[name])
    return files


def check_limits(appliance: Appliance, analyse: psutil.Process) -> None:
    """Who reads is bounded in memory and in the time for each image, who has it read in both; neither leaves a core."""
    child = appliance.process("child")
    assert child is not None
    reader = appliance.process("reader")
    assert reader is not None
    assert reader.parent() == analyse
    assert reader.rlimit(psutil.RLIMIT_AS)[0] == READ_MEMORY_MB << 20
    assert 0 < reader.rlimit(psutil.RLIMIT_CPU)[0] < 100
    assert reader.rlimit(psutil.RLIMIT_CORE)[0] == 0
    assert analyse.rlimit(psutil.RLIMIT_DATA)[0] == READ_MEMORY_MB << 20
    assert 0 < analyse.rlimit(psutil.RLIMIT_CPU)[0] < 10_000
    assert analyse.rlimit(psutil.RLIMIT_CORE)[0] == 0
    assert child.rlimit(psutil.RLIMIT_CPU)[0] == analyse.rlimit(psutil.RLIMIT_CPU)[1]


@pytest.mark.promise("P9")
@pytest.mark.promise("P2")
@pytest.mark.promise("P6")
@pytest.mark.timeout(240)
def test_hostile_objects_are_delivered_and_concluded_and_hurt_nobody(work: Path, figure: Callable[[str], None]) -> None:
    archive = folder_destination("archive", work / "archive", accept_reference=True)
    with Appliance(
        work / "appliance", settings(archive, engines=engines("publish"), analyse={"read_memory_mb": READ_MEMORY_MB})
    ) as appliance:
        eventually(appliance.engines_serve, VERIFIED_S, "the engines are verified")
        analyse = appliance.process("analyse")
        assert analyse is not None
        check_limits(appliance, analyse)
        files = hostile_films(work / "films")
        scanner = Scanner(appliance)
        began = time.monotonic()
        scanner.send(list(files.values()))
        assert scanner.acknowledged == set(files), scanner.refused
        eventually(lambda: appliance.owed() == 0, DELIVERED_S, "the images are delivered")
        delivered_s = time.monotonic() - began
        eventually(lambda: len(appliance.pairs(CONCLUDED)) == len(files), CONCLUDED_S, "all are concluded")
        outcomes = {uid: json.loads(text) for uid, text in appliance.pairs(CONCLUDED).items()}
        memory = analyse.memory_info().rss
        assert analyse.is_running()
        assert appliance.process("analyse") == analyse
        eventually(lambda: appliance.owed() == 0, DELIVERED_S, "the reports are delivered")
    wanted = hashes(files.values())
    got = hashes((work / "archive").rglob("*.dcm"))
    assert {uid: got.get(uid) for uid in wanted} == wanted
    for uid, outcome in outcomes.items():
        assert outcome["conclusion"] == "not_analysed", files[uid].name
        assert outcome["reason"] in ("undecodable", "unsuitable"), (files[uid].name, outcome["detail"])
    assert memory < MOST_MEMORY
    reasons = {files[uid].stem: outcome["detail"] for uid, outcome in outcomes.items()}
    figure(f"hostile objects: delivered after {delivered_s:.1f} s, analyse's memory {memory / 1e6:.0f} MB; {reasons}")


@pytest.mark.promise("P9")
@pytest.mark.promise("P2")
@pytest.mark.promise("P6")
@pytest.mark.timeout(240)
def test_an_image_is_delivered_while_its_reader_hangs_and_is_read_when_the_reader_has_crashed(work: Path) -> None:
    archive = folder_destination("archive", work / "archive", accept_reference=True)
    film_of_a_chest = phantom.write_cr(work / "cr", 4).files[0]
    with Appliance(work / "appliance", settings(archive, engines=engines("publish"))) as appliance:
        eventually(appliance.engines_serve, VERIFIED_S, "the engines are verified")
        analyse, reader = appliance.process("analyse"), appliance.process("reader")
        assert reader is not None
        reader.suspend()
        Scanner(appliance).send([film_of_a_chest])
        eventually(lambda: list((work / "archive").rglob("*.dcm")), DELIVERED_S, "the image is delivered")
        assert hashes((work / "archive").rglob("*.dcm")) == hashes([film_of_a_chest])
        assert appliance.pairs(CONCLUDED) == {}
        reader.send_signal(signal.SIGSEGV)
        reader.resume()
        (outcome,) = eventually(lambda: appliance.pairs(CONCLUDED), CONCLUDED_S, "it is concluded").values()
        assert json.loads(outcome)["conclusion"] != "not_analysed", outcome
        assert appliance.process("reader") not in (None, reader)
        assert appliance.process("analyse") == analyse
