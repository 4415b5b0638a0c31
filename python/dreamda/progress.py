"""The progress bar that `Pipeline.augment` and the commands show."""
from __future__ import annotations

import functools
import threading
import warnings
from typing import Any


def bar(total: int, unit: str, *, initial: float = 0, hidden: bool = False) -> Any:
    """A tqdm bar on stderr, or in a Jupyter notebook. Images are counted in tenths, as each takes many steps.

    Parameters
    ----------
    total : int
    unit : str
        "image", or another word for what is counted.
    initial : float
        What was done before.
    hidden : bool
        Count, but show nothing.

    Returns
    -------
    tqdm.tqdm
    """
    count = "{n:.1f}" if unit == "image" else "{n_fmt}"
    return _bar_class()(total=total,
                        initial=initial,
                        unit=unit,
                        disable=hidden,
                        dynamic_ncols=True,
                        bar_format="{l_bar}{bar}| " + count + "/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]")


@functools.cache
def _bar_class() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in Jupyter without ipywidgets tqdm draws a bar of text, which is as good
        from tqdm.auto import tqdm

    class Bar(tqdm):  # type: ignore[type-arg, misc, unused-ignore]
        pass

    # tqdm's own lock is shared with other processes: a process or thread that ends within it blocks all bars for ever
    Bar.set_lock(threading.RLock())
    return Bar
