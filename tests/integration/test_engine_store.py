"""The store of engines on a real disk: what comes in, what serves, and what a crash at any moment leaves."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from zipfile import ZipFile

import pytest

from appliance.engine_store.book import BOOK, OFF, SHIPPED, Book
from appliance.engine_store.store import EngineStore, Named
from appliance.errors import CertificateUnusable, EngineRefused, OutOfResources, PackageInvalid
from appliance.states import EngineStage, Event
from tests.packages import Recipe, brightness, write_package

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    (tmp_path / "shipped").mkdir()
    return EngineStore(root=tmp_path / "var" / "engines", shipped=tmp_path / "shipped", now=lambda: "monday")


def roomy(_: int) -> None:
    """A disk without end."""


def taken(store: EngineStore, version: str = "1.0.0", recipe: Recipe = Recipe()) -> Named:  # noqa: B008 - frozen
    package = write_package(store.shipped.parent / "package", replace(recipe, version=version))
    named, _ = store.take(package, "alice", roomy)
    return named


def proved(store: EngineStore, version: str = "1.0.0") -> Named:
    """As `check` and `verify` leave it."""
    named = taken(store, version)
    store.step(named, Event.VALIDATE, "alice")
    store.step(named, Event.VERIFY, "alice")
    return store.find(str(named))


def stages(book: Book) -> dict[str, EngineStage]:
    return {name.partition("-")[0]: one.stage for name, one in book.releases.items()}


def test_what_is_imported_is_there_under_its_hash_and_serves_nothing_yet(store: EngineStore) -> None:
    named = taken(store)
    package = store.load(named)
    assert named.folder == store.root / "films" / f"1.0.0-{package.package_sha256[:12]}"
    assert named.stage is EngineStage.IMPORTED
    assert store.book("films").active == SHIPPED
    assert [(line.by, line.event, line.stage) for line in store.book("films").history] == [
        ("alice", "import", "imported")
    ]
    assert sorted(path.name for path in store.root.iterdir()) == [".lock", "films"]


def test_an_import_may_be_repeated_and_other_bytes_are_another_release(store: EngineStore, tmp_path: Path) -> None:
    first = taken(store)
    again, is_new = store.take(tmp_path / "package", "bob", roomy)
    assert (again, is_new) == (first, False)
    other = taken(store, recipe=Recipe(model=brightness(0.0001)))
    assert other.release != first.release
    assert len(store.book("films").history) == 2
    with pytest.raises(EngineRefused, match="name one in full"):
        store.find("films@1.0.0")
    assert store.find("films") == other
    assert store.find(str(first)) == first


def test_what_is_no_package_leaves_nothing(store: EngineStore, tmp_path: Path) -> None:
    package = write_package(tmp_path / "package")
    (package / "model.onnx").write_bytes(b"altered")
    with pytest.raises(PackageInvalid, match="altered"):
        store.take(package, "alice", roomy)
    with ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("../evil", b"")
    with pytest.raises(PackageInvalid, match="leads out"):
        store.take(tmp_path / "a.zip", "alice", roomy)

    def full(_: int) -> None:
        raise OutOfResources("no room")

    with pytest.raises(OutOfResources):
        store.take(write_package(tmp_path / "package"), "alice", full)
    assert [path.name for path in store.root.iterdir()] == [".lock"]


def test_names_that_nobody_has_are_refused_in_words(store: EngineStore) -> None:
    taken(store)
    for wanted, words in (
        ("films@2.0.0", "no release 2.0.0"),
        ("other", "neither imported nor"),
        ("../films", "no engine's id"),
        ("", "no engine's id"),
        ("films@shipped", "neither imported nor"),
    ):
        with pytest.raises(EngineRefused, match=words):
            store.find(wanted)


@pytest.mark.promise("P8")
def test_only_what_was_verified_may_serve(store: EngineStore) -> None:
    named = taken(store)
    for todo, event in (("check", Event.VALIDATE), ("verify", Event.VERIFY)):
        for shadow in (False, True):
            with pytest.raises(EngineRefused, match=f"first `scanside engines {todo}"):
                store.activate(named, "alice", shadow=shadow)
        store.step(named, event, "alice")
    store.activate(named, "alice")
    assert store.book("films").active == named.release
    with pytest.raises(EngineRefused, match="active already"):
        store.activate(named, "alice")


@pytest.mark.promise("P11")
def test_activating_and_going_back_leaves_a_line_each(store: EngineStore) -> None:
    write_package(store.shipped / "films", Recipe(version="0.9.0"))
    one, two = proved(store, "1.0.0"), proved(store, "2.0.0")
    store.activate(one, "alice")
    book = store.activate(two, "bob")
    assert (book.active, book.previous) == (two.release, (SHIPPED, one.release))
    assert stages(book) == {"1.0.0": EngineStage.RETIRED, "2.0.0": EngineStage.ACTIVE}
    assert store.roll_back("films", "carol").active == one.release
    assert store.roll_back("films", "carol").active == SHIPPED
    book = store.book("films")
    assert stages(book) == {"1.0.0": EngineStage.RETIRED, "2.0.0": EngineStage.RETIRED}
    with pytest.raises(EngineRefused, match="to go back to"):
        store.roll_back("films", "carol")
    said = [(line.by, line.event, line.release.partition("-")[0]) for line in book.history[6:]]
    assert said == [
        ("alice", "activate", "1.0.0"),
        ("bob", "retire", "1.0.0"),
        ("bob", "activate", "2.0.0"),
        ("carol", "retire", "2.0.0"),
        ("carol", "activate", "1.0.0"),
        ("carol", "retire", "1.0.0"),
        ("carol", "activate", "shipped"),
    ]


def test_a_shadow_runs_beside_what_is_active_and_may_take_its_place(store: EngineStore) -> None:
    write_package(store.shipped / "films", Recipe(version="1.0.0"))
    same, two = proved(store, "1.0.0"), proved(store, "2.0.0")
    with pytest.raises(EngineRefused, match="the same version"):
        store.activate(same, "alice", shadow=True)
    store.activate(two, "alice", shadow=True)
    duty = store.on_duty("films")
    assert duty.active is not None
    assert duty.shadow is not None
    assert (duty.active.release, duty.shadow.release) == (SHIPPED, two.release)
    book = store.activate(two, "alice")
    assert (book.active, book.shadow, stages(book)["2.0.0"]) == (two.release, OFF, EngineStage.ACTIVE)
    with pytest.raises(EngineRefused, match="own shadow"):
        store.activate(two, "alice", shadow=True)


def test_what_fails_by_itself_gives_way_to_the_one_before_and_an_alarm_stays_until_a_person_decides(
    store: EngineStore,
) -> None:
    one, two = proved(store, "1.0.0"), proved(store, "2.0.0")
    store.activate(one, "alice")
    store.activate(two, "alice")
    book = store.take_back(two, "analyse", "it answered nonsense")
    assert book is not None
    assert book.active == one.release
    assert stages(book)["2.0.0"] is EngineStage.REFUSED
    assert book.alarm == f"{two} was rolled back to {one.release}: it answered nonsense"
    assert store.take_back(two, "analyse", "late news") is None
    assert store.take_back(one, "analyse", "now this", or_off=False) is None
    book = store.take_back(one, "analyse", "now this")
    assert book is not None
    assert (book.active, book.stopped) == (OFF, one.release)
    assert "none to go back to" in book.alarm
    assert store.on_duty("films").active is None
    with pytest.raises(EngineRefused, match="first `scanside engines check"):
        store.activate(store.find(str(one)), "alice")
    store.step(one, Event.VALIDATE, "alice")
    store.step(one, Event.VERIFY, "alice")
    book = store.activate(store.find(str(one)), "alice")
    assert (book.active, book.stopped, book.alarm) == (one.release, OFF, "")


def test_a_shipped_engine_that_fails_is_off_until_a_person_lets_it_serve_again(store: EngineStore) -> None:
    write_package(store.shipped / "films")
    shipped = store.find("films")
    assert store.take_back(shipped, "analyse", "it hung") is not None
    assert store.on_duty("films").stopped == shipped
    assert store.activate(shipped, "alice").active == SHIPPED
    assert store.on_duty("films").active == shipped


def test_a_failing_shadow_leaves_what_is_active_alone(store: EngineStore) -> None:
    one, two = proved(store, "1.0.0"), proved(store, "2.0.0")
    store.activate(one, "alice")
    store.activate(two, "alice", shadow=True)
    book = store.take_back(two, "analyse", "it hung")
    assert book is not None
    assert (book.active, book.shadow) == (one.release, OFF)


@pytest.mark.promise("P8")
def test_a_release_that_was_exchanged_for_another_whole_package_is_not_loaded(store: EngineStore) -> None:
    named = taken(store)
    write_package(named.folder, Recipe(version="1.0.0", model=brightness(0.5)))
    with pytest.raises(PackageInvalid, match="altered since it was imported"):
        store.load(named)
    write_package(named.folder, Recipe(id="others"))
    with pytest.raises(PackageInvalid, match="is the engine others"):
        store.load(named)
    (named.folder / "model.onnx").write_bytes(b"altered")
    assert taken(store) == named  # imported again, it is mended
    assert store.load(named).key == "films@1.0.0"


@pytest.mark.parametrize("content", [b"", b"{", b'{"schema": 2}', b'{"active": "../../etc"}', b"[]"])
def test_a_damaged_book_is_told_and_never_guessed_at(store: EngineStore, content: bytes) -> None:
    taken(store)
    (store.root / "films" / BOOK).write_bytes(content)
    with pytest.raises(EngineRefused, match="which release serves is not known"):
        store.on_duty("films")


CRASH = """
import os, sys
from pathlib import Path
from appliance.engine_store.store import EngineStore

