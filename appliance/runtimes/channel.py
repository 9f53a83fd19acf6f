"""The daemon's end of the socket to a runtime child: bounded, never blocking, believing nothing it has not checked.

The message format is `child.py`'s. A child may be stopped, dead, mad or slow: everything here ends when the caller's
patience does, and gives either a checked answer or an error.
"""

import json
import select
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from appliance.errors import RuntimeCancelled, RuntimeFailed
from appliance.model import Reason
from appliance.runtimes.child import AT_ONCE, HEADER

_CANCELLED_EVERY_S = 0.1
_MORE_SAID = "the child said more than it was asked"
_MAX_LENGTH = 2**40

Name = Annotated[str, Field(max_length=256)]
Dtype = Literal["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "bool"]


class Answer(BaseModel):
    """Base of what a child may say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ok: Literal[True]


class Hello(Answer):
    protocol: Literal[2]
    version: Name
    device: Name


class TensorSpec(BaseModel):
    """An input or output of a loaded model; -1 is a dimension of any length."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    dtype: Dtype
    shape: Annotated[tuple[Annotated[int, Field(ge=-1, le=_MAX_LENGTH)], ...], Field(max_length=16)]

    @property
    def bytes_if_fixed(self) -> int | None:
        """None where a dimension has any length."""
        return None if -1 in self.shape else prod(self.shape) * np.dtype(self.dtype).itemsize

    def mismatch(self, dtype: np.dtype[Any], shape: Sequence[int]) -> str:
        """What is wrong with an array of that kind, "" if nothing is."""
        if dtype != np.dtype(self.dtype):
            return f"{self.name} is {dtype.name}, not {self.dtype}"
        same_rank = len(shape) == len(self.shape)
        if same_rank and all(want in (-1, got) for want, got in zip(self.shape, shape, strict=True)):
            return ""
        return f"{self.name} has the shape {tuple(shape)}, not {self.shape}"


class ArraySpec(TensorSpec):
    """An array that is really there."""

    shape: Annotated[tuple[Annotated[int, Field(ge=0, le=_MAX_LENGTH)], ...], Field(max_length=16)]

    @property
    def size(self) -> int:
        """Bytes."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize


class Loaded(Answer):
    inputs: Annotated[tuple[TensorSpec, ...], Field(max_length=64)]
    outputs: Annotated[tuple[TensorSpec, ...], Field(max_length=64)]
    device: Name = ""  #: where it is known no sooner than this


class RanAgain(Answer):
    """`outputs` is None where they are of the kinds, and at the places, of the run before."""

    outputs: Annotated[tuple[ArraySpec, ...], Field(max_length=64)] | None = None
    offsets: Annotated[tuple[Annotated[int, Field(ge=0, le=_MAX_LENGTH)], ...], Field(max_length=64)] = ()
    run_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    note: Name = ""  #: how it went, as the runtime says


class Ran(RanAgain):
    outputs: Annotated[tuple[ArraySpec, ...], Field(max_length=64)]


class Done(Answer):
    """Nothing more to say."""


class _Refusal(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    ok: Literal[False]
    reason: Literal["runtime", "model", "run", "memory"]
    detail: Annotated[str, Field(max_length=500)]


A = TypeVar("A", bound=Answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait, and when to stop waiting before."""

    what: str  #: is done meanwhile, for the message
    seconds: float
    until: float  #: time.monotonic()
    cancelled: Callable[[], bool]

    @classmethod
    def of(cls, what: str, seconds: float, cancelled: Callable[[], bool] = lambda: False) -> Self:
        return cls(what=what, seconds=seconds, until=time.monotonic() + seconds, cancelled=cancelled)

    @property
    def left_s(self) -> float:
        """Seconds; never below 0."""
        return max(0.0, self.until - time.monotonic())

    def at_most(self, other: "Patience") -> "Patience":
        """Whichever ends first; cancelled by ours."""
        if self.until <= other.until:
            return self
        return Patience(what=other.what, seconds=other.seconds, until=other.until, cancelled=self.cancelled)

    def wait(self, connection: socket.socket, event: int) -> None:
        """Until the socket is ready. Raises RuntimeFailed(DEADLINE) or RuntimeCancelled."""
        poller = select.poll()
        poller.register(connection, event)
        while not poller.poll(min(self.check(), _CANCELLED_EVERY_S) * 1000):
            pass

    def check(self) -> float:
        """Seconds left, more than 0. Raises as `wait`."""
        if self.cancelled():
            raise RuntimeCancelled(Reason.ENGINE_FAILED, f"{self.what} was cancelled")
        left = self.until - time.monotonic()
        if left <= 0:
            raise RuntimeFailed(Reason.DEADLINE, f"{self.what} passed its deadline of {self.seconds:g} s")
        return left


class Channel:
    """One request, one answer. After any error the channel is of no more use: the child is to be killed."""

    def __init__(self, connection: socket.socket, max_answer: int) -> None:
        connection.setblocking(False)
        self._max_answer = max_answer
        self._socket = connection

    def ask(self, request: dict[str, Any], files: Sequence[int], kind: type[A], patience: Patience) -> A:
        """Raises EOFError or OSError when the child is gone, RuntimeFailed for everything else that can go wrong."""
        self._expect_silence()
        body = json.dumps(request).encode()
        self._send(HEADER.pack(len(body)) + body, files, patience)
        return _checked(self._receive(patience), kind)

    def close(self) -> None:
        self._socket.close()

    def _send(self, message: bytes, files: Sequence[int], patience: Patience) -> None:
        patience.check()
        left, fds = memoryview(message), list(files)
        while left:
            try:
                sent = socket.send_fds(self._socket, [left], fds) if fds else self._socket.send(left)
            except BlockingIOError:
                patience.wait(self._socket, select.POLLOUT)
                continue
            left, fds = left[sent:], []  # the descriptors go with the first byte

    def _receive(self, patience: Patience) -> bytearray:
        """One answer, and not a byte more: what is said unasked would pass for the answer to the next request."""
        read = bytearray(self._some(AT_ONCE, patience))
        while len(read) < HEADER.size:
            read += self._some(HEADER.size - len(read), patience)
        (size,) = HEADER.unpack_from(read)
        if size > self._max_answer:
            raise RuntimeFailed(Reason.ENGINE_FAILED, f"the child's answer is too long: {size} bytes")
        whole = HEADER.size + size
        while len(read) < whole:
            read += self._some(whole - len(read), patience)
        if len(read) > whole:
            raise RuntimeFailed(Reason.ENGINE_FAILED, _MORE_SAID)
        return read[HEADER.size :]

    def _expect_silence(self) -> None:
        with suppress(BlockingIOError):
            if self._socket.recv(1, socket.MSG_PEEK):
                raise RuntimeFailed(Reason.ENGINE_FAILED, _MORE_SAID)
            raise EOFError

    def _some(self, most: int, patience: Patience) -> bytes:
        patience.wait(self._socket, select.POLLIN)
        if part := self._socket.recv(most):
            return part
        raise EOFError


def _checked(body: bytearray, kind: type[A]) -> A:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        nonsense = f"the child answered nonsense: {'.'.join(map(str, problem['loc']))} {problem['msg']}"
    try:
        refusal = _Refusal.model_validate_json(body)
    except ValidationError:
        raise RuntimeFailed(Reason.ENGINE_FAILED, nonsense) from None
    reason = Reason.NO_ENGINE if refusal.reason in ("runtime", "model") else Reason.ENGINE_FAILED
    raise RuntimeFailed(reason, refusal.detail)
