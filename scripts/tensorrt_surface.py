#!/usr/bin/env python3
"""Write tests/contract/tensorrt_surface.json: what the classes of each TensorRT have, as their real bindings say.

  scripts/tensorrt_surface.py            download the bindings, look, write the file (about 15 MB, a minute)
  scripts/tensorrt_surface.py --check    compare with the file instead; exit 1 where it differs

The bindings of TensorRT are on PyPI, its libraries (hundreds of MB, or not at all) are not needed to see what classes
have: a stand-in library with the few functions that the bindings link to is compiled instead. Nothing of TensorRT is
made or run. So versions are seen that cannot be installed here, 10.3 of JetPack 6 among them. The lean runtimes have
no builder. cuda-bindings is looked at in the same way, whole.

Needs gcc, pip and the Python 3.11 that the wheels are for. Exit codes: 0 written, or the same; 1 it differs, or a part
could not be had.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

OUT = Path(__file__).resolve().parent.parent / "tests" / "contract" / "tensorrt_surface.json"
#: What is installed, and the module in it.
BINDINGS = {
    "tensorrt 10.3.0": ("tensorrt_cu12_bindings==10.3.0", "tensorrt_bindings"),
    "tensorrt 11.4.0.106": ("tensorrt_cu13_bindings==11.4.0.106", "tensorrt_bindings"),
    "tensorrt_lean 10.16.1.11": ("tensorrt_lean_cu12_bindings==10.16.1.11", "tensorrt_lean_bindings"),
    "tensorrt_lean 11.4.0.106": ("tensorrt_lean_cu13_bindings==11.4.0.106", "tensorrt_lean_bindings"),
    "tensorrt_rtx 1.7.1.116": ("tensorrt_rtx_cu13_bindings==1.7.1.116", "tensorrt_rtx_bindings"),
}
CUDA = {"cuda_bindings 13.5.0": ("cuda-bindings==13.5.0", "cuda-pathfinder", "cuda.bindings.runtime")}
LIBRARIES = (
    *(f"libnvinfer{kind}.so.{major}" for kind in ("", "_lean", "_plugin") for major in (10, 11)),
    *(f"libnvonnxparser.so.{major}" for major in (10, 11)),
    *("libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1"),
)
STAND_IN = "\n".join(
    f"void *{name}(void) {{ return 0; }}"
    for name in (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "createNvOnnxParser_INTERNAL",
        "createNvOnnxParserRefitter_INTERNAL",
        "getBuilderPluginRegistry",
        "getInferLibMajorVersion",
        "getNvOnnxParserVersion",
        "getPluginRegistry",
        "initLibNvInferPlugins",
    )
)
LOOK = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
def public(thing):
    return sorted(name for name in vars(thing) if not name.startswith("_"))
if sys.argv[1].startswith("cuda"):
    print(json.dumps({"": public(module)}))
else:
    print(json.dumps({"": public(module), **{n: public(c) for n, c in vars(module).items() if isinstance(c, type)}}))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    try:
        with tempfile.TemporaryDirectory() as folder:
            text = _as_text(_surface(Path(folder)))
    except subprocess.CalledProcessError as error:
        print(f"{error.cmd[0]} failed: {error.stderr.strip()[-1000:]}", file=sys.stderr)
        return 1
    if check:
        print("the same" if (same := OUT.read_text() == text) else f"{OUT.name} is another")
        return 0 if same else 1
    OUT.write_text(text)
    print(f"{OUT} written: {len(text)} bytes")
    return 0


def _surface(folder: Path) -> dict[str, dict[str, list[str]]]:
    """Version -> class -> public names; the module itself is the class ""."""
    libraries = folder / "libraries"
    libraries.mkdir()
    (folder / "stand_in.c").write_text(STAND_IN)
    for name in LIBRARIES:
        _run("gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", libraries / name, folder / "stand_in.c")
    wanted = {**BINDINGS, **CUDA}
    return {
        name: _look(folder / str(number), libraries, packages, module)
        for number, (name, (*packages, module)) in enumerate(wanted.items())
    }


def _look(place: Path, libraries: Path, packages: list[str], module: str) -> dict[str, list[str]]:
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    _run(*pip, "--no-deps", "--only-binary", ":all:", "--target", place, *packages)
    environment = {**os.environ, "PYTHONPATH": str(place), "LD_LIBRARY_PATH": str(libraries)}
    found: dict[str, list[str]] = json.loads(_run(sys.executable, "-c", LOOK, module, environment=environment))
    return found


def _run(*command: str | Path, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def _as_text(surface: dict[str, dict[str, list[str]]]) -> str:
    """A line a class."""
    versions = []
    for version, classes in surface.items():
        lines = (f"  {json.dumps(name)}: {json.dumps(names)}" for name, names in sorted(classes.items()))
        versions.append(f"{json.dumps(version)}: {{\n" + ",\n".join(lines) + "\n}")
    return "{\n" + ",\n".join(versions) + "\n}\n"


if __name__ == "__main__":
    sys.exit(main())
