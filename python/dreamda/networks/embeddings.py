"""Textual inversion: files of learned embeddings, each for a new token of the tokenizer.

A token with several vectors is written once in a prompt, and is read as ``token token_1 token_2``, as in diffusers.
"""

import copy
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from ..data.files import digest_of_file
from ..options import ParameterError
from .config import shown
from .tokenizer import MAX_TOKEN_LENGTH
from .weights import CONVERT_TENSORS, WeightFile, listed

MAX_VECTORS = 75  # more do not fit into a prompt
_OF_WEBUI = "emb_params"  # Stable Diffusion WebUI's name for the only tensor of a file
_OF_SDXL = {"clip_l", "clip_g"}  # the names of the tensors for its two text encoders


class Embedding:
    """A file with the vectors of a new token.

    Parameters
    ----------
    path : path
        A safetensors file with one tensor, whose name is the token. For a file of Stable Diffusion WebUI, and for one
        of SDXL with the tensors clip_l and clip_g, the token is the file name without its extension.
    token : str, optional
        Another name for it.

    Attributes
    ----------
    path : Path
    token : str
    vectors : float32 array (n, width)
    second : float32 array (n, width) or None
        Those of the second text encoder, in a file for SDXL.

    Raises
    ------
    FileNotFoundError, ValueError
        The file is missing or damaged, or is not an embedding.
    """

    def __init__(self, path: str | os.PathLike[str], token: str | None = None) -> None:
        self.path = Path(os.path.abspath(path))
        if self.path.is_dir():
            raise ValueError(f"{self.path} is a folder; name the file of the embedding itself")
        weights = WeightFile(self.path, convert=CONVERT_TENSORS)
        names = weights.names()
        two = set(names) == _OF_SDXL
        if _OF_SDXL & set(names) and not two:
            raise ValueError(f"{self.path}: an embedding of SDXL has the tensors clip_l and clip_g, and this file has "
                             f"{listed(names)}; fetch it again")
        if len(names) != 1 and not two:
            raise ValueError(f"{self.path}: an embedding is one tensor named by its token, and this file has "
                             f"{len(names)}: {listed(names) or 'none'}")
        self.token = token or (self.path.stem if two or names[0] == _OF_WEBUI else names[0])
        if len(self.token) > MAX_TOKEN_LENGTH or self.token.split() != [self.token]:
            raise ValueError(f"{self.path}: the token {shown(self.token)} has to be one word; give it another name")
        self.vectors: np.ndarray = self._read(weights, "clip_l" if two else names[0])
        self.second: np.ndarray | None = self._read(weights, "clip_g") if two else None
        if self.second is not None and len(self.second) != len(self.vectors):
            raise ValueError(f"{self.path}: clip_l has {len(self.vectors)} vectors and clip_g {len(self.second)}; they "
                             "have to be as many")

    def _read(self, weights: WeightFile, name: str) -> np.ndarray:
        vectors = weights.read_float32(name)
        if vectors.ndim not in (1, 2) or not vectors.size or vectors.ndim == 2 and len(vectors) > MAX_VECTORS:
            raise ValueError(f"{self.path}: the embedding has the shape {vectors.shape}; expected 1 to {MAX_VECTORS} "
                             "vectors")
        if not np.isfinite(vectors).all():
            raise ValueError(f"{self.path}: the embedding has values that are not finite; fetch it again")
        return vectors.reshape(-1, vectors.shape[-1])

    def half(self, number: int) -> "Embedding":
        """The embedding for the first (0) or the second (1) text encoder of SDXL alone.

        Raises
        ------
        ValueError
            It was made for a model with one text encoder.
        """
        if self.second is None:
            raise ValueError(f"{self.path}: made for one text encoder, and this model has two; give an embedding with "
                             "the tensors clip_l and clip_g")
        alone = copy.copy(self)
        alone.vectors, alone.second = (self.vectors, self.second)[number], None
        return alone

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the file, in hex."""
        return digest_of_file(self.path)

    @property
    def tokens(self) -> list[str]:
        """The tokens of its vectors: the token itself, then numbered ones."""
        return [self.token, *(f"{self.token}_{number}" for number in range(1, len(self.vectors)))]


# Callers pass a file, a file and another name for its token, or an `Embedding`, which is used as it is.
EmbeddingLike = str | os.PathLike[str] | tuple[str | os.PathLike[str], str | None] | Embedding


def open_embeddings(embeddings: Sequence[EmbeddingLike]) -> list[Embedding]:
    """Open the embeddings that a caller passes; ParameterError for anything else."""
    opened = []
    for given in embeddings:
        if isinstance(given, Embedding):
            opened.append(given)
        elif isinstance(given, (str, os.PathLike)):
            opened.append(Embedding(given))
        elif isinstance(given, (tuple, list)) and len(given) == 2:
            opened.append(Embedding(given[0], given[1]))
        else:
            raise ParameterError("embeddings", f"expected files, or pairs (file, token), got {shown(given)}")
    return opened
