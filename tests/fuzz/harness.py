"""One target under atheris, coverage-guided: `python -m tests.fuzz.harness TARGET [libFuzzer's options] [FOLDER ...]`.

Ends with status 0 when its time is up. A finding ends it at once, with a traceback and the input in a file.
"""

import importlib
import logging
import os
import sys
from functools import partial

import atheris

from tests.fuzz.harness_name import MODULE


def main() -> None:
    name = sys.argv.pop(1)
    logging.disable(logging.CRITICAL)
    with atheris.instrument_imports(include=["appliance", "tests.fuzz.planted"]):
        from tests.fuzz.targets import watched  # noqa: PLC0415 - instrumented while it is imported

        target = importlib.import_module(os.environ.get(MODULE, "tests.fuzz.targets")).TARGETS[name]
        target(b"")  # what it imports is instrumented, too
    atheris.Setup(sys.argv, partial(watched, target))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
