"""`dreamda prompts`: what the prompts of a data set would be, before anything is generated."""
from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ..data.folders import ImageFolder
from ..data.prompt_syntax import Syntax
from ..data.prompts import MAX_CHECKED, Prompts, class_names
from ..networks.tokenizer import Tokenizer
from ..text import counted, in_brackets


@dataclass(repr=False)
class ClassPrompts:
    """The prompts of a class.

    Attributes
    ----------
    label : str
    words : str
        What a template says instead of ``{}``.
    images : int
        Number of real images.
    texts : Counter
        How many synthetic images have each prompt.
    tokens : (int, int) or None
        The smallest and largest number of tokens of a prompt; None without a tokenizer.
    chunks : int
        The largest number of chunks.
    """

    label: str
    words: str
    images: int = 0
    texts: Counter[str] = field(default_factory=Counter)
    tokens: tuple[int, int] | None = None
    chunks: int = 1

    def __repr__(self) -> str:
        return in_brackets("ClassPrompts", repr(self.label), counted(self.images, "image"),
                           counted(len(self.texts), "prompt"))


@dataclass(repr=False)
class PromptTable:
    """The prompts of a data set by class.

    Attributes
    ----------
    classes : list of ClassPrompts
    fields : dict of str to Counter
        How many synthetic images get each value of a field.
    variants : int
        The number of variants that were counted.
    """

    classes: list[ClassPrompts]
    fields: dict[str, Counter[str]]
    variants: int

    def __repr__(self) -> str:
        return in_brackets("PromptTable", counted(len(self.classes), "class"), counted(self.variants, "variant"))


def prompt_table(folder: ImageFolder, prompts: Prompts, variants: int, tokenizer: Tokenizer | None = None,
                 prompt_syntax: Syntax = "a1111") -> PromptTable:
    """Count the prompts of a data set.

    Parameters
    ----------
    folder : ImageFolder
    prompts : Prompts
    variants : int
        Of large data sets, fewer variants are counted, so that about `MAX_CHECKED` prompts are.
    tokenizer : Tokenizer, optional
        Counts tokens.
    prompt_syntax : {"a1111", "plain"}
    """
    counted_variants = max(1, min(variants, MAX_CHECKED // max(1, len(folder.images))))
    names = class_names(folder)
    classes = {label: ClassPrompts(label, names[label]) for label in folder.classes}
    fields: dict[str, Counter[str]] = {}
    for image in folder.images:
        classes[image.label].images += 1
        for variant in range(counted_variants):
            prompt = prompts.of(image.key, variant)
            classes[image.label].texts[prompt.text] += 1
            for name, value in prompt.fields.items():
                fields.setdefault(name, Counter())[value] += 1
    for each in classes.values():
        if tokenizer is not None and each.texts:
            numbers = [tokenizer.count(text, prompt_syntax) for text in each.texts]
            each.tokens = min(numbers), max(numbers)
            if prompt_syntax == "a1111":
                each.chunks = max(len(tokenizer.chunks(text)[0]) for text in each.texts)
    return PromptTable([each for each in classes.values() if each.images], fields, counted_variants)
