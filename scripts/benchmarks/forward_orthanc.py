"""Orthanc as a sender: what it holds goes out by a job, asked for over its REST API."""

import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.report import BenchError
from benchmarks.rig import LOOPBACK, free_port, wait_until

START_S = 30.0
ANSWER_S = 3600.0


class Orthanc:
    """Started where the calling thread is, and asked from there; without Nagle's algorithm, as DCMTK is told."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._http = free_port()
        self._config = folder / "orthanc.json"
        options = {
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "DicomAet": "BENCH",
            "DicomServerEnabled": False,
            "HttpPort": self._http,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "Plugins": [],
            "DicomScuTimeout": 0,
        }
        self._config.write_text(json.dumps(options))

    def __enter__(self) -> Self:
        found = shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if not found:
            raise BenchError("Orthanc is not installed: on Debian or Ubuntu, RUNLEVEL=1 apt-get install orthanc")
        self._process = subprocess.Popen(
            [found, str(self._config)],
            env={**os.environ, "TCP_NODELAY": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until(self._answers, START_S, "Orthanc answers")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._process.kill()  # what it holds is thrown away
        self._process.wait()

    def load(self, files: Sequence[Path]) -> list[str]:
        """Give it these; returns its names of them."""
        return [str(self._ask("POST", "/instances", file.read_bytes())["ID"]) for file in files]

    def send(self, names: Sequence[str], host: str, port: int) -> float:
        """By a job that is waited for; in seconds. Raises BenchError where it fails."""
        begun = time.monotonic()
        asked = {"Resources": list(names), "Synchronous": True, "Timeout": 0}
        self._know(host, port)
        self._ask("POST", f"/modalities/pacs{port}/store", json.dumps(asked).encode())
        return time.monotonic() - begun

    def start_sending(self, names: Sequence[str], host: str, port: int) -> str:
        """By a job of its queue; returns the job's name."""
        self._know(host, port)
        asked = json.dumps({"Resources": list(names), "Synchronous": False, "Timeout": 0}).encode()
        return str(self._ask("POST", f"/modalities/pacs{port}/store", asked)["ID"])

    def cancel(self, job: str) -> None:
        self._ask("POST", f"/jobs/{job}/cancel", b"{}")

    def _know(self, host: str, port: int) -> None:
        self._ask("PUT", f"/modalities/pacs{port}", json.dumps(["STORESCP", host, port]).encode())

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise BenchError(f"Orthanc ended with status {self._process.returncode}")
        try:
            return "Version" in self._ask("GET", "/system", None)
        except BenchError:
            return False

    def _ask(self, method: str, path: str, body: bytes | None) -> dict[str, Any]:
        request = urllib.request.Request(f"http://{LOOPBACK}:{self._http}{path}", data=body, method=method)
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:  # noqa: S310 - the address above
                said = answer.read()
        except OSError as error:
            raise BenchError(f"Orthanc, asked for {path}: {error}") from error
        found = json.loads(said) if said.strip() else {}
        return found if isinstance(found, dict) else {}