def die_at(step):
    left = [step]
    def hook(event, arguments):
        if event in ("os.rename", "os.mkdir", "os.rmdir", "open") and str(arguments[0]).startswith(sys.argv[1]):
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)
    sys.addaudithook(hook)

for step in range(0, 80, 2):
    root = Path(sys.argv[1], str(step))
    store = EngineStore(root=root, shipped=root / "none")
    if not (child := os.fork()):
        die_at(step)
        store.take(Path(sys.argv[2]), "alice", lambda _: None)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    there = list(store.book("films").releases)
    for release in there:
        store.load(store.find(f"films@{release}"))
    named, is_new = store.take(Path(sys.argv[2]), "bob", lambda _: None)
    assert store.load(named).key == "films@1.0.0"
    assert is_new is not bool(there)
    assert not list(root.glob(".incoming*"))
    print(code, len(there))
    if not code:
        break
"""


@pytest.mark.promise("P12")
def test_killed_at_any_step_of_an_import_it_is_there_whole_or_not_and_goes_in_the_next_time(tmp_path: Path) -> None:
    package = write_package(tmp_path / "package")
    (tmp_path / "roots").mkdir()
    command = [sys.executable, "-c", CRASH, str(tmp_path / "roots"), str(package)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "9 0"
    assert lines[-1] == "0 1"
    assert sum(line == "9 0" for line in lines) > 5


def test_many_at_once_lose_no_line(store: EngineStore) -> None:
    named = taken(store)
    many = f"""
