"""Finds PyPI's libdnnl.so.3 and loads it before `dreamda._core` asks for it.

An installed wheel would find it by its RPATH; an editable or in-place build lies elsewhere and would not.
"""

import ctypes
import importlib.metadata
import os
from pathlib import Path

PACKAGE = "onednn-cpu-gomp"
LIBRARY = "libdnnl.so.3"
SPIN_COUNT = "1000"


def _candidates() -> list[Path]:
    if chosen := os.environ.get("DREAMDA_ONEDNN"):
        return [Path(chosen)]
    found = []
    if root := os.environ.get("ONEDNN_ROOT"):
        found += [Path(root, "lib", LIBRARY), Path(root, "lib64", LIBRARY)]
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    return found + [Path(file.locate()).resolve() for file in files if file.name == LIBRARY]


def preload() -> None:
    """Load oneDNN into the process.

    libgomp, which comes with it, reads its settings now. By default its threads spin for milliseconds at every barrier,
    which on a machine that does anything else makes training ten times slower; unless the user has chosen, they spin
    briefly and then sleep.

    Raises
    ------
    ImportError
        If the library is absent or cannot be loaded; says what to install and which paths were tried.
    """
    tried = []
    chosen = any(name in os.environ for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"))
    if not chosen:
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
    try:
        for path in _candidates():
            try:
                ctypes.CDLL(str(path))
                return
            except OSError as error:
                tried.append(f"{path} ({error})")
    finally:
        if not chosen:
            del os.environ["GOMP_SPINCOUNT"]  # not for child processes
    where = "; ".join(tried) or "no such file is recorded for that package"
    raise ImportError(
        f"dreamda needs oneDNN's {LIBRARY}: pip install {PACKAGE}==2023.2.0 (and Debian's libgomp1), or point "
        f"DREAMDA_ONEDNN at the file. Tried: {where}")
