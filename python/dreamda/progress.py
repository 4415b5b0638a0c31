"""The progress bar that `Pipeline.augment` and the commands show."""
from __future__ import annotations

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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in Jupyter without ipywidgets tqdm draws a bar of text, which is as good
        from tqdm.auto import tqdm

    count = "{n:.1f}" if unit == "image" else "{n_fmt}"
    return tqdm(total=total,
                initial=initial,
                unit=unit,
                disable=hidden,
                dynamic_ncols=True,
                bar_format="{l_bar}{bar}| " + count + "/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]")
