"""What concerns more than one option.

Works on the raw groups, not on the models: pydantic would look across options only when each of them is right, and a
technician should see every error at once. So it passes over whatever is not of the expected form; another message
tells that.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from appliance.config.messages import suggestion
from appliance.config.models import Config, Peer, Receive
from appliance.config.values import LOOPBACK
from appliance.config.words import shown
from appliance.config.yaml_lines import Document, KeyPath, Problem
from appliance.model import Commitment

Group = Mapping[str, Any]
Found = tuple[KeyPath, str]


def cross_checks(document: Document, folder: Path) -> Iterator[Problem]:
    """Every problem between options; `folder` is the config file's, where relative paths start."""
    data = document.data or {}
    found = (
        *_repeated(document, _entries(data, "destinations"), ("name",)),
        *_repeated(document, _entries(data, "engines"), ("id",)),
        *_repeated(document, _entries(data, "receive", "peers"), ("ae_title", "address")),
        *_slots(data),
        *_tls(data),
        *_commitment(data),
        *_plain_port(data),
        *_outbound_tls(data),
        *_web(data),
        *_unknown_engines(data),
        *_unknown_senders(data),
        *_to_ourselves(data),
        *_inside_state(data, folder),
    )
    for path, text in found:
        yield Problem(line=document.line_of(path), path=path, text=text)


def _repeated(document: Document, entries: Iterable[tuple[KeyPath, Group]], keys: tuple[str, ...]) -> Iterator[Found]:
    first: dict[tuple[str, ...], KeyPath] = {}
    for path, entry in entries:
        values = tuple(_text(entry, key) for key in keys)
        if not all(values):
            continue
        place = first.setdefault(tuple(value.casefold() for value in values), path)
        if place != path:
            line = document.line_of((*place, keys[0]))
            yield (*path, keys[0]), f"{' at '.join(map(shown, values))} stands twice, first in line {line}"


def _slots(data: Group) -> Iterator[Found]:
    receive = _group(data, "receive")
    in_all = _number(receive, "associations", Receive)
    per_peer = _number(receive, "associations_per_peer", Receive)
    if in_all is None or per_peer is None:
        return
    if per_peer > in_all:
        text = f"{per_peer} for one peer are more than the {in_all} of 'associations' in all"
        yield ("receive", "associations_per_peer"), text
    kept = 0
    for path, peer in _entries(data, "receive", "peers"):
        slots = _number(peer, "slots", Peer) or 0
        kept += slots
        if slots > per_peer:
            yield (*path, "slots"), f"{slots} are more than the {per_peer} of 'associations_per_peer'"
    if kept > in_all:
        yield ("receive", "associations"), f"the slots of all peers are {kept} together, more than {in_all}"


def _tls(data: Group) -> Iterator[Found]:
    receive = _group(data, "receive")
    tls, peers = _group(receive, "tls"), list(_entries(data, "receive", "peers"))
    required = bool(tls) and (_text(tls, "client_certificates") or "required") == "required"
    if required and not _text(tls, "ca"):
        yield ("receive", "tls"), "'ca' is missing: without it no client certificate can be checked"
    for path, peer in peers:
        name = _text(peer, "certificate")
        if name and not required:
            text = "receive.tls asks for none" if tls else "there is no receive.tls"
            yield (*path, "certificate"), f"nobody looks at it: {text} (client_certificates: required)"
        if not name and required and not _text(receive, "unencrypted_port"):
            text = "'certificate' is missing: client certificates are required, so this device could never come in"
            yield (*path, "ae_title"), text


def _commitment(data: Group) -> Iterator[Found]:
    """Reports go to an AE title, so what stands for one title must be said once, or alike."""
    said: dict[str, tuple[str, str, Group]] = {}
    for path, peer in _entries(data, "receive", "peers"):
        meaning, where, title = (_text(peer, key) for key in ("commitment", "reports_to", "ae_title"))
        if meaning and not where:
            yield (*path, "commitment"), "needs 'reports_to' beside it: the answer goes there, on a call of our own"
        if where and not meaning:
            yield (*path, "reports_to"), f"nothing is reported without 'commitment' ({' or '.join(Commitment)})"
        if meaning == Commitment.DELIVERED and not list(_entries(data, "destinations")):
            yield (*path, "commitment"), "'destinations' is empty: nothing could ever count as delivered"
        all_of_it = meaning, where, _group(peer, "reports_tls")
        if title and said.setdefault(title, all_of_it) != all_of_it:
            yield (*path, "ae_title"), f"{shown(title)} stands twice, with other commitment, reports_to or reports_tls"


def _plain_port(data: Group) -> Iterator[Found]:
    receive = _group(data, "receive")
    port, reason = _text(receive, "unencrypted_port"), _text(receive, "unencrypted_reason")
    if port and not reason:
        yield ("receive", "unencrypted_port"), "needs 'unencrypted_reason' beside it: say in words why"
    if reason and not port:
        yield ("receive", "unencrypted_reason"), "there is no 'unencrypted_port' it could be about"
    if port and not _group(receive, "tls"):
        yield ("receive", "unencrypted_port"), "without 'tls' the port itself is unencrypted: there is no second one"
    if port and port == str(_number(receive, "port", Receive)):
        yield ("receive", "unencrypted_port"), f"{port} is the port with TLS: choose another"


