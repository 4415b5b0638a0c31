"""dreamda: generative data augmentation on the CPU.

Real images in, synthetic training images out (DreamDA, arXiv 2403.12803), on a C core without PyTorch:

>>> import dreamda
>>> pipe = dreamda.Pipeline.load("fashion-mini")
>>> seeds = dreamda.load_bundled("fashion-mini").seeds[:1]
>>> pipe.augment(seeds, ["a photo of a t-shirt"], variants=2, steps=2).shape
(1, 2, 32, 32, 3)

Names are loaded when they are first used, so that ``import dreamda`` stays fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from . import _onednn

_onednn.preload()

from ._core import Error, info, normals  # noqa: E402  (needs the library that was just loaded)

__version__ = "0.1.0"

_LAZY = {
    "Pipeline": "pipeline",
    "UNet": "models",
    "VAE": "models",
    "TextEncoder": "models",
    "load_bundled": "data",
    "AMSTClassifier": "classifier",
    "AMSTHeads": "heads",
    "to_webdataset": "export",
}

__all__ = ["Error", "__version__", "info", "normals", *_LAZY]

if TYPE_CHECKING:
    from .classifier import AMSTClassifier
    from .data import load_bundled
    from .export import to_webdataset
    from .heads import AMSTHeads
    from .models import UNet, VAE, TextEncoder
    from .pipeline import Pipeline
else:
    # Hidden from type checkers, which would take every misspelt name for one that it finds.
    def __getattr__(name: str):
        if name not in _LAZY:
            raise AttributeError(f"module 'dreamda' has no attribute {name!r}")
        value = getattr(import_module(f".{_LAZY[name]}", __name__), name)
        globals()[name] = value
        return value


def __dir__():
    return sorted(__all__)