import sys
from pathlib import Path
from appliance.engine_store.store import EngineStore
store = EngineStore(root=Path(sys.argv[1]), shipped=Path(sys.argv[1]))
for _ in range(8):
    store.note("films", "{named.release}", sys.argv[2], "seen", "")
"""
    command = [sys.executable, "-c", many, str(store.root)]
    writers = [subprocess.Popen([*command, name], cwd=ROOT) for name in ("a", "b", "c")]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert sum(line.event == "seen" for line in store.book("films").history) == 24


# Signatures.


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ours.pem, ours.pub.pem, other.pem, other.pub.pem."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "other"):
        private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
        make = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(private)]
        subprocess.run(make, check=True, capture_output=True)
        out = ["openssl", "ec", "-in", str(private), "-pubout", "-out", str(public)]
        subprocess.run(out, check=True, capture_output=True)
    return folder


def sign(package: Path, key: Path, *ignored: str) -> None:
    """As `model_signing sign key` does."""
    hashing, signing = import_module("model_signing.hashing"), import_module("model_signing.signing")
    config = signing.Config().use_elliptic_key_signer(private_key=key)
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=["engine.sig", *ignored]))
    config.sign(package, package / "engine.sig")


@pytest.mark.promise("P8")
def test_where_a_signature_is_asked_for_only_its_owner_s_packages_come_in_and_serve(
    store: EngineStore, tmp_path: Path, keys: Path
) -> None:
    strict = replace(store, public_key=keys / "ours.pub.pem")
    unsigned = taken(store)
    with pytest.raises(PackageInvalid, match="was not signed by ours"):
        strict.load(unsigned)
    package = write_package(tmp_path / "package", Recipe(version="2.0.0"))
    with pytest.raises(PackageInvalid, match=r"engine\.sig: no such file"):
        strict.take(package, "alice", roomy)
    sign(package, keys / "other.pem")
    with pytest.raises(PackageInvalid, match="not signed by ours"):
        strict.take(package, "alice", roomy)
    (package / "engine.sig").unlink()
    sign(package, keys / "ours.pem", "engine.yaml")
    with pytest.raises(PackageInvalid, match=r"not signed by ours|does not cover engine\.yaml"):
        strict.take(package, "alice", roomy)
    (package / "engine.sig").unlink()
    sign(package, keys / "ours.pem")
    named, _ = strict.take(package, "alice", roomy)
    assert strict.load(named).key == "films@2.0.0"
    with pytest.raises(PackageInvalid, match="was not signed by other"):
        replace(store, public_key=keys / "other.pub.pem").load(named)
    with pytest.raises(CertificateUnusable, match="cannot be read"):
        replace(store, public_key=keys / "gone.pem").load(named)


@pytest.mark.promise("P8")
def test_a_signed_package_that_was_altered_as_a_whole_is_refused(
    store: EngineStore, tmp_path: Path, keys: Path
) -> None:
    """With a manifest that fits the other model: only the signature knows."""
    strict = replace(store, public_key=keys / "ours.pub.pem")
    package = write_package(tmp_path / "package")
    sign(package, keys / "ours.pem")
    signature = (package / "engine.sig").read_bytes()
    write_package(package, Recipe(model=brightness(0.3)))
    for content in (signature, b"", b"{}", json.dumps({"dsseEnvelope": 1}).encode(), os.urandom(100)):
        (package / "engine.sig").write_bytes(content)
        with pytest.raises(PackageInvalid, match=r"engine\.sig"):
            strict.take(package, "alice", roomy)


@pytest.mark.promise("P8")
def test_a_release_that_came_in_unsigned_may_be_imported_again_with_a_signature(
    store: EngineStore, tmp_path: Path, keys: Path
) -> None:
    named = taken(store)
    strict = replace(store, public_key=keys / "ours.pub.pem")
    sign(tmp_path / "package", keys / "ours.pem")
    again, is_new = strict.take(tmp_path / "package", "alice", roomy)
    assert (again, is_new) == (named, False)
    assert strict.load(named).key == "films@1.0.0"
