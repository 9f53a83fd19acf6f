"""Orthanc as the PACS: somebody else's server, asked by its REST API what it holds."""

import http.client
import json
import os
import subprocess
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any, Self

from tests.acceptance.rig import free_port
from tests.missing import missing
from tests.waiting import eventually

ORTHANC = Path("/usr/sbin/Orthanc")
DICOM_WEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
START_S = 30.0
STOP_S = 30.0


def dicom_web_plugin() -> str:
    """For `Plugins`: Debian's orthanc-dicomweb."""
    if not DICOM_WEB.exists():
        missing("Orthanc's DICOMweb plugin is not installed")
    return str(DICOM_WEB)


class Orthanc:
    """Loopback only, no plugins unless named, takes everything from everybody; ended by its process id."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        """`changes` replace options of Orthanc's."""
        folder.mkdir(parents=True)
        self.port, self._http_port = free_port(), free_port()
        self._log = folder / "log"
        self._config = folder / "orthanc.json"
        options = {
            "Name": "PACS",
            "DicomAet": "PACS",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "DicomPort": self.port,
            "HttpPort": self._http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "Plugins": [],
            "DicomCheckCalledAet": False,
            "DicomAlwaysAllowStore": True,
            "UnknownSopClassAccepted": True,
            "OverwriteInstances": False,
            "MaximumPduLength": 131072,
            "ConcurrentJobs": 1,
            "HttpThreadsCount": 4,
        }
        self._config.write_text(json.dumps(options | changes))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(ORTHANC), str(self._config)],
                env={**os.environ, "TCP_NODELAY": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        eventually(self._is_up, START_S, f"Orthanc answers; its log is {self._log}")
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _is_up(self) -> bool:
        try:
            return "Version" in self.ask("/system")
        except OSError:
            return False

    @property
    def web_url(self) -> str:
        """Of its DICOMweb service, if it has that plugin."""
        return f"http://127.0.0.1:{self._http_port}/dicom-web"

    def read(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._http_port}{path}", timeout=30) as answer:
            return bytes(answer.read())

    def delete(self, path: str) -> None:
        asked = http.client.HTTPConnection("127.0.0.1", self._http_port, timeout=30)
        with closing(asked):
            asked.request("DELETE", path)
            assert asked.getresponse().status == 200

    def ask(self, path: str) -> Any:
        return json.loads(self.read(path))

    def instances(self) -> list[str]:
        """Orthanc's own ids."""
        return list(self.ask("/instances"))

    def files(self, folder: Path) -> list[Path]:
        """Each instance it holds, as the file it stored."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for name in self.instances():
            path = folder / f"{name}.dcm"
            path.write_bytes(self.read(f"/instances/{name}/file"))
            paths.append(path)
        return paths
