"""`dreamda audit`: find synthetic images that are near copies of real ones, and say how sure that is.

    result = audit("photos", "synthetic", "held-out", out="report")
    result.copies[0]                    # Copy(synthetic='cat/1-000.png', real='cat/7.jpg', score=0.98, ...)

Every synthetic image is compared with every real one (copies/index.py). The threshold comes from the real images
themselves: 1 % of them are more like another real image than that. An audit finds copies. It cannot show that a set
reveals nothing: membership attacks succeed on sets that pass tests of nearest neighbours (arXiv 2505.01524).
"""
from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..copies.calibration import Threshold, area_under_curve, calibrated, share, share_above
from ..copies.evidence import FEWEST, membership, ratios
from ..copies.features import features_of, nearest_features
from ..copies.index import CopyIndex, Floats, Ints, Matches, thinned
from ..copies.pictures import BLOCK, Blocks, Pictures
from ..data.files import digest_of_file, write_atomically
from ..data.metadata import metadata_file, read_rows
from ..networks.threads import resolve_threads
from ..options import ParameterError
from ..text import counted, in_brackets
from ..training.saved import TrainedModel
from .audit_page import PAIRS, audit_page
from .files import AUDIT, BLOCKS, OutputError, check_report, locked_folder
from .manifest import read_manifest
from .measures import read_network
from .records import hash_of
from .safeguards import check_max_similarity

RATE = 0.01         # of false alarms, of the default threshold
SAME_PICTURE = 0.98     # an image of the reference that is the same picture as a real one is at least so similar
SHOWN = 20          # pairs in the table

TESTED = (
    "Every synthetic image was compared with every real image, as grey thumbnails of 32 x 32 pixels: as it is, "
    "mirrored, upside down, inverted, brighter or darker, with more or less contrast, cropped or with a border (to "
    "about 15 % of the side), shifted (to about 12 %), blurred, compressed, and partly covered by text.")
NOT_TESTED = (
    "Strongly blurred copies, and copies mostly covered by text, are often missed. Not tested were copies of small "
    "details, such as a face or a name in a large image; rotations by other angles than 180 degrees; crops of less "
    "than two thirds of the side; images that show the same person or object in another view; and what an attacker "
    "who has the generator itself could find out.")
NONE_FOUND, SOME_FOUND = "That no copy is found", "That no other copy is found"
CAUTION = (
    " does not show that the synthetic images reveal nothing about the real ones: attacks succeed on sets that pass "
    "tests of nearest neighbours (arXiv 2505.01524).")

Progress = Callable[[str, int, int], None]


class Copy(NamedTuple):
    """A synthetic image that is more like a real one than `max_similarity`.

    Attributes
    ----------
    synthetic, real : str
        The files, relative to their folders.
    score : float
        1 is the same picture.
    kind : str
        What was done to it: "as it is", or "mirrored", "upside down", "turned by 180 degrees", "inverted", "enlarged",
        "reduced" and "shifted", separated by commas.
    own_seed : bool
        It was made from this real image.
    p : float
        How rare the score is: (k + 1) / (n + 1), where k of the n real images that the limit was calibrated on are at
        least as similar to another real image.
    hash : float
        The share of equal bits of their perceptual hashes.
    """

    synthetic: str
    real: str
    score: float
    kind: str
    own_seed: bool
    p: float
    hash: float


