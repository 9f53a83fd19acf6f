"""What the stages of the analyse process share: the engines on duty, and the desk they work at. Not a stage itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.engine_package import EnginePackage
from appliance.errors import CannotAnalyse
from appliance.imaging import volume
from appliance.imaging.reading import ImageReader
from appliance.journal.store import Journal
from appliance.model import EngineIdentity, Instance, Job, Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOnDuty:
    """An engine on duty: its package, whether its word leaves the box, and by when it must have spoken."""

    package: EnginePackage
    publish: bool  #: False: shadow
    deadline_ms: int  #: from the last arrival of what it must read

    @property
    def key(self) -> str:
        return self.package.key

    @property
    def scope(self) -> str:
        """Of its jobs. One result per study makes the study the subject, whatever the model reads."""
        manifest = self.package.manifest
        return manifest.one_per or manifest.scope

    def answers_for(self, instance: Instance) -> bool:
        """Whether what such an instance belongs to must be concluded by this engine (P6)."""
        return self.package.responsible_for(instance.modality, instance.sop_class_uid)


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What the stages of analyse work with."""

    journal: Journal
    path: Callable[[str], Path]  #: spool file name -> path
    engines: Sequence[EngineOnDuty]
    log: Callable[..., None]
    reader: Callable[[float], ImageReader]  #: who reads images, for so many seconds altogether
    #: raises OutOfResources where so many bytes of scratch would take room that images need
    check_scratch: Callable[[int], None] = volume.unlimited
    former: Callable[[], Sequence[EngineOnDuty]] = tuple  #: releases that served; what they said is still to be told

    def engine(self, key: str) -> EngineOnDuty | None:
        return next((engine for engine in self.engines if engine.key == key), None)

    def author(self, key: str, package_sha256: str) -> EngineOnDuty | None:
        """Of an outcome: the engine may have given way to another release since, even to one of the same version."""
        known = [engine for engine in (*self.engines, *self.former()) if engine.key == key]
        exact = (engine for engine in known if engine.package.package_sha256 == package_sha256)
        return next(exact, known[0] if known else None)

    def other_version(self, key: str) -> EngineOnDuty | None:
        """The engine on duty that has the same id."""
        engine_id = key.partition("@")[0]
        return next((engine for engine in self.engines if engine.package.manifest.id == engine_id), None)

    def paths(self, instances: Sequence[Instance]) -> list[Path]:
        """The files of these instances. Raises CannotAnalyse when one was let go already."""
        missing = sum(not instance.file for instance in instances)
        if missing:
            raise CannotAnalyse(Reason.INCOMPLETE, f"{missing} of {len(instances)} local copies were let go already")
        return [self.path(instance.file) for instance in instances]


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyRun:
    """A waiting job whose inputs look complete: may be run, must not be published."""

    job: Job
    series_instance_uid: str
    digest: str


def identity_of(engine: EngineOnDuty) -> EngineIdentity:
    """Who is to speak; the runtime and device come from whoever runs it."""
    manifest = engine.package.manifest
    return EngineIdentity(
        id=manifest.id,
        version=manifest.version,
        status=manifest.status,
        package_sha256=engine.package.package_sha256,
        model_sha256=engine.package.model_sha256,
    )


def unknown_identity(key: str) -> EngineIdentity:
    """Of an engine that the config no longer has: all that is left of it is its key."""
    engine_id, _, version = key.partition("@")
    return EngineIdentity(id=engine_id, version=version, status="reference", package_sha256="", model_sha256="")
