"""Every C function behind dreamda._selftest at odd sizes, without pytest and without oneDNN: for valgrind and
ThreadSanitizer. See README.md."""
import glob
import importlib.util
import os
import sys

import numpy as np

BUILT = os.environ.get("DREAMDA_BUILT") or os.path.join(os.path.dirname(__file__), "../../python/dreamda")
spec = importlib.util.spec_from_file_location("_selftest", glob.glob(os.path.join(BUILT, "_selftest*.so"))[0])
t = importlib.util.module_from_spec(spec)
spec.loader.exec_module(t)


def x(*shape, bf16=False):
    values = np.linspace(-2, 2, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    return (values.view(np.uint32) >> 16).astype(np.uint16) if bf16 else values


def main() -> None:
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    before, calls = t.live_bytes(), 0
    t.philox((1, 2, 3, 4), (5, 6))
    for count in (1, 3, 64, 131, 1000):
        t.normals(np.arange(8, dtype=np.uint32), 4, count, threads)
    for isa in range(t.best_isa() + 1):
        for bf16 in (False, True) if isa != 1 else (False,):
            for n, hw, c0, c1, groups in ((2, 5, 6, 0, 3), (1, 7, 21, 9, 6), (1, 1, 1, 0, 1), (1, 9, 40, 8, 4)):
                c = c0 + c1
                t.group_norm(x(n, hw, c0, bf16=bf16),
                             x(n, hw, c1, bf16=bf16) if c1 else None, x(n, c), x(c), x(c), groups, 1e-5, True, False,
                             isa, threads)
            for c in (1, 7, 16, 33):
                t.layer_norm(x(3, c, bf16=bf16), x(c), x(c), 1e-5, isa, threads)
            for heads, tq, tk, d in ((1, 1, 1, 1), (2, 5, 7, 3), (1, 17, 33, 40), (3, 2, 9, 8)):
                for causal in (False, True) if tq == tk else (False,):
                    t.attention(x(2, tq, heads * d, bf16=bf16), x(2, tk, heads * d, bf16=bf16),
                                x(2, tk, heads * d, bf16=bf16), heads, 0.5, causal, isa, threads)
            calls += 12
    for bf16 in (False, True):
        t.timestep_embedding(x(3), 33, True, 0.0, bf16=bf16)
        t.upsample_nearest(x(1, 3, 5, 7, bf16=bf16), 7, 9)
        t.from_nchw(x(2, 65, 33), bf16)
        t.to_nchw(x(2, 33, 65, bf16=bf16))
        t.add_noise(x(2, 7, 5, bf16=bf16), np.array([0, 2], np.float32), None,
                    np.arange(16, dtype=np.uint32).reshape(2, 8), threads)
        t.embed(np.array([[0, 4, 2]], np.int32), x(5, 6), x(3, 6), bf16)
    for source in (x(1000), x(1000, bf16=True), x(1000).astype(np.float16)):
        t.convert(source, source.dtype != np.uint16)
    t.plan_memory([(100, 0, 3), (64, 1, 2), (0, 0, 9), (1000, 2, 2), (64, 3, 3)])
    assert t.live_bytes() == before
    print(f"selftest: {calls + 20} calls or more, all right")


if __name__ == "__main__":
    main()
