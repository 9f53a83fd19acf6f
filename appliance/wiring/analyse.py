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
from appliance.wiring.common import MB

NICE = 10  # reading and building may take seconds; what receive and forward do takes milliseconds, and goes first
#: pydicom imports them where it finds them. Only the reader child decodes.
DECODERS = frozenset({"gdcm", "jpeg_ls", "openjpeg", "pylibjpeg", "rle"})


class NoDecoders(MetaPathFinder):
    """To this process the decoders are not installed: none can run here, and none takes memory."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - the protocol's signature
        target: ModuleType | None = None,  # noqa: ARG002 - the protocol's signature
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] in DECODERS:
            raise ModuleNotFoundError(f"{fullname} is for the reader child", name=fullname)
        return None


def run(config: Config, life: Life) -> int:
    os.nice(NICE)
    _limit_memory(config.analyse.read_memory_mb * MB)
    sys.meta_path.insert(0, NoDecoders())
    return int(importlib.import_module("appliance.wiring.analysis").run(config, life))


def _limit_memory(size: int) -> None:
    """What this process may write to. Its children have limits of their own.

    RLIMIT_DATA and not RLIMIT_AS, which would count the volumes that are mapped from disk, and what is only reserved.
    """
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (size if most == resource.RLIM_INFINITY else min(size, most), most))
