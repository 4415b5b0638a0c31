"""`AnnotatedFolder`: annotated images as a data set for `dreamda generate`."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from ...options import ParameterError
from ...text import counted
from ..files import BrokenImageError
from ..folders import ImageFolder, ImageRef, SyntheticImage
from ..images import LoadedImage, read_image
from ..prompt_syntax import Syntax
from .common import LABEL, Labels, Made, Placed, Thing
from .compose import Composer, Composition


@dataclass(frozen=True)
class AnnotatedFolder(ImageFolder):
    """Annotated images as a data set of one class, called images, with the files in `root` itself.

    Attributes
    ----------
    labels : Labels
        The annotations.
    keep : {"objects", "background", "none"}
        The part of the images that is kept in the images made from them.
    composition : Composition
        How many objects of other images are placed in them.
    """

    captions: ClassVar[bool] = False

    labels: Labels
    keep: str
    composition: Composition = Composition()

    @cached_property
    def composer(self) -> Composer | None:
        """Places objects of other images in the images; None if there are none. ValueError as in `Composer`."""
        excluded = {image.name for image in self.excluded}
        return Composer(self.labels, self.composition, excluded) if self.composition.compose else None

    def path(self, image: ImageRef) -> Path:
        """The file of an image."""
        return self.root / image.name

    @property
    def annotations(self) -> Labels:
        """The annotations of the images."""
        return self.labels

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The height and width of each image, which are also those of what is made from it."""
        return [self.labels.size(image.name) for image in self.images]

    def describe(self) -> str:
        """What is made from the images, to continue a sentence that ends in their number."""
        count = self.composition.compose
        more = f" and {counted(count, 'object')} of other images" if count else ""
        return {"objects": ", around their objects", "background": ", new objects in them"}.get(self.keep, "") + more

    @property
    def notes(self) -> list[str]:
        """Notes for the user."""
        left_out = self.composer.left_out if self.composer is not None else []
        return [f"{counted(len(left_out), 'image')} of {len(self.labels)} neither get nor give objects, as some of "
                f"theirs have a box alone; the first is {left_out[0]}"] if left_out else []

    @property
    def apart(self) -> bool:
        """Whether each variant of an image is made from a picture of its own."""
        return self.composer is not None

    def placing(self, prompt_syntax: Syntax = "a1111") -> dict[str, Callable[[str], str]]:
        """For each image, by its key, a function that puts the categories in it after a text."""
        return {image.key: self.labels.placing(image.name, prompt_syntax) for image in self.images}

    def identity(self) -> dict[str, Any]:
        """The fields that it adds to run.json."""
        labels = self.labels
        return {"labels": labels.format, "labels_sha256": labels.sha256, "keep": self.keep,
                **(asdict(self.composition) if self.composition.compose else {})}

    def read(self, image: ImageRef, size: tuple[int, int], fit: str) -> LoadedImage:
        """Read an image at its own size; BrokenImageError if that is no longer the size of its labels."""
        loaded = read_image(self.path(image))
        if loaded.pixels.shape[:2] != self.labels.size(image.name):
            raise BrokenImageError("has another size than when its labels were read")
        return loaded

    def around(self, images: Sequence[ImageRef], variant: int, seed: int) -> dict[str, Any]:
        """Further arguments of `Pipeline._augment` for a variant of these images.

        They are the masks, which part is kept, and the objects of other images.
        """
        if self.composer is None:
            return {"masks": [self.labels.mask(image.name, self.keep) for image in images], "keep": self.keep}
        scenes = [self.composer.scene(image.name, variant, seed) for image in images]
        return {"masks": [self.composer.mask(scene) for scene in scenes], "keep": self.keep,
                "cutouts": [self.composer.cutout(scene) for scene in scenes]}

    def donors(self, image: ImageRef, variant: int, seed: int) -> list[ImageRef]:
        """The images of which objects are placed in a variant of an image, in a run with this seed."""
        if self.composer is None:
            return []
        placed = self.composer.scene(image.name, variant, seed).placed
        return sorted({ImageRef(LABEL, each.donor.name) for each in placed})

    def objects(self, image: ImageRef, variant: int, seed: int) -> list[tuple[Placed, Thing]]:
        """The annotated objects of a variant of an image, and where they are."""
        things = self.labels.things(image.name)
        placed = self._placed(image, variant, seed)
        if placed is None:
            placed = tuple(Placed(image.name, number) for number in range(len(things)))
        return [(each, each.thing or things[each.number]) for each in placed]

    def write_annotations(self, out: Path, made: Iterable[SyntheticImage], seed: int) -> None:
        """Write the annotations of synthetic images."""
        names = set(self.labels.names)
        self.labels.write(out, (self._made(each, seed) for each in made if each.real.name in names))

    def _made(self, each: SyntheticImage, seed: int) -> Made:
        objects = self._placed(each.real, each.variant, seed)
        if each.dropped:
            every = [placed for placed, _ in self.objects(each.real, each.variant, seed)]
            objects = tuple(placed for number, placed in enumerate(every) if number not in each.dropped)
        return Made(each.file.removeprefix(f"{LABEL}/"), each.real.name, objects)

    def _placed(self, image: ImageRef, variant: int, seed: int) -> tuple[Placed, ...] | None:
        return self.composer.scene(image.name, variant, seed).objects if self.composer is not None else None


def annotated_folder(labels: Labels, keep: str, composition: Composition) -> AnnotatedFolder:
    """`Labels.folder`."""
    if composition.compose and keep != "objects":
        raise ParameterError("compose", f"needs `keep=objects`; it is {keep}")
    labels.check_any()
    order = sorted(labels.names, key=lambda name: (labels.size(name), name))
    return AnnotatedFolder(labels.root, (LABEL, ), tuple(ImageRef(LABEL, name) for name in order),
                           tuple(labels.problems), labels, keep, composition)
