"""KServe v2 over gRPC to a Triton server, inside the runtime child. Imported by `child.py` by path; 3.10-clean like it.

It lives in a child because gRPC is a large library with threads of its own that reads what a stranger sends: there it
has a limit of memory, a deadline that is kept by a kill, and neither journal nor images. It has a child of its own,
beside the one that runs the engine here, so that this one is there and warm whatever becomes of the server.

One child is one connection (one_connection), since what answers on another need not be what was verified: after a
loss a new child is asked, and verified. Where the server names versions, the
one that was there at `load` is asked for until the end.

Only arrays and the names of tensors leave the box: no name, no UID, no request id. The model file given to `load` is
the engine of this box, hashed like any other; the server has its own copy, whose bytes nobody here can hash.
"""

import math
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Tuple

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as wire
from tritonclient.grpc import service_pb2_grpc

from appliance.runtimes.one_connection import OneConnection

Array = NDArray[np.generic]
Spec = Dict[str, Any]

DTYPES = {
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "BOOL": "bool",
}
_DATATYPES = {dtype: datatype for datatype, dtype in DTYPES.items()}
_LATER_S = 1.0  # who asked gives up first, and kills us
_MAX_WORDS = 300
_NEVER_MS = 2**31 - 1
_KEEPALIVE_MS = 310_000  # a server of the usual settings takes a ping each 300 s from a client that is silent


class KServe:
    """The child's Backend: one model of one server, over one connection."""

    def __init__(self, url: str, model: str, connect_s: float, line: OneConnection, channel: grpc.Channel) -> None:
        """`channel` is over `line`. Raises RuntimeError or ConnectionError where no server is ready there."""
        self.deadline_s = connect_s
        self._url, self._model, self._connect_s = url, model, connect_s
        self._version = ""
        self._outputs: List[Spec] = []
        self._line, self._channel = line, channel
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        if not self._ask(self._stub.ServerReady, wire.ServerReadyRequest()).ready:
            raise RuntimeError(f"the server at {url} is not ready")
        server = self._ask(self._stub.ServerMetadata, wire.ServerMetadataRequest())
        self._server = _words(server.name)[:64] or "server"
        self.version = _words(server.version)[:64] or "unknown"
        self.device = self._place()

    def load(self, model: bytes) -> Tuple[List[Spec], List[Spec]]:  # noqa: ARG002 - the server has its own
        if not self._ask(self._stub.ModelReady, wire.ModelReadyRequest(name=self._model)).ready:
            raise RuntimeError(f"the model {self._model} is not ready at {self._url}")
        found = self._ask(self._stub.ModelMetadata, wire.ModelMetadataRequest(name=self._model))
        self._version = _newest(found.versions)
        self._outputs = _specs(found.outputs)
        self.device = self._place()
        return _specs(found.inputs), self._outputs

    def run(self, inputs: Dict[str, Array]) -> Dict[str, Array]:
        request = wire.ModelInferRequest(model_name=self._model, model_version=self._version)
        for name, array in inputs.items():
            request.inputs.add(name=name, datatype=_DATATYPES[array.dtype.name], shape=array.shape)
            request.raw_input_contents.append(array.tobytes())
        for spec in self._outputs:
            request.outputs.add(name=spec["name"])
        if self._line.lost:
            raise ConnectionError(self._loss)
        answer = self._ask(self._stub.ModelInfer, request, self.deadline_s + _LATER_S)
        if self._version and answer.model_version != self._version:
            raise RuntimeError(f"version {_words(answer.model_version)!r} answered instead of {self._version!r}")
        arrays = _arrays(answer)
        if missing := [spec["name"] for spec in self._outputs if spec["name"] not in arrays]:
            raise RuntimeError(f"the server left out {', '.join(missing)}")
        return {spec["name"]: arrays[spec["name"]] for spec in self._outputs}

    def _place(self) -> str:
        version = f" version {self._version}" if self._version else ""
        return f"{self._server} at {self._url}, model {self._model}{version}"

    def _ask(self, call: Any, request: Any, timeout_s: Optional[float] = None) -> Any:
        """Raises ConnectionError where nobody is there, RuntimeError for whatever goes wrong over there."""
        try:
            answer = call(request, timeout=self._connect_s if timeout_s is None else timeout_s)
        except grpc.RpcError as error:
            gone = error.code() is grpc.StatusCode.UNAVAILABLE
            kind = ConnectionError if gone or self._line.lost else RuntimeError
            lost = f"{self._loss}: " if self._line.lost else ""
            raise kind(f"{lost}{error.code().name}: {_words(error.details())[:_MAX_WORDS]}") from error
        if self._line.lost:  # right after it, perhaps; but then nobody knows
            raise ConnectionError(self._loss)
        return answer

    @property
    def _loss(self) -> str:
        return f"the connection to {self._url} was lost"


