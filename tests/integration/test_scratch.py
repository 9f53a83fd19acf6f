"""An engine's scratch takes no room that images need: its study is not analysed, and that is told (P2, P5, P6)."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.errors import OutOfResources, StoreFailed
from appliance.imaging import geometry, volume
from appliance.imaging.headers import read_header
from appliance.model import Reason
from tests.integration.test_analyse_edges import Rig, axial
from tests.slices import stack


@pytest.fixture
def ct(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path, engines=("ct-lesion",))
    yield made
    made.journal.close()


def limit(rig: Rig, room: int) -> list[int]:
    """Let it have so many bytes of scratch; returns what it asks for."""
    asked: list[int] = []

    def check(size: int) -> None:
        asked.append(size)
        if size > room:
            raise OutOfResources("only 3 MB free, the reserve is more")

    rig.inferrer._desk = replace(rig.desk, check_scratch=check)
    return asked


@pytest.mark.promise("P5")
@pytest.mark.promise("P6")
def test_without_room_for_its_volume_a_series_is_not_analysed_and_that_is_told(ct: Rig) -> None:
    asked = limit(ct, 1000)
    ct.arrive(*axial("1.2.3.4", 80, 3.0))
    ct.close_series()
    ct.run()
    assert set(asked) == {0, 80 * 4 * 4 * 2}
    assert not list(ct.folder.rglob("volume.int16"))
    (job,) = ct.jobs()
    assert job.outcome is not None
    assert job.outcome.reason is Reason.NO_ROOM
    assert job.outcome.detail == "only 3 MB free, the reserve is more"
    assert ct.fake.ran == 0
    told = [file.read_bytes() for file in ct.folder.rglob("results/*/*.dcm")]
    assert any(b"the disk has no room for it" in result for result in told)
    assert ct.inferrer.failing == {}  # the engine is well


@pytest.mark.promise("P1")
def test_a_disk_that_cannot_be_asked_is_a_failed_store_not_a_study_without_an_answer(ct: Rig) -> None:
    def check(_: int) -> None:
        raise StoreFailed("cannot see how much room there is")

    ct.inferrer._desk = replace(ct.desk, check_scratch=check)
    ct.arrive(*axial("1.2.3.4", 80, 3.0))
    ct.close_series()
    with pytest.raises(StoreFailed):
        ct.run()


def test_a_volume_is_asked_for_before_a_byte_of_it_is_written(tmp_path: Path) -> None:
    def refuse(size: int) -> None:
        raise OutOfResources(str(size))

    slices = geometry.stack([read_header(path) for path in stack(tmp_path, [0, 3])])
    with pytest.raises(OutOfResources):
        volume.build(slices, tmp_path, refuse)
    assert not (tmp_path / "volume.int16").exists()
