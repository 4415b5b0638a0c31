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
    "Pipeline": "generation.pipeline",
    "UNet": "networks.models",
    "VAE": "networks.models",
    "TextEncoder": "networks.models",
    "load_bundled": "data.bundled",
    "AMSTClassifier": "training.classifier",
    "AMSTHeads": "training.heads",
    "to_webdataset": "data.export",
    "audit": "runs.audit",
}

__all__ = ["Error", "__version__", "info", "normals", *_LAZY]

if TYPE_CHECKING:
    from .training.classifier import AMSTClassifier
    from .data.bundled import load_bundled
    from .data.export import to_webdataset
    from .runs.audit import audit
    from .training.heads import AMSTHeads
    from .networks.models import UNet, VAE, TextEncoder
    from .generation.pipeline import Pipeline
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
