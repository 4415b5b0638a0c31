"""What every worker of compare.py shares: one process that loads, then answers each line "run" with the seconds it
took.

    serve(load)     # load(job) -> (callable, description); `job` is the JSON of the first argument

The callable may return how many seconds of its time one step of a generation took.
"""

import json
import resource
import sys
import time
from collections.abc import Callable


def serve(load: Callable[[dict], tuple[Callable[[], object], str]]) -> None:
    job = json.loads(sys.argv[1])
    start = time.perf_counter()
    run, engine = load(job)
    answer(loaded_seconds=time.perf_counter() - start, engine=engine)
    for line in sys.stdin:
        if line.strip() != "run":
            break
        start = time.perf_counter()
        step = run()
        answer(seconds=time.perf_counter() - start, step=step if isinstance(step, float) else None)
    answer(peak_rss_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def answer(**values: object) -> None:
    print(json.dumps(values), flush=True)
