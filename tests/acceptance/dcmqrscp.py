"""DCMTK's dcmqrscp as the PACS: it stores and answers queries, and knows no storage commitment."""

import os
import subprocess
from pathlib import Path
from typing import Self

from tests.acceptance.rig import free_port
from tests.missing import missing
from tests.waiting import eventually, listens_at

DCMQRSCP = Path("/usr/bin/dcmqrscp")
START_S = STOP_S = 30.0


class Dcmqrscp:
    """Loopback only, a process of its own for each association; ended by its process id."""

    def __init__(self, folder: Path, ae_title: str = "OLDPACS") -> None:
        if not DCMQRSCP.exists():
            missing("DCMTK's dcmqrscp is not installed")
        self.port, self._folder = free_port(), folder
        (folder / "db").mkdir(parents=True)
        self._config = folder / "dcmqrscp.cfg"
        self._config.write_text(
            f"NetworkTCPPort = {self.port}\nMaxPDUSize = 16384\nMaxAssociations = 16\n"
            "HostTable BEGIN\nHostTable END\nVendorTable BEGIN\nVendorTable END\n"
            f"AETable BEGIN\n{ae_title} {folder / 'db'} RW (200, 1024mb) ANY\nAETable END\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(DCMQRSCP), "-c", str(self._config)],
                env={**os.environ, "TCP_NODELAY": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            eventually(lambda: listens_at(self.port), START_S, "dcmqrscp listens")
        except AssertionError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def files(self) -> list[Path]:
        return [path for path in (self._folder / "db").iterdir() if path.name != "index.dat"]
