"""The reader child: the program that opens what strangers sent, for the analyse process; see `reader` for its parent.

Started by path and isolated, with the limits of the memory that it may map (RLIMIT_AS) and of its processor time
(RLIMIT_CPU) before anything that parses or decodes is imported. What it is asked and answers stands in
`reader_worker`.
"""

import argparse
import importlib
import resource
import sys
from pathlib import Path


def lower(kind: int, wanted: int) -> None:
    """A soft limit, which the hard one bounds."""
    _, most = resource.getrlimit(kind)
    resource.setrlimit(kind, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most))


def main() -> int:
    parser = argparse.ArgumentParser(description="Reads images; started by scanside, not by hand.")
    parser.add_argument("--memory-mb", type=int, required=True)
    parser.add_argument("--cpu-s", type=int, required=True, help="for its start, and for each thing it is asked")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    lower(resource.RLIMIT_AS, options.memory_mb << 20)
    lower(resource.RLIMIT_CPU, options.cpu_s)
    sys.path.append(str(Path(__file__).resolve().parents[2]))
    for name in ("requests", "tqdm"):  # pydicom imports them where they are, to download what its own tests need
        sys.modules[name] = None  # type: ignore[assignment] # what is None there is not found
    worker = importlib.import_module("appliance.runtimes.reader_worker")
    return int(worker.serve(options.cpu_s))


if __name__ == "__main__":
    sys.exit(main())
