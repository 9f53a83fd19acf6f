"""Single values of the configuration: each check says what is wrong and what to type instead."""

import os
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, PlainValidator, ValidationInfo

from appliance.config.words import closest, shown

Network = IPv4Network | IPv6Network
IpAddress = IPv4Address | IPv6Address

_UID = re.compile(r"(?:0|[1-9][0-9]*)(?:\.(?:0|[1-9][0-9]*))+")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ENGINE_ID = re.compile(r"[a-z0-9][a-z0-9-]*")
_CODE_STRING = re.compile(r"[A-Z0-9_ ]{1,16}")
_HOST_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_DAY_HOURS = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])\s*-\s*([01]?[0-9]|2[0-3]):([0-5][0-9])", re.ASCII)
_PATH = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%/-]{0,1000}")  # RFC 3986 3.3
_OTHERS = "default"


def ae_title(text: str) -> str:
    """An AE title without its padding: 1 to 16 characters of the default repertoire (PS3.5 6.2, VR AE)."""
    title = text.strip(" ")
    if not title:
        raise ValueError("an AE title needs at least one character that is not a space")
    if len(title) > 16:
        raise ValueError(f"{shown(title)} has {len(title)} characters: an AE title has at most 16")
    if "\\" in title:
        raise ValueError(f"{shown(title)} has a backslash: an AE title may not")
    if not all(" " <= character <= "~" for character in title):
        raise ValueError(f"{shown(title)}: an AE title has plain letters, digits and signs only, no accents")
    return title


def peer_title(text: str) -> str:
    """As `ae_title`; refuses the wildcard that other products know."""
    title = ae_title(text)
    if title == "*":
        raise ValueError("'*' is no wildcard here: name each device that may send")
    return title


def uid(text: str) -> str:
    """A UID: at most 64 characters, digits and dots, no leading zero in a component (PS3.5 9.1)."""
    if len(text) > 64 or not _UID.fullmatch(text):
        raise ValueError(f"{shown(text)} is no UID: digits and dots, at most 64, such as 1.2.840.10008.5.1.4.1.1.2")
    return text


def node_name(text: str) -> str:
    """Fits Station Name (0008,1010), VR SH: at most 16 characters."""
    return _name(text, 16)


def destination_name(text: str) -> str:
    return _name(text, 32)


def _name(text: str, longest: int) -> str:
    if len(text) > longest or not _NAME.fullmatch(text):
        raise ValueError(f"{shown(text)} is no name: letters, digits, '.', '_' and '-', at most {longest}, no spaces")
    return text


def engine_id(text: str) -> str:
    """The name of a folder under engines_dir; never a way out of it."""
    if len(text) > 64 or not _ENGINE_ID.fullmatch(text):
        raise ValueError(f"{shown(text)} is no engine id: lower case letters, digits and '-', at most 64")
    return text


def modality(text: str) -> str:
    """A modality code in upper case (0008,0060), VR CS."""
    code = text.strip(" ").upper()
    if not code or not _CODE_STRING.fullmatch(code):
        raise ValueError(f"{shown(text)} is no modality: a code such as CT, CR or DX")
    return code


def modality_or_default(text: str) -> str:
    """A modality code, or the word for all others; a misspelling of the word is no modality."""
    if text.lower() == _OTHERS:
        return _OTHERS
    if closest(text, (_OTHERS,), cutoff=0.7):
        raise ValueError(f"unknown key {shown(text)}; did you mean '{_OTHERS}'?")
    return modality(text)


def network(value: object) -> Network:
    """An IP address, or a network in CIDR form, of a device that may send."""
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    text = value.strip() if isinstance(value, str) else ""
    try:
        return ip_network(text)
    except ValueError:
        raise ValueError(_why_no_network(value, text)) from None


def _why_no_network(value: object, text: str) -> str:
    try:
        around = ip_network(text, strict=False)
    except ValueError:
        return f"{shown(value)} is no IP address (192.0.2.10) or network (192.0.2.0/24); a host name will not do"
    device = text.partition("/")[0]
    return f"{shown(text)}: write {around} for the whole network, or {device} for the one device"


def bind_address(text: str) -> str:
    """The address of our own network card that we listen on."""
    try:
        return str(ip_address(text.strip()))
    except ValueError:
        raise ValueError(
            f"{shown(text)} is no IP address of this box: 127.0.0.1 for itself only, 0.0.0.0 for every network card"
        ) from None


def host(text: str) -> str:
    """A host name or IP address, without port, scheme or path."""
    name = text.strip().rstrip(".")
    try:
        return str(ip_address(name))
    except ValueError:
        pass
    if "/" in name:
        raise ValueError(f"{shown(text)}: only the host name or IP address, no '/' and nothing before it")
    if re.fullmatch(r"[^:]+:[0-9]+", name):
        raise ValueError(f"{shown(text)}: write the number after ':' under the key 'port'")
    if re.fullmatch(r"[0-9.]+", name):
        raise ValueError(f"{shown(text)} is no IP address: four numbers from 0 to 255, such as 192.0.2.20")
    if not name or len(name) > 253 or not all(_HOST_LABEL.fullmatch(label) for label in name.split(".")):
        raise ValueError(f"{shown(text)} is no host name: letters, digits, '-' and '.', no spaces")
    return name