@dataclass(frozen=True, repr=False)
class Audit:
    """The result of `audit`.

    Attributes
    ----------
    copies : list of Copy
        The most similar first.
    max_similarity : float
    measures : dict
        All numbers, as in audit.json.
    skipped : list of (str, str)
        Images that could not be read, each with the reason.
    notes : list of str
        What a reader of the result must know.
    """

    copies: list[Copy]
    max_similarity: float
    measures: dict[str, Any]
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return in_brackets(
            "Audit", f"{counted(self.found, 'image')} of {self.measures['synthetic']['images']:,} above "
            f"{self.max_similarity:.4f}", self.skipped and f"{len(self.skipped):,} skipped")

    @property
    def found(self) -> int:
        """The number of synthetic images that are copies."""
        return len({copy.synthetic for copy in self.copies})

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {"copies": [copy._asdict() for copy in self.copies], **self.measures,
                "skipped": [{"file": name, "reason": reason} for name, reason in self.skipped], "notes": self.notes,
                "tested": TESTED, "not_tested": NOT_TESTED, "caution": self.caution}

    @property
    def caution(self) -> str:
        """What the result does not show."""
        return (SOME_FOUND if self.copies else NONE_FOUND) + CAUTION

    def sentences(self) -> list[str]:
        """The result in a few sentences."""
        m = self.measures
        total, calibration = m["synthetic"]["images"], m["calibration"]
        said = [f"{counted(self.found, 'image')} of {total:,} {'is' if self.found == 1 else 'are'} more like a real "
                f"image than {self.max_similarity:.4f} (1 is the same picture)."]
        if calibration["default"]:
            expected = total * calibration["rate"]
            said.append(f"About {calibration['rate']:.0%} of new real images would be too, {expected:.0f} of {total:,}."
                        if calibration["enough"] else
                        f"That is the largest similarity between {counted(calibration['images'], 'real image')}; more "
                        "are needed to know how many new real images would be above it.")
        elif calibration["rate"] is not None:
            said.append(f"Of the real images {calibration['rate']:.1%} are more like another real image than that.")
        if "reference_above" in m:
            above = m["reference_above"]
            said.append(f"Of the reference images, which are no copies, {above['value']:.1%} are above it "
                        f"({above['low']:.1%} to {above['high']:.1%}).")
        if "own_seed" in m:
            said.append(f"{counted(m['own_seed']['above'], 'image')} of {m['own_seed']['images']:,} "
                        f"{'is' if m['own_seed']['above'] == 1 else 'are'} that much like the real image that they "
                        "were made from.")
        if "membership" in m:
            area = m["membership"]["density_ratio"]
            said.append(f"An attack that guesses which images were used: AUC {area['auc']:.3f} ({area['low']:.3f} to "
                        f"{area['high']:.3f}); guessing is 0.5.")
        return said

    def table(self) -> str:
        """The result as text: what was found, and the most similar pairs."""
        lines = self.sentences()
        if self.copies:
            width = max(len(copy.synthetic) for copy in self.copies[:SHOWN])
            lines += ["", f"{'synthetic':{width}}   score  real"]
            lines += [f"{copy.synthetic:{width}}  {copy.score:6.3f}  {copy.real} ({copy.kind}"
                      + (", its own real image)" if copy.own_seed else ")") for copy in self.copies[:SHOWN]]
            if len(self.copies) > SHOWN:
                lines.append(f"and {counted(len(self.copies) - SHOWN, 'more pair')} in audit.json")
            lines.append("")
        return "\n".join([*lines, self.caution])


def audit(real: str | os.PathLike[str],
          synthetic: str | os.PathLike[str],
          reference: str | os.PathLike[str] | None = None,
          *,
          out: str | os.PathLike[str] | None = None,
          max_similarity: float | None = None,
          features: str | os.PathLike[str] | None = None,
          threads: int | None = None,
          progress: Progress | None = None) -> Audit:
    """Find synthetic images that are near copies of real ones.

    Copies are found whatever was done to them: JPEG, blur, small crops and shifts, flips, brightness and contrast,
    inversion, rescaling, borders and text. That an audit finds none does not show that the synthetic images reveal
    nothing about the real ones.

    Parameters
    ----------
    real, synthetic : path
        Folders of images, with or without folders of classes. If `synthetic` was written by `dreamda generate`, every
        image is also compared with the real image that it was made from.
    reference : path, optional
        Real images that the generator has never seen, for two more tests: of distances, and of membership.
    out : path, optional
        A folder for audit.json and audit.html. An interrupted audit goes on when it is called again. The folder is
        locked during the call.
    max_similarity : float, optional
        Images more similar than this are copies. Default: the similarity to the nearest other image that 1 % of the
        real images exceed.
    features : path, optional
        Weights of a ResNet from timm or torchvision (safetensors), for one more view of similarity: the cosine between
        its features.
    threads : int, optional
    progress : callable, optional
        Called as ``progress(phase, done, total)``.

    Returns
    -------
    dreamda.runs.audit.Audit

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        A folder does not exist.
    ValueError
        Two folders are the same, `out` is no place for a report or another process writes there, there are no images,
        none can be read, `reference` contains images of `real` or near copies of them, or `features` is no ResNet.

    Examples
    --------
    >>> dreamda.audit("photos", "synthetic").copies                # doctest: +SKIP
    []
    """
    if max_similarity is not None:
        check_max_similarity(max_similarity)
    folders = [real, synthetic, *([] if reference is None else [reference])]
    for at, folder in enumerate(folders):
        if any(os.path.exists(each) and os.path.exists(folder) and os.path.samefile(folder, each)
               for each in folders[:at]):
            raise ValueError(f"{folder} is given twice; give different folders of images")
    if out is not None:
        check_report(out, *folders)
    network = None if features is None else (read_network(features), digest_of_file(features))
    work = _Work(resolve_threads(threads), Blocks(None if out is None else Path(out) / BLOCKS),
                 progress or (lambda phase, done, total: None))
    with contextlib.nullcontext() if out is None else locked_folder(out):
        try:
            result, page = _audit(work, work.read(real), work.read(synthetic),
                                  None if reference is None else work.read(reference), max_similarity, network,
                                  out is not None)
        except (ValueError, FileNotFoundError, NotADirectoryError):  # bad input: there is nothing to go on with
            work.blocks.remove(only_new=True)
            raise
        if out is not None:
            _write(Path(out), result, page)
            work.blocks.remove()
    return result


