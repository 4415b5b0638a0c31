"""Textual inversion: files of learned embeddings, each for a new token of the tokenizer.

A token with several vectors is written once in a prompt, and is read as ``token token_1 token_2``, as in diffusers.
"""

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
_OF_SDXL = {"clip_l", "clip_g"}


class Embedding:
    """A file with the vectors of a new token.

    Parameters
    ----------
    path : path
        A safetensors file with one tensor, whose name is the token. For a file of Stable Diffusion WebUI, the token is
        the file name without its extension.
    token : str, optional
        Another name for it.

    Attributes
    ----------
    path : Path
    token : str
    vectors : float32 array (n, width)

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
        if _OF_SDXL & set(names):
            raise ValueError(
                f"{self.path}: made for the two text encoders of SDXL; give one made for this kind of model")
        if len(names) != 1:
            raise ValueError(f"{self.path}: an embedding is one tensor named by its token, and this file has "
                             f"{len(names)}: {listed(names) or 'none'}")
        self.token = token or (self.path.stem if names[0] == _OF_WEBUI else names[0])
        if len(self.token) > MAX_TOKEN_LENGTH or self.token.split() != [self.token]:
            raise ValueError(f"{self.path}: the token {shown(self.token)} has to be one word; give it another name")
        vectors = weights.read_float32(names[0])
        if vectors.ndim not in (1, 2) or not vectors.size or vectors.ndim == 2 and len(vectors) > MAX_VECTORS:
            raise ValueError(f"{self.path}: the embedding has the shape {vectors.shape}; expected 1 to {MAX_VECTORS} "
                             "vectors")
        if not np.isfinite(vectors).all():
            raise ValueError(f"{self.path}: the embedding has values that are not finite; fetch it again")
        self.vectors: np.ndarray = vectors.reshape(-1, vectors.shape[-1])

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