@dataclass(frozen=True, slots=True)
class HostPort:
    """Where somebody listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def host_port(value: object) -> HostPort:
    """HOST:PORT; an IPv6 address in brackets."""
    if isinstance(value, HostPort):
        return value
    text = value.strip() if isinstance(value, str) else ""
    name, colon, number = text.rpartition(":")
    bracketed = name.startswith("[") and name.endswith("]")
    if not colon or not number.isascii() or not number.isdigit() or (":" in name and not bracketed):
        raise ValueError(f"{shown(value)}: write HOST:PORT, such as 192.0.2.10:104 or [2001:db8::10]:104")
    if not 1 <= int(number[:6]) <= 65_535:
        raise ValueError(f"{shown(value)}: a port is a number from 1 to 65535")
    return HostPort(host(name[1:-1] if bracketed else name), int(number))


def folder(path: Path, info: ValidationInfo) -> Path:
    """The folder made absolute, symbolic links followed; relative paths start at the config file's folder."""
    if not path.parts:
        raise ValueError("the name of a folder is needed, such as ./var")
    return Path(os.path.realpath(beside_config(path, info)))


def program(path: Path, info: ValidationInfo) -> Path:
    """The program made absolute; its links stay, since a virtual environment's interpreter is one."""
    if len(path.parts) < 2:
        raise ValueError(f"{shown(str(path))}: give the whole path, such as /usr/bin/python3")
    return beside_config(path, info).absolute()


def beside_config(path: Path, info: ValidationInfo) -> Path:
    """The path as seen from the config file's folder."""
    if str(path).startswith("~"):
        raise ValueError(f"{shown(str(path))}: write the whole path, '~' is not looked up")
    return Path(str((info.context or {}).get("folder", ""))) / path


def certificate_name(text: str) -> str:
    """A name in a peer's certificate, CN or DNS: in full, since a wildcard is not one device."""
    name = text.strip()
    if "*" in name:
        raise ValueError(f"{shown(text)}: no wildcards; write the name in the device's certificate")
    if not name or len(name) > 253 or not name.isprintable():
        raise ValueError(f"{shown(text)} is no name: write the CN or DNS name in the device's certificate")
    return name


def reason(text: str) -> str:
    """Words for people, on one line."""
    words = " ".join(text.split())
    if sum(character.isalpha() for character in words) < 4:
        raise ValueError(f"{shown(text)} is no reason: say in words why")
    return words


LOOPBACK = ("127.0.0.1", "::1", "localhost")


def alert_url(text: str) -> str:
    """Where alerts are posted: https, or http on this box itself; no user or password in it."""
    parts = _url(text)
    if parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise ValueError(f"{shown(text)}: http is for this box itself only, elsewhere https")
    return text.strip()


def web_url(text: str) -> str:
    """The root of a DICOMweb service, to which /studies is added."""
    parts = _url(text)
    host(parts.hostname or "")
    if parts.query or parts.fragment or not _PATH.fullmatch(parts.path):
        raise ValueError(f"{shown(text)}: write https://HOST[:PORT]/PATH, with nothing after the path")
    if parts.path.rstrip("/").endswith("/studies"):
        raise ValueError(f"{shown(text)}: leave /studies out, it is added")
    return text.strip().rstrip("/")


def _url(text: str) -> SplitResult:
    refused = ValueError(f"{shown(text)}: write https://HOST[:PORT]/PATH, with no user or password in it")
    try:
        parts = urlsplit(text.strip())
        port_fits = parts.port is None or parts.port > 0
    except ValueError:
        raise refused from None
    if parts.scheme not in ("https", "http") or not parts.hostname or not port_fits or parts.username is not None:
        raise refused
    return parts


@dataclass(frozen=True, slots=True)
class DayHours:
    """From one minute of the local day to another; over midnight where the first is the later one."""

    first: int
    end: int

    def __str__(self) -> str:
        return f"{self.first // 60:02d}:{self.first % 60:02d}-{self.end // 60:02d}:{self.end % 60:02d}"


def day_hours(value: object) -> DayHours:
    """HH:MM-HH:MM, local time."""
    if isinstance(value, DayHours):
        return value
    found = _DAY_HOURS.fullmatch(value.strip()) if isinstance(value, str) else None
    hours = [int(number) for number in found.groups()] if found else [0, 0, 0, 0]
    first, end = hours[0] * 60 + hours[1], hours[2] * 60 + hours[3]
    if first == end:
        raise ValueError(f'{shown(value)}: write two different times in quotes, such as "19:00-07:00"')
    return DayHours(first, end)


AeTitle = Annotated[str, AfterValidator(ae_title)]
CertificateName = Annotated[str, AfterValidator(certificate_name)]
Reason = Annotated[str, AfterValidator(reason)]
PeerTitle = Annotated[str, AfterValidator(peer_title)]
Uid = Annotated[str, AfterValidator(uid)]
NodeName = Annotated[str, AfterValidator(node_name)]
DestinationName = Annotated[str, AfterValidator(destination_name)]
EngineId = Annotated[str, AfterValidator(engine_id)]
Modality = Annotated[str, AfterValidator(modality)]
ModalityOrDefault = Annotated[str, AfterValidator(modality_or_default)]
PeerNetwork = Annotated[Network, PlainValidator(network)]
BindAddress = Annotated[str, AfterValidator(bind_address)]
Host = Annotated[str, AfterValidator(host)]
AlertUrl = Annotated[str, AfterValidator(alert_url)]
WebUrl = Annotated[str, AfterValidator(web_url)]
Hours = Annotated[DayHours, PlainValidator(day_hours)]
PlainHostPort = Annotated[HostPort, PlainValidator(host_port)]
Folder = Annotated[Path, AfterValidator(folder)]
Program = Annotated[Path, AfterValidator(program)]