class _Work(NamedTuple):
    """How the work is done."""

    threads: int
    blocks: Blocks
    progress: Progress

    def read(self, root: str | os.PathLike[str]) -> Pictures:
        def tell(done: int, total: int) -> None:
            self.progress(f"reading {root}", done, total)

        masks = "masks" if (Path(root) / "run.json").is_file() else ""  # of a run with annotations
        return Pictures.read(root, self.blocks, without=masks, threads=self.threads, progress=tell)

    def nearest(self, index: CopyIndex, key: str, queries: np.ndarray, of: Ints | None = None) -> Matches:
        """The nearest real image of each query, or each compared with one of its own (-1 for none)."""
        found = []
        for at in range(0, len(queries), BLOCK):
            part = slice(at, at + BLOCK)
            found.append(Matches(**self.blocks.get(
                f"{'nearest' if of is None else 'own'} {key} {at}", lambda: (
                    index.nearest(queries[part], threads=self.threads) if of is None else index.compare(
                        queries[part], of[part]))._asdict())))
            self.progress("comparing", min(at + BLOCK, len(queries)), len(queries))
        return Matches(*(np.concatenate(values) for values in zip(*found)))


    def by_features(self, network: TrainedModel, key: str, real: Pictures, synthetic: Pictures,
                    among: Ints) -> dict[str, Any]:
        """The similarity of features: of synthetic to real images, and of the real images `among` themselves."""
        def rows(pictures: Pictures) -> Floats:
            def tell(done: int, total: int) -> None:
                self.progress(f"features of {pictures.root}", done, total)

            return features_of(pictures, lambda images: network.features(images, threads=self.threads), network.size,
                               key, self.blocks, tell)

        of_real, of_synthetic = rows(real), rows(synthetic)
        image, similarity = nearest_features(of_synthetic, of_real)
        null = nearest_features(of_real[among], of_real, among)[1]
        best = np.argsort(-similarity, kind="stable")[:SHOWN]
        return _view(similarity, null) | {
            "pairs": [{"synthetic": synthetic.names[i], "real": real.names[image[i]],
                       "score": round(float(similarity[i]), 4)} for i in best.tolist()]}


def _audit(work: _Work, real: Pictures, synthetic: Pictures, reference: Pictures | None,
           max_similarity: float | None, network: tuple[TrainedModel, str] | None,
           with_page: bool) -> tuple[Audit, str]:
    """The result, and its page."""
    notes, seeds = _notes(real, synthetic), _seeds(real, synthetic)
    if reference is not None:
        _check_apart(real, reference)
    index = CopyIndex(real.thumbnails, real.images)
    of_reference = None
    if reference is not None:
        of_reference = work.nearest(index, f"{real.key} {reference.key}", reference.whole)
        _check_near(real, reference, of_reference, index.same_picture(reference.whole, of_reference))
    among = index.among_themselves(threads=work.threads)
    key = f"{real.key} {synthetic.key}"
    matches = work.nearest(index, key, synthetic.whole)
    null = among.matches.score
    limit, calibration = _limit(null, max_similarity)
    measures: dict[str, Any] = {
        "real": _about(real) | {"duplicates": among.duplicates},
        "synthetic": _about(synthetic),
        "reference": None if reference is None else _about(reference),
        "max_similarity": limit,
        "calibration": calibration,
        "views": {"structure": _view(matches.score, null, limit),
                  "hash": _view(matches.hash_score, among.matches.hash_score)},
    }
    if network is not None:
        measures["views"]["features"] = work.by_features(*network, real, synthetic, among.image)
    copies = _pairs(real, synthetic, matches, null, np.flatnonzero(matches.score > limit))
    if seeds is not None and (known := np.flatnonzero(seeds >= 0)).size:
        own = work.nearest(index, key, synthetic.whole[known], seeds[known])
        measures["own_seed"] = {"images": len(known), "above": int((own.score > limit).sum()),
                                "similarity": _spread(own.score)}
        of_seeds = _pairs(real, synthetic, own, null, np.flatnonzero(own.score > limit), known)
        pairs = {copy[:2] for copy in of_seeds}
        copies = [copy for copy in copies if copy[:2] not in pairs] + of_seeds
    copies.sort(key=lambda copy: (-copy.score, copy.synthetic, copy.real))
    curves = {"real images among themselves": null, "synthetic images": matches.score}
    measures |= _tests(work, real, synthetic, reference, of_reference, matches, null, limit, curves)
    measures["classes"] = _classes(synthetic, matches, copies)
    if among.duplicates:
        notes.append(f"{counted(among.duplicates, 'real image')} of {len(real.names):,} have a duplicate among the "
                     "real images; they were left out of the calibration.")
    skipped = [(f"{pictures.root.absolute().name}/{name}", reason) for pictures in (real, synthetic, reference)
               if pictures is not None for name, reason in pictures.skipped]
    result = Audit(copies, limit, measures, skipped, notes)
    nearest = copies or _pairs(real, synthetic, matches, null, np.argsort(-matches.score, kind="stable")[:PAIRS])
    return result, audit_page(result, real.root, synthetic.root, nearest, curves) if with_page else ""


