"""The servers that run engines of this box while they can: one for each engine whose configuration names one."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from appliance.config import Config, Remote, RemoteTls
from appliance.engine_manifest import Tensor
from appliance.imaging import golden
from appliance.ports import LoadedEngine
from appliance.runtimes.channel import TensorSpec
from appliance.runtimes.fallback import Preferred, WithFallback
from appliance.runtimes.process import ChildRuntime, ChildSettings
from appliance.stages.desk import EngineOnDuty

REAP_S = 2.0  # of a child that only waits for an answer
TEND_S = 20.0  # for looking whether a server is back


class Remotes:
    """Used by the thread that runs engines."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._there: list[WithFallback] = []

    def before(self, engine: EngineOnDuty, local: LoadedEngine) -> LoadedEngine:
        """What serves: the server and then `local`, which is verified, or only that where no server is named."""
        options = self._config.engine(engine.package.manifest.id)
        if options is None or options.remote is None:
            return local
        remote = WithFallback(self._runtime(options.remote), local, _wanted(engine, options.remote))
        remote.tend()
        self._there.append(remote)
        return remote

    def tend(self, cancelled: Callable[[], bool]) -> None:
        self._there = [remote for remote in self._there if not remote.closed]
        for remote in self._there:
            remote.tend(cancelled)

    def _runtime(self, options: Remote) -> ChildRuntime:
        """By our own interpreter, which has the client: the engines' one is a device's perhaps."""
        return ChildRuntime(
            ChildSettings(
                interpreter=Path(sys.executable),
                runtime="kserve",
                memory_mb=self._config.analyse.memory_mb,
                reap_s=REAP_S,
                runtime_settings=_settings(options),
            )
        )


def _wanted(engine: EngineOnDuty, options: Remote) -> Preferred:
    package = engine.package
    return Preferred(
        name=f"{options.model} at {options.url}",
        kind="the server",
        instead="this box",
        model=package.model_path,
        sha256=package.model_sha256,
        inputs=tensor_specs(package.manifest.inputs),
        outputs=tensor_specs(package.manifest.outputs),
        verify=partial(golden.fault, package),
        share=options.share,
        tend_s=TEND_S,
        max_message_bytes=options.max_message_mb << 20,
    )


def tensor_specs(tensors: Sequence[Tensor]) -> list[TensorSpec]:
    """Of a manifest, as a child tells its own."""
    return [TensorSpec(name=tensor.name, dtype=tensor.dtype, shape=tensor.shape) for tensor in tensors]


def _settings(options: Remote) -> dict[str, Any]:
    return {
        "url": str(options.url),
        "model": options.model,
        "connect_s": options.connect_s,
        "max_message_bytes": options.max_message_mb << 20,
        "tls": None if options.tls is None else _tls(options.tls),
    }


def _tls(options: RemoteTls) -> dict[str, str]:
    files = {"ca": options.ca, "certificate": options.certificate, "key": options.key}
    paths = {name: "" if source is None else str(source.file.absolute()) for name, source in files.items()}
    return {**paths, "server_name": str(options.server_name or "")}
