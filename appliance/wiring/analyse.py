"""The analyse process: what is settled before its parts are imported, which are in `analysis`."""

import importlib
import os
import resource
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from appliance.config import Config
from appliance.life import Life
from appliance.logs import configure
from appliance.wiring import resting
from appliance.wiring.common import EX_OK, MB, open_spool, wait_until_proved

NICE = 10  # reading and building may take seconds; what receive and forward do takes milliseconds, and goes first
#: pydicom imports them where it finds them. Only the reader child decodes.
DECODERS = frozenset({"gdcm", "jpeg_ls", "openjpeg", "pylibjpeg", "rle"})
#: So it does these, to download what its own tests need.
DOWNLOADERS = frozenset({"requests", "tqdm"})


class NoDecoders(MetaPathFinder):
    """To this process the decoders are not installed: none can run here, and none takes memory. Nor are downloaders."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - the protocol's signature
        target: ModuleType | None = None,  # noqa: ARG002 - the protocol's signature
    ) -> ModuleSpec | None:
        first = fullname.partition(".")[0]
        if first in DOWNLOADERS:
            raise ModuleNotFoundError(f"{fullname} has nothing to download", name=fullname)
        if first in DECODERS:
            raise ModuleNotFoundError(f"{fullname} is for the reader child", name=fullname)
        return None


def run(config: Config, life: Life) -> int:
    os.nice(NICE)
    _limit_memory(config.analyse.read_memory_mb * MB)
    log = configure("analyse").info
    spool = open_spool(config, "results")
    if not wait_until_proved(spool, life, log):
        return EX_OK
    journal = resting.opened(config, spool, log)
    if resting.is_idle(config, journal):
        return resting.run(config, journal, spool, life, log)
    sys.meta_path.insert(0, NoDecoders())
    return int(importlib.import_module("appliance.wiring.analysis").run(config, journal, spool, life, log))


def _limit_memory(size: int) -> None:
    """What this process may write to. Its children have limits of their own.

    RLIMIT_DATA and not RLIMIT_AS, which would count the volumes that are mapped from disk, and what is only reserved.
    """
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (size if most == resource.RLIM_INFINITY else min(size, most), most))
