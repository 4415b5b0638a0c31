"""Builds dreamda._core and dreamda._selftest against the oneDNN that PyPI ships. Everything else is in pyproject.toml.

Environment switches: ONEDNN_ROOT (folder with include/ and lib/ of your own oneDNN 3.2 on GNU OpenMP),
DREAMDA_SANITIZE=1 (AddressSanitizer and UBSan) or =thread (ThreadSanitizer), DREAMDA_DEBUG=1 (-O0 -g), DREAMDA_WERROR=1
(warnings are errors).
"""

import importlib.metadata
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

CORE = Path("dreamda_c")
# Folders that both extensions compile; dreamda._selftest must reach the internals that dreamda._core hides.
FOUNDATION = ["base", "kernels"]
ENGINE = ["onednn", "graph", "models", "training", "bindings"]
SELFTEST = CORE / "bindings/selftest.c"


def onednn_folders():
    """The folders of oneapi/dnnl/dnnl.h and libdnnl.so.3: ONEDNN_ROOT, else the PyPI packages, wherever pip put
    them."""
    if root := os.environ.get("ONEDNN_ROOT"):
        include, candidates = Path(root, "include"), [Path(root, "lib"), Path(root, "lib64")]
        library = next((c for c in candidates if (c / "libdnnl.so.3").exists()), None)
        if not (include / "oneapi/dnnl/dnnl.h").exists() or library is None:
            raise SystemExit(f"ONEDNN_ROOT={root}: expected include/oneapi/dnnl/dnnl.h and lib/libdnnl.so.3 below it")
        return include, library

    def find(package, ending):
        try:
            files = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            raise SystemExit(
                f"{package} is not installed: pip install {package}==2023.2.0, or set ONEDNN_ROOT") from None
        for file in files:
            if str(file).endswith(ending):
                return Path(file.locate()).resolve()
        raise SystemExit(f"{package} has no {ending}: pip install --force-reinstall {package}==2023.2.0")

    header = find("onednn-devel-cpu-gomp", "oneapi/dnnl/dnnl.h")
    return header.parents[2], find("onednn-cpu-gomp", "libdnnl.so.3").parent


def sources_of(folders):
    return [source for folder in folders for source in sorted((CORE / folder).glob("*.c")) if source != SELFTEST]


def extension(name, sources, include, library):
    compile_args = ["-std=c11", "-O3", "-fopenmp", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math",
                    "-Wall", "-Wextra", "-Wshadow", "-Wstrict-prototypes", "-Wvla"]
    # $ORIGIN/../../.. is <prefix>/lib, where pip puts libdnnl.so.3; the second one serves lib64 platforms.
    link_args = ["-fopenmp", "-Wl,-rpath,$ORIGIN/../../..", "-Wl,-rpath,$ORIGIN/../../../../lib"]
    if os.environ.get("DREAMDA_WERROR"):
        compile_args.append("-Werror")
    if os.environ.get("DREAMDA_DEBUG"):
        compile_args += ["-O0", "-g"]
    if kind := os.environ.get("DREAMDA_SANITIZE"):
        sanitize = ["-fsanitize=thread"
                    ] if kind == "thread" else ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
        sanitize += ["-fno-omit-frame-pointer", "-g"]
        compile_args += [*sanitize, "-O1"]
        link_args += sanitize
    if library is not None:
        link_args.append("-l:libdnnl.so.3")
    return Extension(
        name,
        sources=[str(source) for source in sources],
        depends=sorted(str(header) for header in CORE.rglob("*.h")),
        include_dirs=[str(CORE), numpy.get_include(), *([str(include)] if library is not None else [])],
        library_dirs=[str(library)] if library is not None else [],
        libraries=["m"],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
    )


class ParallelBuild(build_ext):
    """Compiles as many files at once as there are processors, and those of both extensions once."""

    def build_extensions(self):
        compile_some, objects = self.compiler.compile, {}

        def compile_at_once(sources, **options):
            missing = [source for source in sources if source not in objects]
            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                objects.update(zip(missing, pool.map(lambda source: compile_some([source], **options), missing)))
            return [file for source in sources for file in objects[source]]

        self.compiler.compile = compile_at_once
        super().build_extensions()


include, library = onednn_folders()
setup(
    cmdclass={"build_ext": ParallelBuild},
    # pip builds in this folder: what an earlier build left there may be newer than every source, and of other switches
    # (not sanitized, say).
    options={"build_ext": {"force": True}},
    package_dir={"": "python"},
    packages=find_packages(where="python", include=["dreamda*"]),
    package_data={"dreamda": ["*.pyi", "py.typed", "bundled/**/*", "bundled/*", "generation/recipes/*.json", "*.json",
                              "data/prompt_sets/*.json", "runs/pages/*.html"]},
    ext_modules=[
        extension("dreamda._core", sources_of(FOUNDATION + ENGINE), include, library),
        extension("dreamda._selftest", [*sources_of(FOUNDATION), SELFTEST], None, None),
    ],
)
