"""Where certificates and keys are: files, or systemd credentials; never the configuration itself."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import PlainValidator, ValidationInfo

from appliance.config.values import beside_config
from appliance.config.words import shown

_CREDENTIAL = "credential:"
_TOKEN = re.compile(rb"[A-Za-z0-9._~+/-]+=*")  # RFC 6750 2.1
_LONGEST_TOKEN = 1 << 14
_OTHERS = 0o007
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,254}")


@dataclass(frozen=True, slots=True)
class Source:
    """A file, or a systemd credential: a file of that name in $CREDENTIALS_DIRECTORY (systemd.exec, LoadCredential)."""

    written: str  #: as in the configuration
    path: Path | None  #: None: a credential, and this process was given none

    @property
    def file(self) -> Path:
        """The file, whether it is there or not: what reads it says so in words."""
        return self.path if self.path is not None else Path("no $CREDENTIALS_DIRECTORY", self.written)


def source(value: object, info: ValidationInfo) -> Source:
    if isinstance(value, Source):
        return value
    text = value.strip() if isinstance(value, str) else ""
    if not text:
        raise ValueError(f"must be one path or {_CREDENTIAL}NAME, not {shown(value)}")
    if not text.startswith(_CREDENTIAL):
        return Source(text, beside_config(Path(text), info).absolute())
    name = text.removeprefix(_CREDENTIAL).strip()
    if not _NAME.fullmatch(name):
        raise ValueError(f"{shown(text)}: the name of a credential has letters, digits, '_', '.', '-' only")
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return Source(text, Path(folder) / name if folder else None)


FileOrCredential = Annotated[Source, PlainValidator(source)]


def bearer_token(file: Path) -> str:
    """What the file holds. Raises ValueError, whose words quote nothing of it."""
    try:
        with file.open("rb") as opened:
            is_open_to_all = os.fstat(opened.fileno()).st_mode & _OTHERS
            content = opened.read(_LONGEST_TOKEN + 1).strip()
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None
    if is_open_to_all:
        raise ValueError(f"{file} may be read by everybody on this box: chmod o-rwx {file}")
    if len(content) > _LONGEST_TOKEN or not _TOKEN.fullmatch(content):
        raise ValueError(f"{file} holds no bearer token: one word of letters, digits and -._~+/")
    return content.decode("ascii")