def _check_apart(real: Pictures, reference: Pictures) -> None:
    """Refuse a reference that contains real images."""
    known = dict(zip(real.digests, real.names))
    _refuse(real, reference, [(name, known[digest]) for name, digest in zip(reference.names, reference.digests)
                              if digest in known])


def _check_near(real: Pictures, reference: Pictures, found: Matches, same: np.ndarray) -> None:
    """Refuse a reference that contains real images as other files; `same` says which of them look the same."""
    _refuse(real, reference, [(reference.names[i], real.names[found.image[i]])
                              for i in np.flatnonzero(same & (found.score > SAME_PICTURE)).tolist()])


def _refuse(real: Pictures, reference: Pictures, both: list[tuple[str, str]]) -> None:
    if both:
        shown = ", ".join(name if name == other else f"{name} (REAL has it as {other})" for name, other in both[:5])
        raise ParameterError(
            "reference", f"{counted(len(both), 'image')} of {reference.root} {'is' if len(both) == 1 else 'are'} in "
            f"{real.root} too: {shown}{', ...' if len(both) > 5 else ''}; give images that the generator has not seen")


def _notes(real: Pictures, synthetic: Pictures) -> list[str]:
    here, there = ({pictures.class_of(i) for i in range(len(pictures.names))} for pictures in (synthetic, real))
    extra = sorted(here - there)
    return [] if not extra else [
        f"SYNTHETIC has {counted(len(extra), 'folder')} that REAL lacks ({', '.join(map(repr, extra[:5]))}"
        f"{', ...' if len(extra) > 5 else ''}); its images were compared with the real images of all classes."]


def _limit(null: np.ndarray, max_similarity: float | None) -> tuple[float, dict[str, Any]]:
    """The similarity above which an image is a copy, and what is known about it."""
    if max_similarity is not None:
        hits = share(int((null > max_similarity).sum()), len(null)) if len(null) else None
        return max_similarity, {"default": False, "images": len(null), "rate": hits and hits.value,
                                "interval": hits and [hits.low, hits.high]}
    if not len(null):
        raise ParameterError(
            "max_similarity", "the default is calibrated on the real images, and there are no two different ones; give "
            "a number")
    found: Threshold = calibrated(null, RATE)
    return round(found.value, 4), {"default": True, "images": found.images, "rate": found.rate, "enough": found.enough}


def _about(pictures: Pictures) -> dict[str, Any]:
    return {"folder": pictures.root.absolute().name, "images": len(pictures.names), "unreadable": len(pictures.skipped)}


def _spread(scores: np.ndarray) -> dict[str, float]:
    """Quantiles of scores."""
    if not len(scores):
        return {}
    return {name: round(float(np.quantile(scores, q)), 4) for name, q in
            (("least", 0), ("median", 0.5), ("90 %", 0.9), ("99 %", 0.99), ("largest", 1))}