def open_backend(  # noqa: PLR0913 - what `child.py` calls; its settings come as words
    threads: int,  # noqa: ARG001 - there is nothing to compute here
    *,
    url: str,
    model: str,
    connect_s: float,
    max_message_bytes: int,
    tls: Optional[Dict[str, str]] = None,
) -> KServe:
    """`tls`: the PEM files `ca`, `certificate` and `key`, and `server_name`, each or "". Raises as KServe does."""
    options: List[Tuple[str, Any]] = [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),
        ("grpc.service_config_disable_resolution", 1),  # no questions to DNS beyond the address
        ("grpc.client_idle_timeout_ms", _NEVER_MS),
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    host, _, port = url.rpartition(":")
    host = host.strip("[]")
    credentials = None if tls is None else _credentials(tls)
    try:
        line = OneConnection(host, int(port), connect_s)
    except OSError as error:
        raise ConnectionError(f"UNAVAILABLE: {url}: {error.strerror or error}") from error
    if tls is None:
        options.append(("grpc.default_authority", url))
        return KServe(url, model, connect_s, line, grpc.insecure_channel(line.target, options))
    options.append(("grpc.ssl_target_name_override", tls["server_name"] or host))
    return KServe(url, model, connect_s, line, grpc.secure_channel(line.target, credentials, options))


def _credentials(tls: Dict[str, str]) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(_file(tls["ca"]), _file(tls["key"]), _file(tls["certificate"]))


def _file(path: str) -> Optional[bytes]:
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise RuntimeError(f"{path} cannot be read: {error.strerror}") from error


def _specs(tensors: Iterable[Any]) -> List[Spec]:
    """Raises ValueError for what is no plain tensor."""
    specs = []
    for tensor in tensors:
        if tensor.datatype not in DTYPES:
            kind = _words(tensor.datatype)[:32]
            raise ValueError(f"{_words(tensor.name)[:64]} is {kind}: only tensors of numbers can be passed")
        shape = [length if length >= 0 else -1 for length in tensor.shape]
        specs.append({"name": tensor.name, "dtype": DTYPES[tensor.datatype], "shape": shape})
    return specs


def _arrays(answer: Any) -> Dict[str, Array]:
    """What the server answered, believed only where kind, shape and length agree. Raises RuntimeError."""
    if len(answer.outputs) != len(answer.raw_output_contents):
        raise RuntimeError("the server answered nonsense: outputs without their bytes")
    arrays: Dict[str, Array] = {}
    for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
        shape = tuple(output.shape)
        dtype = np.dtype(DTYPES.get(output.datatype, "V1"))
        if dtype.kind == "V" or any(length < 0 for length in shape):
            raise RuntimeError("the server answered nonsense: no tensor of numbers")
        if len(raw) != math.prod(shape) * dtype.itemsize:
            raise RuntimeError(f"the server answered nonsense: {len(raw)} bytes for {shape} of {dtype.name}")
        arrays[output.name] = np.frombuffer(raw, dtype).reshape(shape)
    return arrays


def _newest(versions: Iterable[str]) -> str:
    """The version that a server answers with when none is asked for; "" where it names none, or not by numbers."""
    numbers = [int(version) for version in versions if version.isascii() and version.isdigit() and len(version) < 19]
    return str(max(numbers)) if numbers else ""


def _words(text: Optional[str]) -> str:
    """What a server says, as it may stand in a line of a log or a result."""
    return "".join(letter if " " <= letter <= "~" else " " for letter in text or "")