def _outbound_tls(data: Group) -> Iterator[Found]:
    groups = [((*path, "tls"), _group(one, "tls")) for path, one in _entries(data, "destinations")]
    for path, peer in _entries(data, "receive", "peers"):
        groups.append(((*path, "reports_tls"), _group(peer, "reports_tls")))
        if _group(peer, "reports_tls") and not _text(peer, "reports_to"):
            yield (*path, "reports_tls"), "there is no 'reports_to' it could be about"
    for path, engine in _entries(data, "engines"):
        groups.append(((*path, "remote", "tls"), _group(_group(engine, "remote"), "tls")))
    for path, tls in groups:
        for one, other in (("certificate", "key"), ("key", "certificate")):
            if _text(tls, one) and not _text(tls, other):
                yield (*path, one), f"needs '{other}' beside it"


def _web(data: Group) -> Iterator[Found]:
    """A bearer token is a password: who reads it on the way has it."""
    for path, destination in _entries(data, "destinations"):
        url = _text(destination, "url")
        if not url.startswith("http://"):
            continue
        if _group(destination, "tls"):
            yield (*path, "tls"), "is for https: the address under 'url' begins with http"
        if _text(destination, "token") and _host_of(url) not in LOOPBACK:
            yield (*path, "token"), "anybody on the way could read it: use https in 'url'"


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _unknown_engines(data: Group) -> Iterator[Found]:
    known = [_text(engine, "id") for _, engine in _entries(data, "engines")]
    named = [((*path, "engine"), _text(rule, "engine")) for path, rule in _entries(data, "priorities")]
    for path, when in _conditions(data):
        named += _list(when, "engine", path)
    for path, name in named:
        if name and name not in known:
            yield path, f"no engine {shown(name)} under 'engines'{suggestion(name, known)}"


def _unknown_senders(data: Group) -> Iterator[Found]:
    known = [_text(peer, "ae_title") for _, peer in _entries(data, "receive", "peers")]
    for path, when in _conditions(data):
        for where, title in _list(when, "calling_ae", path):
            if title not in known:
                yield where, f"no peer {shown(title)} under 'receive.peers'{suggestion(title, known)}"


def _to_ourselves(data: Group) -> Iterator[Found]:
    receive = _group(data, "receive")
    own = {_text(receive, "bind") or Receive.model_fields["bind"].default, "127.0.0.1", "::1", "localhost"}
    ports = {str(_number(receive, "port", Receive) or ""), _text(receive, "unencrypted_port")} - {""}
    for path, destination in _entries(data, "destinations"):
        port = _text(destination, "port")
        if port in ports and _text(destination, "host") in own:
            yield (*path, "host"), f"this is our own listener (port {port}): we would send everything to ourselves"
    for path, peer in _entries(data, "receive", "peers"):
        host, _, port = _text(peer, "reports_to").rpartition(":")
        if port in ports and host in own:
            yield (*path, "reports_to"), f"this is our own listener (port {port}): the device's own is needed"


def _inside_state(data: Group, folder: Path) -> Iterator[Found]:
    """A stranger's files among ours would be swept as leftovers."""
    state = _real(folder, _text(data, "state") or str(Config.model_fields["state"].default))
    ours = (state / "spool", state / "run")
    for path, destination in _entries(data, "destinations"):
        target = _real(folder, _text(destination, "path")) if _text(destination, "path") else None
        if target and (target == state or any(target.is_relative_to(own) for own in ours)):
            yield (*path, "path"), f"{shown(str(target))} is where we keep our own files: use another folder"


def _real(folder: Path, text: str) -> Path:
    return Path(os.path.realpath(folder / text))


def _conditions(data: Group) -> Iterator[tuple[KeyPath, Group]]:
    for path, destination in _entries(data, "destinations"):
        yield (*path, "when"), _group(destination, "when")


def _group(data: Group, key: str) -> Group:
    value = data.get(key)
    return value if isinstance(value, dict) else {}


def _entries(data: Group, *keys: str) -> Iterator[tuple[KeyPath, Group]]:
    for key in keys[:-1]:
        data = _group(data, key)
    value = data.get(keys[-1])
    for index, entry in enumerate(value if isinstance(value, list) else ()):
        if isinstance(entry, dict):
            yield (*keys, index), entry


def _list(data: Group, key: str, path: KeyPath) -> list[tuple[KeyPath, str]]:
    value = data.get(key)
    items = value if isinstance(value, list) else []
    return [((*path, key, index), item.strip()) for index, item in enumerate(items) if isinstance(item, str)]


def _text(data: Group, key: str) -> str:
    value = data.get(key)
    return value.strip() if isinstance(value, str) else ""


def _number(data: Group, key: str, model: type[Peer | Receive]) -> int | None:
    """The number under a key, or its default; None where something else stands."""
    text = _text(data, key)
    if data.get(key) is None:
        default = model.model_fields[key].default
        return default if isinstance(default, int) else None
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