def _view(scores: np.ndarray, null: np.ndarray, limit: float | None = None) -> dict[str, Any]:
    """One view of similarity: how it is distributed, and how many images are above its limit."""
    if limit is None and len(null):
        limit = round(calibrated(null, RATE).value, 4)
    return {"synthetic": _spread(scores), "real_among_themselves": _spread(null), "limit": limit,
            "above": None if limit is None else int((scores > limit).sum())}


def _kind(matches: Matches, i: int) -> str:
    flips = {(True, False): "mirrored", (False, True): "upside down", (True, True): "turned by 180 degrees"}
    row, column, scale = matches.placement[i]
    words = [flips.get((bool(matches.mirrored[i]), bool(matches.upside_down[i]))), matches.inverted[i] and "inverted",
             "enlarged" if scale < 0.96 else "reduced" if scale > 1.04 else None,
             max(abs(row - 15.5), abs(column - 15.5)) > 1 and "shifted"]
    return ", ".join(word for word in words if word) or "as it is"


def _pairs(real: Pictures, synthetic: Pictures, matches: Matches, null: np.ndarray, which: Ints,
           of: Ints | None = None) -> list[Copy]:
    """Some matches; with `of`, of those synthetic images with their own seeds."""
    rare = share_above(null, matches.score[which])
    return [Copy(synthetic.names[i if of is None else of[i]], real.names[matches.image[i]],
                 round(float(matches.score[i]), 4), _kind(matches, i), of is not None, float(p),
                 round(float(matches.hash_score[i]), 4)) for i, p in zip(which.tolist(), rare)]


def _seeds(real: Pictures, synthetic: Pictures) -> Ints | None:
    """The real image that each synthetic one was made from, -1 if unknown; None if no metadata file says it."""
    path = metadata_file(synthetic.root)
    if path is None:
        return None
    number: dict[str, int] = {}
    for i, (name, digest) in enumerate(zip(real.names, real.digests)):
        # an annotated image is recorded with a class that is no folder; and any image by a hash, if it was asked for
        inside = name.partition("/")[2]
        number |= {name: i, hash_of(name, digest): i, hash_of(inside, digest): i}
    seed_of: dict[str, int] = {}
    for row in read_manifest(synthetic.root) if (synthetic.root / "run.json").is_file() else (
            row for _, row in read_rows(path)):
        made, seed = row.get("file_name"), row.get("seed_file")
        if isinstance(made, str) and isinstance(seed, str):
            seed_of[made] = number.get(seed, number.get(seed.partition("/")[2], -1))
    return np.array([seed_of.get(name, -1) for name in synthetic.names], np.int64) if seed_of else None


def _tests(work: _Work, real: Pictures, synthetic: Pictures, reference: Pictures | None, of_reference: Matches | None,
           matches: Matches, null: np.ndarray, limit: float, curves: dict[str, np.ndarray]) -> dict[str, Any]:
    """What the distances say about the whole set. The reference gets a curve of its own."""
    found: dict[str, Any] = {}
    if reference is not None and of_reference is not None:
        null = curves["images of the reference"] = of_reference.score[thinned(len(reference.names))]
        found["reference_above"] = share(int((null > limit).sum()), len(null))._asdict()
        found["similarity_of_reference"] = _spread(null)
        found["ratio"] = ratios(real.whole, reference.whole, synthetic.whole, work.threads)
    if min(len(null), len(matches.score)) > 1:
        found["nearer_than_new_images"] = area_under_curve(matches.score, null)._asdict() | {
            "compared_with": "reference images" if reference is not None else "real images to one another"}
    if reference is not None and min(len(reference.names), len(real.names)) >= FEWEST:
        found["membership"] = membership(real.whole, reference.whole, synthetic.whole, work.threads)
    return found


def _classes(synthetic: Pictures, matches: Matches, copies: list[Copy]) -> list[dict[str, Any]]:
    labels = np.array([synthetic.class_of(i) for i in range(len(synthetic.names))])
    copied = {copy.synthetic for copy in copies}
    is_copy = np.array([name in copied for name in synthetic.names])
    return [{"class": str(label), "images": int((labels == label).sum()), "copies": int(is_copy[labels == label].sum()),
             "similarity": _spread(matches.score[labels == label])} for label in np.unique(labels)]


def _write(out: Path, result: Audit, page: str) -> None:
    try:
        write_atomically(out / AUDIT, json.dumps(result.to_json(), indent=1, ensure_ascii=False).encode())
        write_atomically(out / "audit.html", page.encode())
    except OSError as error:
        raise OutputError(error.errno, f"{out} cannot be written ({error.strerror}); fix that, or give another "
                          "place") from error
