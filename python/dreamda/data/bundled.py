"""The real images that are bundled with the package."""
from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..text import counted, in_brackets
from .folders import ImageFolder, ImageRef


@dataclass(frozen=True, repr=False)
class BundledImages:
    """Real images bundled with the package; arrays are uint8 (N, 32, 32, 3), labels index `class_names`.

    Attributes
    ----------
    seeds, seed_labels : uint8 (100, 32, 32, 3), int64 (100,)
    test, test_labels : uint8 (1000, 32, 32, 3), int64 (1000,)
    class_names : tuple of str
    """

    seeds: np.ndarray
    seed_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]

    def __repr__(self) -> str:
        return in_brackets("BundledImages",
                           counted(len(self.seeds), "seed"),
                           counted(len(self.test), "test image"),
                           counted(len(self.class_names), "class"))

    def folder(self, root: str | os.PathLike[str], part: str = "seeds") -> ImageFolder:
        """The images of a part, "seeds" or "test", as a data set at `root`, which is not yet written.

        Raises ValueError if there is anything else at `root`.
        """
        root = Path(root)
        labels = [name.replace(" ", "_") for name in self.class_names]
        numbers = self.seed_labels if part == "seeds" else self.test_labels
        images = sorted(ImageRef(labels[label], f"{number:03d}.png") for number, label in enumerate(numbers))
        folder = ImageFolder(root, tuple(sorted(labels)), tuple(images), ())
        if os.path.lexists(root):
            known = {*(root / label for label in labels), *(folder.path(image) for image in images)}
            foreign = sorted(set(root.rglob("*")) - known)
            if foreign or not root.is_dir():
                raise ValueError(
                    f"{foreign[0] if foreign else root} is not one of the bundled images; give another folder")
        return folder

    def write(self, folder: ImageFolder, part: str = "seeds") -> None:
        """Write the images of a part as PNG files into the data set that `folder` returned."""
        from PIL import Image

        pixels = self.seeds if part == "seeds" else self.test
        for image in folder.images:
            path = folder.path(image)
            buffer = io.BytesIO()
            Image.fromarray(pixels[int(path.stem)]).save(buffer, "PNG", compress_level=6)
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file() or path.read_bytes() != buffer.getvalue():
                path.write_bytes(buffer.getvalue())


def load_bundled(name: str = "fashion-mini") -> BundledImages:
    """Load the bundled Fashion-MNIST images, which the bundled model of the same name has never seen.

    They are the first 10 (seeds) and the next 100 (test) images of each class among the last 10,000 training images,
    padded by 2 pixels to 32 x 32 and converted to RGB, as for the model's training
    (benchmarks/recipes/make_bundled_data.py).

    Parameters
    ----------
    name : {"fashion-mini"}

    Returns
    -------
    dreamda.data.BundledImages

    Raises
    ------
    ValueError
        The name is unknown.
    """
    if name != "fashion-mini":
        raise ValueError(f"no bundled images called {name!r}; there are: fashion-mini")
    with np.load(Path(__file__).parents[1] / "bundled" / "fashion-mini.npz", allow_pickle=False) as file:
        padded = {k: np.pad(file[k], ((0, 0), (2, 2), (2, 2))) for k in ("seeds", "test")}
        return BundledImages(
            seeds=np.repeat(padded["seeds"][..., None], 3, axis=3), seed_labels=file["seed_labels"].astype(np.int64),
            test=np.repeat(padded["test"][..., None], 3, axis=3), test_labels=file["test_labels"].astype(np.int64),
            class_names=tuple(str(c) for c in file["class_names"]))
