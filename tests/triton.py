"""A real Triton server on the processor, out of the wheel of nvidia-pytriton, in an environment of its own.

The wheel has the server and its Python backend; the model is a model.py that runs the engine's ONNX in ONNX Runtime.
The environment takes 450 MB and is thrown away, unless SCANSIDE_TRITON names a folder to keep it in.
"""

import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from appliance import engine_package
from appliance.engine_manifest import Tensor
from tests.acceptance.rig import free_port
from tests.missing import missing
from tests.waiting import eventually

PYTRITON = "nvidia-pytriton==0.7.0"  # with Triton 2.51.0
#: What Triton's Python backend and model.py need beside it; it was built against NumPy 1.
BESIDE = ("onnxruntime>=1.20,<2", "numpy>=1.26,<2")
INSTALL_S, READY_S, STOP_S = 900.0, 120.0, 20.0
TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "int64": "TYPE_INT64"}

MODEL = """
import os
import time
import triton_python_backend_utils as pb  # first: only after it the packages of the environment are found
import onnxruntime as ort

FOLDER = {folder!r}
INPUTS, OUTPUTS = {inputs!r}, {outputs!r}


class TritonPythonModel:
    def initialize(self, args):
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.net = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        while os.path.exists(os.path.join(FOLDER, "hold")):
            open(os.path.join(FOLDER, "held"), "w").close()
            time.sleep(0.02)
        return [self.answer(request) for request in requests]

    def answer(self, request):
        given = {{name: pb.get_input_tensor_by_name(request, name).as_numpy() for name in INPUTS}}
        answers = self.net.run(OUTPUTS, given)
        return pb.InferenceResponse([pb.Tensor(name, array) for name, array in zip(OUTPUTS, answers)])
"""


@dataclass(slots=True, kw_only=True)
class Server:
    """Something that serves ct-lesion; with a file `hold` in its folder it answers nothing, and makes one `held`."""

    folder: Path
    port: int
    name: str  #: as it calls itself
    process: subprocess.Popen[str]

    def kill(self) -> None:
        """At once, with all that it started."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def triton(folder: Path, engine: Path) -> Iterator[Server]:
    """Serves the engine of this folder, under its own name."""
    with environment(folder) as python:
        site = Path(_said(python, "import sysconfig; print(sysconfig.get_path('purelib'))"))
        _backend(site, folder / "backends")
        _repository(folder, engine)
        grpc, http = free_port(), free_port()
        command = [str(site / "pytriton" / "tritonserver" / "bin" / "tritonserver")]
        command += [f"--model-repository={folder / 'repository'}", f"--backend-directory={folder / 'backends'}"]
        command += ["--http-address=127.0.0.1", f"--http-port={http}", "--allow-metrics=false"]
        command += ["--grpc-address=127.0.0.1", f"--grpc-port={grpc}"]
        variables = {**os.environ, "LD_LIBRARY_PATH": str(site / "nvidia_pytriton.libs")}
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=variables, start_new_session=True, text=True
            )
        server = Server(folder=folder, port=grpc, name="triton", process=process)
        try:
            eventually(lambda: _is_ready(process, http, folder / "log"), READY_S, "Triton is ready")
            yield server
        finally:
            if process.poll() is None:
                server.kill()


@contextmanager
def environment(folder: Path) -> Iterator[Path]:
    """Its interpreter."""
    if platform.machine() not in ("x86_64", "aarch64"):
        missing(f"nvidia-pytriton has no wheel for {platform.machine()}")
    kept = os.environ.get("SCANSIDE_TRITON")
    venv = Path(kept) if kept else folder / "venv"
    python = venv / "bin" / "python"
    if not python.exists():
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, timeout=INSTALL_S)
        subprocess.run([*install, "--no-deps", PYTRITON], check=True, timeout=INSTALL_S)
        subprocess.run([*install, *BESIDE], check=True, timeout=INSTALL_S)
    try:
        yield python
    finally:
        if not kept:
            shutil.rmtree(venv)


def _backend(site: Path, target: Path) -> None:
    """Triton's Python backend, with the stub of this Python, which is told where the environment's packages are."""
    ours = target / "python"
    shutil.copytree(site / "pytriton" / "tritonserver" / "backends" / "python", ours)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stubs = site / "pytriton" / "tritonserver" / "python_backend_stubs"
    shutil.copy(stubs / version / "triton_python_backend_stub", ours)
    tools = ours / "triton_python_backend_utils.py"
    tools.write_text(f"import sys; sys.path.insert(0, {str(site)!r})\n{tools.read_text()}")


def _repository(folder: Path, engine: Path) -> None:
    manifest = engine_package.load(engine).manifest
    model = folder / "repository" / manifest.id
    (model / "1").mkdir(parents=True)
    shutil.copy(engine / manifest.model, model / "1" / "model.onnx")
    inputs, outputs = (", ".join(map(_tensor, tensors)) for tensors in (manifest.inputs, manifest.outputs))
    config = [f'name: "{manifest.id}"', 'backend: "python"', "max_batch_size: 0"]
    config += [f"input [{inputs}]", f"output [{outputs}]", "instance_group [{ kind: KIND_CPU count: 1 }]", ""]
    (model / "config.pbtxt").write_text("\n".join(config))
    names = {"inputs": [one.name for one in manifest.inputs], "outputs": [one.name for one in manifest.outputs]}
    (model / "1" / "model.py").write_text(MODEL.format(folder=str(folder), **names))


def _tensor(tensor: Tensor) -> str:
    return f'{{ name: "{tensor.name}" data_type: {TYPES[tensor.dtype]} dims: {list(tensor.shape)} }}'


def _said(python: Path, program: str) -> str:
    return subprocess.run(
        [python, "-c", program], check=True, capture_output=True, text=True, timeout=60
    ).stdout.strip()


def _is_ready(process: "subprocess.Popen[str]", port: int, log: Path) -> bool:
    assert process.poll() is None, f"Triton ended: {log.read_text()[-2000:]}"
    try:
        return httpx.get(f"http://127.0.0.1:{port}/v2/health/ready", timeout=2.0).status_code == 200
    except httpx.TransportError:
        return False
