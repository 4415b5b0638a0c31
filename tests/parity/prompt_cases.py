"""The prompts that both sides embed. The bundled model reads 14 tokens in a chunk. Standard library only."""

LONG = "a photo of a coat on a black background, a studio product image of a coat, a picture of an ankle boot"
# name -> prompt
PROMPTS = {
    "no marks": "a photo of a coat",
    "empty": "",
    "round": "a (photo) of a coat",
    "number": "a photo of a (coat:1.4)",
    "square": "a [photo] of a coat",
    "nested": "a ((photo) of [a (coat:1.3)]:1.2)",
    "escaped": r"a \(photo\) of a (coat \[new\]:0.8)",
    "unclosed": "a photo (of a coat",
    "zero": "a photo of a (coat:0)",
    "negative": "a photo of a (coat:-0.5)",
    "within a word": "a pho(to:1.3) of a coat",
    "two chunks": LONG,
    "two chunks, weighted": LONG.replace("studio", "(studio:1.5)").replace("black", "[black]"),
    "whole prompt": f"({LONG}:1.2)",
}
