"""What a release of an engine said and nobody was told of yet: without its manifest no result can be built."""

from appliance import engine_package
from appliance.cli.opening import open_journal
from appliance.config import Config
from appliance.engine_store.store import EngineStore, Named
from appliance.errors import PackageInvalid
from appliance.journal import jobs


def still_owed(config: Config, store: EngineStore, named: Named) -> str:
    """Why an imported release must stay, "" if it need not. Raises EngineRefused where the book cannot be read.

    What nobody has read yet is for whoever is on duty under its name, if that is another package.
    """
    release = store.book(named.engine_id).releases.get(named.release)
    if release is None or not config.journal_path.exists():
        return ""
    duty = store.on_duty(named.engine_id)
    others = [one for one in (duty.active, duty.shadow) if one is not None and one.release != named.release]
    has_heir = any(_version(store, one) == release.version for one in others)
    with open_journal(config) as journal:
        key = f"{named.engine_id}@{release.version}"
        is_owed = jobs.is_any_of(journal, key, release.package_sha256, reads=not has_heir)
    return "results of it are still to be reported" if is_owed else ""


def _version(store: EngineStore, named: Named) -> str:
    """Nothing where it cannot be read."""
    if known := store.book(named.engine_id).releases.get(named.release):
        return known.version
    try:
        return engine_package.load_manifest(named.folder).manifest.version
    except PackageInvalid:
        return ""
