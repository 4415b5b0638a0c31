"""What surrounds the process, and the threads that compute in it; test_environments.py makes each environment. One line
a case.

`threads` are those by default (None: as many as without it; more than the machine has are not expected) and those
where two are asked for. `{processor}` is the number of a processor that the process may use.
"""
from __future__ import annotations

from typing import Any


def _threads(what: str, default: int | None, asked: int, *before: str, **variables: str) -> dict[str, Any]:
    """A command before Python's, and environment variables."""
    usual = "as many as without it" if default is None else str(default)
    return {"what": what, "threads": (default, asked), "before": before, "variables": variables, "result":
            f"threads: {usual} by default, {asked} where 2 are asked for"}


def _quota(what: str, memberships: str, mounts: str, files: dict[str, str], quota: float | None) -> dict[str, Any]:
    """/proc/self/cgroup, /proc/self/mountinfo, the files below /sys/fs/cgroup, and the quota in processors."""
    return {"what": what, "memberships": memberships, "mounts": mounts, "files": files, "quota": quota, "result":
            "no quota" if quota is None else f"{quota:g} processor{'s' * (quota != 1)}"}


THREADS = [
    _threads("OMP_THREAD_LIMIT=1", 1, 1, OMP_THREAD_LIMIT="1"),
    _threads("OMP_THREAD_LIMIT=2", 2, 2, OMP_THREAD_LIMIT="2"),
    _threads("OMP_THREAD_LIMIT=1, OMP_NUM_THREADS=2", 1, 1, OMP_THREAD_LIMIT="1", OMP_NUM_THREADS="2"),
    _threads("OMP_DYNAMIC=true, OMP_NUM_THREADS=2", 2, 2, OMP_DYNAMIC="true", OMP_NUM_THREADS="2"),
    _threads("OMP_NUM_THREADS=1", 1, 2, OMP_NUM_THREADS="1"),
    _threads("OMP_NUM_THREADS=2,1", 2, 2, OMP_NUM_THREADS="2,1"),
    _threads("OMP_NESTED=true, OMP_NUM_THREADS=2", 2, 2, OMP_NESTED="true", OMP_NUM_THREADS="2"),
    _threads("OMP_MAX_ACTIVE_LEVELS=0", 1, 1, OMP_MAX_ACTIVE_LEVELS="0"),
    _threads("OMP_MAX_ACTIVE_LEVELS=3, OMP_NUM_THREADS=2", 2, 2, OMP_MAX_ACTIVE_LEVELS="3", OMP_NUM_THREADS="2"),
    _threads("OMP_PROC_BIND=true, OMP_PLACES=cores, OMP_NUM_THREADS=2", None, 2, OMP_PROC_BIND="true",
             OMP_PLACES="cores", OMP_NUM_THREADS="2"),
    _threads("OMP_PLACES with one processor", 1, 2, OMP_PLACES="{{{processor}}}"),
    _threads("GOMP_CPU_AFFINITY with one processor", 1, 2, GOMP_CPU_AFFINITY="{processor}"),
    _threads("OMP_WAIT_POLICY=passive, OMP_NUM_THREADS=2", 2, 2, OMP_WAIT_POLICY="passive", OMP_NUM_THREADS="2"),
    _threads("OMP_CANCELLATION=true, OMP_SCHEDULE=dynamic,1, OMP_NUM_THREADS=2", 2, 2, OMP_CANCELLATION="true",
             OMP_SCHEDULE="dynamic,1", OMP_NUM_THREADS="2"),
    _threads("MKL_NUM_THREADS=1, KMP_BLOCKTIME=0, KMP_AFFINITY=compact, OMP_NUM_THREADS=2", 2, 2, MKL_NUM_THREADS="1",
             MKL_DYNAMIC="true", KMP_BLOCKTIME="0", KMP_AFFINITY="compact", OMP_NUM_THREADS="2"),
    _threads("taskset with one processor", 1, 2, "taskset", "-c", "{processor}"),
    _threads("nice", None, 2, "nice", "-n", "5"),
]

V1 = "30 24 0:26 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
V2 = "30 24 0:26 {root} /sys/fs/cgroup rw - cgroup2 cgroup2 rw"
HYBRID = "31 24 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
QUOTAS = [
    _quota("no control groups", "", "", {}, None),
    _quota("version 2, no quota", "0::/\n", V2.format(root="/"), {"cpu.max": "max 100000\n"}, None),
    _quota("version 2, a container", "0::/\n", V2.format(root="/"), {"cpu.max": "150000 100000\n"}, 1.5),
    _quota("version 2, our group", "0::/a/b\n", V2.format(root="/"), {"a/b/cpu.max": "50000 100000\n"}, 0.5),
    _quota("version 2, a group around ours",
           "0::/a/b\n", V2.format(root="/"),
           {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2),
    _quota("version 2, the smallest of nested ones",
           "0::/a/b/c\n", V2.format(root="/"),
           {"a/cpu.max": "100000 100000", "a/b/cpu.max": "300000 100000", "a/b/c/cpu.max": "200000 100000"}, 1),
    _quota("version 2, a sibling's does not count",
           "0::/a/b\n", V2.format(root="/"),
           {"a/c/cpu.max": "50000 100000"}, None),
    _quota("version 2, mounted from our group on",
           "0::/docker/1\n", V2.format(root="/docker/1"),
           {"cpu.max": "250000 100000"}, 2.5),
    _quota("version 2, outside of what is mounted",
           "0::/../elsewhere\n", V2.format(root="/"),
           {"cpu.max": "100000 100000"}, 1),
    _quota("version 1",
           "4:cpu,cpuacct:/a\n", V1.format(root="/"),
           {"cpu,cpuacct/a/cpu.cfs_quota_us": "300000\n", "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n"}, 3),
    _quota("version 1, no quota",
           "4:cpu,cpuacct:/\n", V1.format(root="/"),
           {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, None),
    _quota("version 1, a container",
           "4:cpu,cpuacct:/docker/1\n", V1.format(root="/docker/1"),
           {"cpu,cpuacct/cpu.cfs_quota_us": "50000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 0.5),
    _quota("both versions",
           "4:cpu,cpuacct:/a\n0::/u\n", V1.format(root="/") + "\n" + HYBRID,
           {"cpu,cpuacct/a/cpu.cfs_quota_us": "400000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000",
            "unified/u/cpu.max": "300000 100000"}, 3),
    _quota("another controller",
           "5:memory:/a\n", "30 24 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
           {}, None),
    _quota("cpuset is not cpu",
           "5:cpuset:/a\n", "30 24 0:26 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset",
           {}, None),
    _quota("nonsense in the file", "0::/\n", V2.format(root="/"), {"cpu.max": "many\n"}, None),
    _quota("a period of zero", "0::/\n", V2.format(root="/"), {"cpu.max": "100 0\n"}, None),
    _quota("lines that mean nothing", "hello\n0:\n", "world\n - cgroup2\n", {}, None),
]

CASES = {"OpenMP, affinity and priority": THREADS, "CPU quotas of control groups": QUOTAS}
