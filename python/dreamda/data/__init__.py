"""Image folders, annotations, prompts, the bundled images, importers of well-known data sets, and export."""

from .annotations import Labels, coco, masks, voc, yolo
from .bundled import BundledImages, load_bundled
from .files import BrokenImageError, LostImageError
from .folders import ImageFolder, ImageRef
from .images import decode_image, fit, read_image
from .prompt_syntax import escape_prompt
from .prompts import (Prompts, choose_prompts, class_names, fill_template, own_prompt_files, prompts_from_file,
                      prompts_from_template)
from .templates import class_words

__all__ = [
    "BrokenImageError", "BundledImages", "ImageFolder", "ImageRef", "Labels", "LostImageError", "Prompts",
    "choose_prompts", "class_names", "class_words", "coco", "decode_image", "escape_prompt", "fill_template", "fit",
    "load_bundled", "masks", "own_prompt_files", "prompts_from_file", "prompts_from_template", "read_image", "voc",
    "yolo"
]
