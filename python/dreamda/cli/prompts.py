"""The command `dreamda prompts`."""
from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..generation.options import GenerationOptions
from ..text import counted
from .common import (PROMPTS, Debug, FieldsOption, PromptFile, Templates, accepts_options, add_command, chosen,
                     complain_of, printable)

EXAMPLES = 3  # prompts that are shown for each class


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    add_command(app, prompts, "dreamda prompts photos --fields natural",
                'dreamda prompts photos --template "a {style} of a {}" --fields styles.json --model fashion-mini')


@accepts_options(GenerationOptions, "variants", "seed", "negative_prompt", "prompt_syntax")
def prompts(
    real: Annotated[Path, typer.Argument(help="The data set: a folder for each class, with its images.")],
    *,
    template: Templates = None,
    fields: FieldsOption = None,
    prompts: PromptFile = None,
    recipe: Annotated[
        str | None,
        typer.Option(rich_help_panel=PROMPTS, help="Take the template of a recipe of dreamda generate.")] = None,
    model: Annotated[
        str,
        typer.Option("--model", "-m",
                     help="The model whose tokens are counted.  [default: none are counted]")] = "",
    debug: Debug = False,
    **options: Any,
) -> None:
    """Show the prompts that dreamda generate would use with the same options, without generating anything.

    The table has, for each class, its number of images and of different prompts, some of them, and, with --model, their
    tokens and the chunks in which they are read. Then follow how often each value of a field appears, and notes: about
    fields that no template has, long prompts, words that name another class, and words that the model has never seen.
    """
    from ..data.folders import ImageFolder
    from ..data.prompts import choose_prompts
    from ..generation.recipes import load_recipe
    from ..networks.hub import find_model, part_folder
    from ..networks.tokenizer import Tokenizer
    from ..runs.checks import check_prompts, other_classes, read_purpose, unknown_words
    from ..runs.prompt_table import prompt_table

    settings = chosen(GenerationOptions, options)
    words = load_recipe(recipe)[1] if recipe is not None else None
    folder = ImageFolder.scan(real)
    found = choose_prompts(folder, template, prompts, words, settings.prompt_syntax, fields, settings.seed)
    distinct, notes = found.distinct(settings.variants), list(found.notes)
    tokenizer = None
    if model:
        place = find_model(model)
        if not part_folder(place, "tokenizer").is_dir():
            raise ValueError(f"--model {model} has no tokenizer: it reads no prompts; give another model, or none")
        tokenizer = Tokenizer(part_folder(place, "tokenizer"))
        notes += check_prompts(folder, distinct, tokenizer, settings.negative_prompt, settings.prompt_syntax)
        notes += unknown_words(distinct, read_purpose(place))
    notes += other_classes(folder, distinct, settings.negative_prompt, settings.prompt_syntax)
    table = prompt_table(folder, found, settings.variants, tokenizer, settings.prompt_syntax)
    print(f"{counted(len(folder.images), 'image')} in {counted(len(table.classes), 'class')}, "
          f"{counted(settings.variants, 'variant')} of each: {counted(len(distinct), 'different prompt')}")
    rows = [("class", "images", "prompts", *(("tokens", "chunks") if model else ()), "of these")]
    for each in table.classes:
        some = list(each.texts)[:EXAMPLES]
        shown = ", ".join(f'"{text[:100]}"' for text in some) + ", ..." * (len(each.texts) > len(some))
        tokens = () if each.tokens is None else ("-".join(map(str, sorted(set(each.tokens)))), str(each.chunks))
        rows.append((each.words[:40], str(each.images), str(len(each.texts)), *tokens, shown))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:])), row[-1]]
        print(printable("  ".join(cells)))
    for name, values in table.fields.items():
        print(printable(f"{name}: " + ", ".join(f'"{value}" {count:,}' for value, count in sorted(values.items()))))
    if table.variants < settings.variants:
        print(f"(counted for the first {counted(table.variants, 'variant')} of each image)")
    complain_of(list(folder.ignored), notes)
