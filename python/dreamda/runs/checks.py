"""What is checked and told before `dreamda generate` starts: prompts that the model cannot read to their end, and what the run will cost."""
from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..data.folders import ImageFolder
from ..data.prompts import class_names

if TYPE_CHECKING:
    from ..networks.tokenizer import Tokenizer


def check_prompts(folder: ImageFolder, prompts: Mapping[str, str], tokenizer: Tokenizer) -> list[str]:
    """Sentences about prompts that are longer than what the text encoder reads.

    Parameters
    ----------
    folder : ImageFolder
    prompts : mapping of key to prompt
    tokenizer : Tokenizer

    Raises
    ------
    ValueError
        What is cut off holds the class, which is then read nowhere.
    """
    names, labels = class_names(folder), {image.key: image.label for image in folder.images}
    first: dict[str, str] = {}
    for key, prompt in prompts.items():
        first.setdefault(prompt, key)
    cut = {prompt: lost for prompt, lost in zip(first, tokenizer.unread(list(first))) if lost}
    for prompt, lost in cut.items():
        key = first[prompt]
        words, read = names[labels[key]].lower(), prompt.removesuffix(lost).lower()
        if words in prompt.lower() and words not in read:
            raise ValueError(f"the prompt of {key} is longer than the {tokenizer.length} tokens that the model reads, and the class "
                             f"{names[labels[key]]!r} is in the part that is cut off; put it first, or shorten the prompt")
    if not cut:
        return []
    prompt, lost = next(iter(cut.items()))
    return [f"{len(cut)} of {len(first)} prompts are longer than the {tokenizer.length} tokens that the model reads; "
            f"of that for {first[prompt]} it does not read {lost.strip()[:80]!r}"]


def duration(seconds: float) -> str:
    """A time for people: ``40 s``, ``12 min``, ``3.5 h``, ``2.1 days``."""
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
