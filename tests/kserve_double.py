"""A server that speaks KServe v2 over gRPC as Triton does, for tests: health, metadata, inference.

In a test: `serving(Double(...))`. As a program, `python -m tests.kserve_double FOLDER`, where the folder holds
`<model>/model.onnx` for each model: it prints its port, and runs models in runtime children of ours, which end with the
call that asked. It reads a model anew when its bytes change. While there is a file `hold` in FOLDER it answers no
inference, and makes a file `held` when it is asked for one.
"""

import hashlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as wire
from tritonclient.grpc import service_pb2_grpc

from appliance.errors import RuntimeFailed
from appliance.ports import Array
from appliance.runtimes.channel import TensorSpec
from appliance.runtimes.kserve import DTYPES
from appliance.runtimes.process import ChildEngine, ChildRuntime, ChildSettings

DATATYPES = {dtype: datatype for datatype, dtype in DTYPES.items()}
UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
LOOK_S = 0.02

Run = Callable[[Mapping[str, Array], Callable[[], bool]], Mapping[str, Array]]


class Refusal(Exception):
    """Answered with this gRPC status."""

    def __init__(self, code: grpc.StatusCode, words: str) -> None:
        super().__init__(words)
        self.code = code


@dataclass(kw_only=True)
class Model:
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    run: Run
    versions: Sequence[str] = ("1",)


@dataclass(kw_only=True)
class Double(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Serves `models`; `spoil` may alter each answer, and sees what was asked."""

    models: Mapping[str, Model]
    ready: bool = True
    spoil: Callable[[Any], Any] = lambda answer: answer
    asked: list[Any] = field(default_factory=list)

    def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802 - gRPC's names and signature
        return wire.ServerReadyResponse(ready=self.ready)

    def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        return wire.ServerMetadataResponse(name="double", version="1.0")

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        with told(context):
            return wire.ModelReadyResponse(ready=self._model(request.name) is not None)

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        with told(context):
            model = self._model(request.name)
            answer = wire.ModelMetadataResponse(name=request.name, versions=model.versions, platform="double")
            for ours, theirs in ((model.inputs, answer.inputs), (model.outputs, answer.outputs)):
                for spec in ours:
                    theirs.add(name=spec.name, datatype=DATATYPES[spec.dtype], shape=spec.shape)
            return answer

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.asked.append(request)
        with told(context):
            model = self._model(request.model_name)
            outputs = model.run(_inputs(request), lambda: not context.is_active())
            version = request.model_version or (model.versions[-1] if model.versions else "")
            answer = wire.ModelInferResponse(model_name=request.model_name, model_version=version)
            for wanted in request.outputs:
                array = outputs[wanted.name]
                answer.outputs.add(name=wanted.name, datatype=DATATYPES[array.dtype.name], shape=array.shape)
                answer.raw_output_contents.append(array.tobytes())
            return self.spoil(answer)

    def _model(self, name: str) -> Model:
        if name not in self.models:
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{name}' is not found")
        return self.models[name]


def _inputs(request: Any) -> dict[str, Array]:
    return {
        tensor.name: np.frombuffer(raw, DTYPES[tensor.datatype]).reshape(tuple(tensor.shape))
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
    }


@contextmanager
def told(context: Any) -> Iterator[None]:
    try:
        yield
    except Refusal as refusal:
        context.abort(refusal.code, str(refusal))
    except RuntimeFailed as error:
        context.abort(grpc.StatusCode.INTERNAL, str(error))


@contextmanager
def serving(double: Double, port: int = 0, credentials: Any = None) -> Iterator[int]:
    """Yields the port on 127.0.0.1. In the end calls are broken off."""
    server = grpc.server(ThreadPoolExecutor(8), options=UNLIMITED)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(double, server)
    address = f"127.0.0.1:{port}"
    bound = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    server.start()
    try:
        yield bound
    finally:
        server.stop(None).wait()


class Repository(Mapping[str, Model]):
    """Models of a folder, each run in a child that lives as long as the thread that loads them: this one's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runtime = ChildRuntime(ChildSettings(interpreter=Path(sys.executable), memory_mb=600))
        self._loader = ThreadPoolExecutor(1)
        self._lock = threading.Lock()
        self._loaded: dict[str, tuple[str, ChildEngine]] = {}

    def __getitem__(self, name: str) -> Model:
        with self._lock:
            engine = self._loader.submit(self._engine, name).result()
        return Model(
            inputs=engine.inputs,
            outputs=engine.outputs,
            run=lambda inputs, gone: self._run(engine, inputs, gone),
        )

    def _run(self, engine: ChildEngine, inputs: Mapping[str, Array], gone: Callable[[], bool]) -> Mapping[str, Array]:
        while (self._folder / "hold").exists() and not gone():
            (self._folder / "held").touch()
            time.sleep(LOOK_S)
        return self._loader.submit(engine.infer, inputs, 600.0, gone).result()

    def __contains__(self, name: object) -> bool:
        return (self._folder / str(name) / "model.onnx").exists()

    def __iter__(self) -> Iterator[str]:
        return (path.name for path in self._folder.iterdir())

    def __len__(self) -> int:
        return len(list(self._folder.iterdir()))

    def _engine(self, name: str) -> ChildEngine:
        path = self._folder / name / "model.onnx"
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        known, engine = self._loaded.get(name, ("", None))
        if engine is None or known != sha256:
            if engine is not None:
                engine.close()
                del self._loaded[name]
            self._loaded[name] = sha256, self._runtime.load(path, sha256)
        return self._loaded[name][1]


def main() -> None:
    """Ends with whoever started it: when stdin does."""
    with serving(Double(models=Repository(Path(sys.argv[1])))) as port:
        sys.stdout.write(f"{port}\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
