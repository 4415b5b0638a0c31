"""The number of threads to compute with.

It depends on the processors that this process may use, the CPU quota of its container, and the threads that OpenMP
actually provides.
"""

import math
import os
import re
import time
import warnings
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from .. import _core
from ..options import ParameterError

OPENMP_LIMITS = ("OMP_THREAD_LIMIT", "OMP_MAX_ACTIVE_LEVELS")  # these reduce a team below the requested number


class Limit(NamedTuple):
    """A limit on the number of threads, and its reason."""

    threads: int
    reason: str


def thread_limits(root: Path = Path("/")) -> list[Limit]:
    """The limits on the default number of threads; the smallest applies.

    Parameters
    ----------
    root : Path
        The folder that contains /proc and /sys; tests use another one.

    Returns
    -------
    list of Limit
        The processors first, then OMP_NUM_THREADS and the CPU quota, if there are any.
    """
    allowed, present = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    limits = [
        Limit(
            allowed, f"{present} processors"
            if allowed >= present else f"{allowed} of {present} processors allowed (taskset or cpuset)")
    ]
    openmp = int(_core.info()["threads"])
    if openmp != allowed:
        chosen = os.environ.get("OMP_NUM_THREADS")
        limits.append(Limit(openmp, f"OMP_NUM_THREADS={chosen}" if chosen else f"OpenMP's default of {openmp}"))
    if quota := cpu_quota(root):
        limits.append(Limit(max(1, math.ceil(quota)), f"a CPU quota of {quota:.3g} processors"))
    return limits


def cpu_quota(root: Path = Path("/")) -> float | None:
    """The CPU quota, in processors: the smallest one of our control group and its parents.

    Reads cgroup version 1 (``cpu.cfs_quota_us``) and version 2 (``cpu.max``), also if both are mounted.

    Parameters
    ----------
    root : Path
        As in `thread_limits`.

    Returns
    -------
    float or None
        None: there is no quota, or the system does not report one.
    """
    quotas = [quota for folder, version in _control_groups(root) if (quota := _quota_of(folder, version))]
    return min(quotas, default=None)


def _control_groups(root: Path) -> Iterator[tuple[Path, int]]:
    """The mounted folders of our control group and its parents, with their cgroup version."""
    try:
        memberships = (root / "proc/self/cgroup").read_text(errors="replace").splitlines()
        mounts = (root / "proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return
    ours: dict[int, PurePosixPath] = {}
    for line in memberships:
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if not controllers:
            ours[2] = PurePosixPath(path)
        elif "cpu" in controllers.split(","):
            ours[1] = PurePosixPath(path)
    for line in mounts:
        fields, _, kind = line.partition(" - ")
        there, options = fields.split(" "), kind.split(" ")
        version = {"cgroup2": 2, "cgroup": 1}.get(options[0], 0)
        if version not in ours or len(there) < 5 or (version == 1 and "cpu" not in options[-1].split(",")):
            continue
        mounted, point = (re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), text) for text in there[3:5])
        group = ours[version]
        # Inside a container the mount may begin at our group, or the group may lie outside the mount.
        inside = group.relative_to(
            mounted) if group.is_relative_to(mounted) and ".." not in group.parts else PurePosixPath()
        for part in (inside, *inside.parents):
            yield root / point.lstrip("/") / part, version


def _quota_of(folder: Path, version: int) -> float | None:
    try:
        if version == 2:
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = (folder / "cpu.cfs_quota_us").read_text(), (folder / "cpu.cfs_period_us").read_text()
        granted = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such file, "max"
        return None
    return granted if granted > 0 else None           # -1: none


def explain_threads(threads: int | None = None, root: Path = Path("/")) -> tuple[int, str]:
    """The number of threads that a call from here uses, and the reason for it.

    Parameters
    ----------
    threads : int, optional
        Default: the smallest of `thread_limits`.
    root : Path
        As in `thread_limits`.

    Returns
    -------
    threads : int
    reason : str

    Raises
    ------
    ValueError
        `threads` is not a whole number from 1 to 1024.
    """
    if threads is None:
        wanted, reason = min(thread_limits(root), key=lambda limit: limit.threads)
    elif not isinstance(threads, (int, np.integer)) or isinstance(threads, bool) or not 1 <= threads <= 1024:
        raise ParameterError("threads", f"{threads!r} is not possible; use a whole number from 1 to 1024")
    else:
        wanted, reason = int(threads), "as asked for"
    given = _core.team(wanted)
    if given < wanted:
        names = [f"{name}={os.environ[name]}" for name in OPENMP_LIMITS if name in os.environ]
        reason = f"OpenMP gives {given} of {wanted} ({', '.join(names) or 'inside of a parallel region'})"
    return given, reason


def resolve_threads(threads: int | None) -> int:
    """The number of threads to use: `threads`, else the smallest of `thread_limits`; at most what OpenMP provides.

    Parameters
    ----------
    threads : int, optional

    Returns
    -------
    int

    Raises
    ------
    ValueError
        As in `explain_threads`.
    """
    given, reason = explain_threads(threads)
    if threads is not None and given < threads:
        warnings.warn(f"threads: {threads} were asked for, {given} will compute: {reason}")
    return given


def free_threads(seconds: float = 0.3, root: Path = Path("/")) -> tuple[int, str]:
    """The default number of threads, reduced by the processors that other programs use now.

    This is for work whose threads wait for each other at every step: with more threads than free processors it takes
    many times as long. If OMP_NUM_THREADS is set, the number is not reduced.

    Parameters
    ----------
    seconds : float
        How long to observe the processors.
    root : Path
        As in `thread_limits`.

    Returns
    -------
    threads : int
    reason : str
    """
    threads, reason = explain_threads(None, root)
    if threads == 1 or "OMP_NUM_THREADS" in os.environ:
        return threads, reason
    before = _processor_times(root)
    time.sleep(seconds)
    idle = idle_processors(before, _processor_times(root), os.sched_getaffinity(0))
    free = max(1, round(idle)) if idle is not None else threads
    return (threads, reason) if free >= threads else (free, f"other programs use the rest of {threads} processors")


def _processor_times(root: Path) -> str:
    try:
        return (root / "proc/stat").read_text()
    except OSError:
        return ""


def idle_processors(before: str, after: str, allowed: set[int]) -> float | None:
    """The idle time of the `allowed` processors between two texts of /proc/stat, in processors; None if unknown."""
    def times(text: str) -> dict[int, tuple[int, int]]:
        found = {}
        for line in text.splitlines():
            if match := re.match(r"cpu(\d+)((?: \d+){5,})", line):
                numbers = [int(number) for number in match[2].split()]
                # idle and waiting for a disk; guests count as user time already
                found[int(match[1])] = numbers[3] + numbers[4], sum(numbers[:8])
        return found

    first, last = times(before), times(after)
    shares = [(last[cpu][0] - first[cpu][0]) / (last[cpu][1] - first[cpu][1])
              for cpu in allowed if cpu in first and cpu in last and last[cpu][1] > first[cpu][1]]
    return sum(shares) * len(allowed) / len(shares) if shares else None
