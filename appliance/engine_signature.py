"""The signature of an engine package: OpenSSF model-signing with a key, over the whole folder.

The private key stays with whoever answers for the engine; here is only the public one. The library is an extra
(`signing`) and is imported when a signature is asked for: nobody else pays for it. What is signed must include the
manifest, which names every other file by its hash.
"""

import base64
import json
from importlib import import_module
from pathlib import Path

from appliance.engine_package import MANIFEST, SIGNATURE, read_plain
from appliance.errors import PackageInvalid

MAX_SIGNATURE_BYTES = 1 << 20


def check(folder: Path, public_key: Path) -> None:
    """Raises PackageInvalid where `folder` is not signed by the owner of the key (PEM, an elliptic curve's)."""
    if not (folder / SIGNATURE).exists():
        raise PackageInvalid(f"{SIGNATURE}: no such file: this site takes only packages that {public_key.name} signed")
    raw = read_plain(folder / SIGNATURE, MAX_SIGNATURE_BYTES)
    try:
        hashing, verifying = import_module("model_signing.hashing"), import_module("model_signing.verifying")
        unsupported = import_module("cryptography.exceptions").UnsupportedAlgorithm
    except ImportError as error:
        raise PackageInvalid(
            f"a signature cannot be checked here: {error}. Install the extra: pip install 'scanside[signing]'"
        ) from error
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
        config.set_hashing_config(hashing.Config().set_ignored_paths(paths=[SIGNATURE]))
        config.verify(folder, folder / SIGNATURE)
    except OSError as error:
        raise PackageInvalid(f"{error.filename or SIGNATURE}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, unsupported) as error:
        words = " ".join(str(error).split())[:300]
        raise PackageInvalid(f"{SIGNATURE}: not signed by {public_key.name}: {words}") from error
    if MANIFEST not in _signed_names(raw):
        raise PackageInvalid(f"{SIGNATURE}: does not cover {MANIFEST}: sign the whole folder")


def _signed_names(raw: bytes) -> set[str]:
    """The files that a signature speaks of. Only for one that was verified: then these words are its owner's."""
    try:
        statement = json.loads(base64.b64decode(json.loads(raw)["dsseEnvelope"]["payload"]))
        return {str(one["name"]) for one in statement["predicate"]["resources"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        return set()
