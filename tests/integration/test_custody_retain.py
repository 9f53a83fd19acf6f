"""Upkeep that one stubborn file must not stop."""

import errno

from tests.integration.test_retain import KEEP_MS, RULES, Store, store  # noqa: F401 - a fixture
from tests.journals import TO_PACS, count


def test_a_file_that_cannot_be_removed_stops_no_lane(store: Store) -> None:  # noqa: F811
    stubborn, other = store.keep(TO_PACS), store.keep(TO_PACS)
    store.settle("delivered")
    store.hands.ms += KEEP_MS

    def remove(file: str) -> None:
        if file == stubborn:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        store.spool.remove(file)

    retainer = store.retainer(remove)
    assert retainer.release_some() == 2
    assert (count(store.journal, "copy"), store.spool.files()) == (0, [stubborn])
    assert store.logged == ["not_removed"]
    assert other != stubborn
