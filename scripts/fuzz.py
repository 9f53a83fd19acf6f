#!/usr/bin/env python3
"""Fuzz everything that reads a peer's bytes, coverage-guided (atheris), from the seeds in tests/fuzz/corpus.

  scripts/fuzz.py                       all targets, 10 minutes in all
  scripts/fuzz.py --minutes 60 header   one target, an hour
  scripts/fuzz.py --seconds 9           what scripts/test runs

What broke something is kept as tests/fuzz/corpus/TARGET/found-*, a seed and a regression test from then on.
Exit codes: 0 nothing was found; 1 something was; 2 it cannot be run here.
"""

import argparse
import importlib.util
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "tests" / "fuzz" / "corpus"
OPTIONS = ("-rss_limit_mb=512", "-timeout=10", "-max_len=16384", "-print_final_stats=1")
LONGEST_START_S = 60.0  #: that a target may take before its first run, and after its time is up
LAST_WORDS = 20  # lines of a finding that are shown
FOUND, CANNOT = 1, 2
_NOISE = ("#", '"', "INFO:", "WARNING:", "stat::", "==", "MS:", "0x", "SUMMARY:", "Base64:")
_STATUS = re.compile(r"^#(\d+)\s.*cov: (\d+) ft: (\d+) corp: (\d+)")
_EXECUTED = re.compile(r"^stat::number_of_executed_units:\s+(\d+)")


@dataclass(slots=True)
class Campaign:
    """What became of one target."""

    target: str
    runs: int = 0
    edges: int = 0
    inputs: int = 0  #: of the corpus, seeds and what was found worth keeping meanwhile
    seconds: float = 0.0
    finding: Path | None = None
    broke: bool = False
    ended: bool = False  #: libFuzzer says so at its end; an import that failed, or a kill, does not
    words: tuple[str, ...] = ()  #: the last lines of one that broke

    def hear(self, line: str) -> None:
        if found := _STATUS.match(line):
            self.runs, self.edges, _, self.inputs = (int(word) for word in found.groups())
        elif found := _EXECUTED.match(line):
            self.runs = int(found[1])
        elif line and not line.startswith(_NOISE):
            self.words = (*self.words, line)[-LAST_WORDS:]
        self.ended = self.ended or line.startswith("stat::")


def main() -> int:
    arguments = _arguments()
    if importlib.util.find_spec("atheris") is None:
        print("fuzz: atheris is not installed here; it is made for x86-64 and Python 3.11 to 3.13", file=sys.stderr)
        return CANNOT
    targets = arguments.target or sorted(path.name for path in arguments.corpus.iterdir())
    share_s = max(1, round(arguments.seconds / len(targets)))
    done = []
    for number, target in enumerate(targets, 1):
        campaign = _run(target, share_s, arguments.corpus, f"{number}/{len(targets)}")
        done.append(campaign)
        if not sys.stderr.isatty():
            print(f"{number}/{len(targets)} {target}: {campaign.runs:,} runs", file=sys.stderr, flush=True)
        if campaign.broke:
            print(f"\n{target}: {campaign.finding or 'broke down'}\n  " + "\n  ".join(campaign.words), file=sys.stderr)
    _table(done)
    return FOUND if any(campaign.broke for campaign in done) else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="*", help="folders of the corpus (default: all)")
    parser.add_argument("--minutes", dest="seconds", type=lambda text: float(text) * 60, default=600.0)
    parser.add_argument("--seconds", type=float, help="instead of --minutes")
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="where seeds are, and findings go")
    return parser.parse_args()


def _run(target: str, seconds: int, corpus: Path, place: str) -> Campaign:
    campaign = Campaign(target)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="scanside-fuzz-") as folder:
        grown, artifacts = Path(folder, "grown"), Path(folder, "artifacts")
        grown.mkdir()
        artifacts.mkdir()
        command = [sys.executable, "-m", "tests.fuzz.harness", target, *OPTIONS]
        command += [f"-max_total_time={seconds}", f"-artifact_prefix={artifacts}/", str(grown), str(corpus / target)]
        for line in _lines(command, seconds + LONGEST_START_S):
            campaign.hear(line)
            campaign.seconds = time.monotonic() - begun
            _progress(campaign, seconds, place)
        campaign.broke = not campaign.ended
        for artifact in artifacts.iterdir():
            campaign.broke = True
            campaign.finding = corpus / target / f"found-{artifact.name[-12:]}"
            shutil.copyfile(artifact, campaign.finding)
    return campaign


def _lines(command: Sequence[str], within_s: float) -> Iterator[str]:
    """What a command says, as it comes; it is ended when its time is over."""
    until = time.monotonic() + within_s
    process = subprocess.Popen(
        ["nice", "-n", "19", *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=_environment()
    )
    assert process.stdout is not None  # noqa: S101 - opened as a pipe
    said = b""
    try:
        while select.select([process.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
            piece = os.read(process.stdout.fileno(), 1 << 16)
            if not piece:
                break
            *whole, said = (said + piece).split(b"\n")
            yield from (line.decode(errors="replace") for line in whole)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def _progress(campaign: Campaign, seconds: int, place: str) -> None:
    if sys.stderr.isatty():
        told = f"{place} {campaign.target}: {campaign.seconds:.0f} of {seconds} s, {campaign.runs:,} runs"
        print(f"\r\x1b[K{told}", end="", file=sys.stderr, flush=True)


def _table(done: Sequence[Campaign]) -> None:
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    print(f"{'target':<14}{'runs':>12}{'s':>7}{'edges':>8}{'inputs':>8}  found")
    for one in done:
        found = one.finding.name if one.finding else "broke down" if one.broke else "nothing"
        print(f"{one.target:<14}{one.runs:>12,}{one.seconds:>7.0f}{one.edges:>8}{one.inputs:>8}  {found}")
    print(f"{'in all':<14}{sum(one.runs for one in done):>12,}{sum(one.seconds for one in done):>7.0f}")


if __name__ == "__main__":
    sys.exit(main())
