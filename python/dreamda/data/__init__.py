"""Image folders, prompts, the bundled images, importers of well-known data sets, and export."""

from .folders import (BrokenImageError, BundledImages, ImageFolder, ImageRef, LostImageError, class_words, decode_image, fill_template,
                      load_bundled, own_prompt_file, prompts_from_file, prompts_from_template, read_image)

__all__ = ["BrokenImageError", "BundledImages", "ImageFolder", "ImageRef", "LostImageError", "class_words", "decode_image", "fill_template",
           "load_bundled", "own_prompt_file", "prompts_from_file", "prompts_from_template", "read_image"]
