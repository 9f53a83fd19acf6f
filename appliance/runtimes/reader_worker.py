"""What the reader child does: one request, one answer, in the message format of `child`.

    hello                                             -> protocol
    header    path                                    -> header
    elements  path, tags                              -> elements: tag, vr, value (base64), little_endian
    same      a, b: image, frame                      -> same
    slice     image, plane              [memory]      -> the memory is filled: float32
    write     image, plane, offset      [volume]      -> the file is written at `offset`: int16
    film      image                     [memory]      -> the memory is filled: float32
    transcode path, syntax, most        [file]        -> size: of the Part 10 file that was written; seconds, cpu_s
    quit                                              -> and the child ends

An image is a path and what its header was read to say. Each answer has `ok`, and `cannot` (`reason`, `detail`) where
the file is at fault; what the volume cannot take is `ok: false`. From `hello` on nothing that is printed goes anywhere:
the words of libraries may quote a data set.
"""

import base64
import contextlib
import os
import resource
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from pydicom.dataelem import RawDataElement
from pydicom.uid import UID

from appliance.errors import CannotAnalyse, RuntimeFailed
from appliance.imaging.headers import ImageHeader, PixelLayout, Plane
from appliance.imaging.reading import IN_PROCESS, write_array
from appliance.imaging.transcode import transcode
from appliance.model import Reason
from appliance.runtimes.child import (
    MAX_DETAIL,
    QUIET_S,
    Message,
    confine,
    give_memory_back,
    open_wire,
    wait_behind,
)

PROTOCOL = 1
BUFFER = 1 << 20
MAX_ANSWER = 24 << 20  #: bytes; the planes of 60 000 frames take less, and a header holds no more


def serve(cpu_s: int) -> int:
    wait_behind(0)
    confine()
    warnings.simplefilter("ignore")
    wire = open_wire()
    with contextlib.suppress(EOFError, ConnectionError):
        request, files = wire.receive()
        while request["do"] != "quit":
            _allow(cpu_s)
            wire.send(_bounded(_answer(request, files)))
            if wire.is_quiet(QUIET_S):
                give_memory_back()
            request, files = wire.receive()
        wire.send({"ok": True})
    return 0


def _allow(cpu_s: int) -> None:
    """At least so many seconds of processor time from now on: the limit counts for the life of a process."""
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    ours = int(time.process_time()) + 1 + cpu_s
    resource.setrlimit(resource.RLIMIT_CPU, (ours if most == resource.RLIM_INFINITY else min(ours, most), most))


def _answer(request: Message, files: list[BinaryIO]) -> Message:
    do: dict[str, Callable[[Message, list[BinaryIO]], Message]] = {
        "hello": _hello,
        "header": _header,
        "elements": _elements,
        "same": _same,
        "slice": _slice,
        "write": _write,
        "film": _film,
        "transcode": _transcode,
    }
    try:
        return {"ok": True, **do[request["do"]](request, files)}
    except CannotAnalyse as error:
        return _cannot(str(error.reason), str(error))
    except RuntimeFailed as error:
        return {"ok": False, "reason": "run", "detail": str(error)[:MAX_DETAIL]}
    except MemoryError:
        return _cannot(Reason.UNDECODABLE, "the image takes more memory than may be used")
    finally:
        for file in files:
            file.close()


def _cannot(reason: str, detail: str) -> Message:
    return {"ok": True, "cannot": {"reason": reason, "detail": detail[:MAX_DETAIL]}}


def _bounded(answer: Message) -> Message:
    """A list that no real image needs is refused here; the parent would take it for madness."""
    planes = (answer.get("header") or {}).get("planes", ())
    if len(planes) > MAX_ANSWER // 400:
        return _cannot(Reason.UNDECODABLE, f"header: {len(planes)} frames are too many")
    return answer


def _hello(_request: Message, _files: list[BinaryIO]) -> Message:
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nothing, stream)
    os.close(nothing)
    return {"protocol": PROTOCOL}


def _header(request: Message, _files: list[BinaryIO]) -> Message:
    header = asdict(IN_PROCESS.header(Path(request["path"])))
    del header["path"]
    return {"header": header}


def _elements(request: Message, _files: list[BinaryIO]) -> Message:
    dataset = IN_PROCESS.elements(Path(request["path"]), request["tags"])
    raw = (dataset.get_item(tag) for tag in request["tags"])
    return {"elements": [_element(one) for one in raw if isinstance(one, RawDataElement)]}


def _element(raw: RawDataElement) -> Message:
    value = None if raw.value is None else base64.b64encode(raw.value).decode()
    return {"tag": int(raw.tag), "vr": raw.VR, "value": value, "little_endian": raw.is_little_endian}


def _same(request: Message, _files: list[BinaryIO]) -> Message:
    a, b = ((_image(request[key]), int(request[key]["frame"])) for key in ("a", "b"))
    return {"same": IN_PROCESS.same_pixels(a, b)}


def _slice(request: Message, files: list[BinaryIO]) -> Message:
    hu = IN_PROCESS.slice_hu(_image(request["image"]), Plane(**request["plane"]))
    write_array(files[0].fileno(), hu)
    return {}


def _write(request: Message, files: list[BinaryIO]) -> Message:
    IN_PROCESS.write_hu(_image(request["image"]), Plane(**request["plane"]), files[0].fileno(), int(request["offset"]))
    return {}


def _film(request: Message, files: list[BinaryIO]) -> Message:
    film = IN_PROCESS.film(_image(request["image"]))
    write_array(files[0].fileno(), film.image)
    return {}


def _transcode(request: Message, files: list[BinaryIO]) -> Message:
    begun, cpu_begun = time.monotonic(), time.process_time()
    with open(files[0].fileno(), "wb", BUFFER, closefd=False) as output:
        size = transcode(Path(request["path"]), output, UID(request["syntax"]), int(request["most"]))
    return {"size": size, "seconds": time.monotonic() - begun, "cpu_s": time.process_time() - cpu_begun}


def _image(said: Message) -> ImageHeader:
    """What reading pixels needs of a header."""
    layout = dict(said["layout"])
    layout["transfer_syntax_uid"] = UID(layout["transfer_syntax_uid"])
    layout["padding"] = layout["padding"] and tuple(layout["padding"])
    return ImageHeader(
        path=Path(said["path"]),
        sop_class_uid="",
        sop_instance_uid="",
        series_instance_uid="",
        modality="",
        image_type=(),
        body_part="",
        view_position="",
        kernels=(),
        tilt=0.0,
        slice_thickness=None,
        pixel_spacing=None,
        slope=said["slope"],
        intercept=said["intercept"],
        layout=PixelLayout(**layout),
        planes=(),
    )
