"""Many Python threads on shared models, plans and a trainer, for ThreadSanitizer; also a quick check without it. See
README.md.

Every plan here has one thread of its own, so that no OpenMP team is made: GNU OpenMP is not instrumented, and its
barriers would look like races. What is looked for are races between callers: first runs, loads and plans of one model,
profiles, waiting trainers.
"""
import sys
import threading
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from networks import CLIP, UNET, load, unet  # noqa: E402

from dreamda import _core, normals  # noqa: E402


def together(*calls, times=3):
    """Each call in several threads at once; what they returned."""
    results, start = [[] for _ in calls], threading.Barrier(len(calls) * times)

    def work(call, kept):
        start.wait()
        kept.append(call())

    threads = [
        threading.Thread(target=work, args=pair) for pair in zip(calls, results, strict=True) for _ in range(times)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(kept) == times for kept in results), "a thread has failed"
    return results


def main() -> None:
    plan, inputs = unet(rows=1, threads=1)
    expected = plan.run(inputs)["sample"]
    other = unet(rows=1, threads=1)[0]  # its first run is made by several threads

    def run(p):
        return lambda: [p.run(inputs)["sample"] for _ in range(5)]

    for outputs in together(run(plan), run(other),
                            lambda: [expected for _ in range(50) if plan.profile() and other.missing() == []][:1]):
        assert all(np.array_equal(x, expected) for kept in outputs for x in kept)

    model = _core.Model("unet", UNET)

    def make():  # plans of one model made, loaded and run while others do the same
        p = model.plan(rows=1, height=8, width=8, tokens=5, dtype="f32", threads=1)
        return load(p, model).run(inputs)["sample"]

    assert all(np.array_equal(x, expected) for x in together(make, times=4)[0])

    text = _core.Model("clip_text", CLIP)
    reader = text.plan(rows=1, tokens=4, dtype="f32", threads=1)

    def early():  # runs of a plan whose weights another thread is loading: refused, or right
        while True:
            try:
                return reader.run({"tokens": np.arange(4)[None]})["hidden"]
            except ValueError as error:
                assert "not loaded yet" in str(error)

    first, _ = together(early, lambda: load(reader, text), times=2)
    assert np.array_equal(*first)

    trainer = _core.Trainer({"backbone": "resnet18", "stem": "small", "in_channels": 3, "width": 4},
                            batch=2,
                            height=8,
                            width=8,
                            dtype="f32",
                            threads=1,
                            slots=2)
    images = np.ones((2, 3, 8, 8), np.float32)
    together(lambda: trainer.forward(images, 0),
             lambda: trainer.evaluate(images),
             lambda: trainer.step(0.1, 0.9, 1e-4),
             trainer.gradient_norm,
             trainer.profile,
             trainer.zero_grad,
             lambda: _core.softmax(images.reshape(2, -1)),
             lambda: normals(1, 2, 3, 4, 5, 6, (100, )),
             times=2)
    print("threads: all right")


if __name__ == "__main__":
    main()
