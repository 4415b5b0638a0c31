"""The other side of weighted prompts: transformers' tokenizer and text encoder, and two rules on top of them.

    TORCH_ENVIRONMENT/bin/python tests/parity/prompt_reference.py WORK MODEL

WORK/reference.npz: `a1111.NAME`, the rule of AUTOMATIC1111's web UI, and `lpw.NAME`, that of diffusers' community
pipeline for long prompts (`lpw_stable_diffusion`, with ``no_boseos_middle=False``). Neither is a library, so both are
written out here, from what they do:

* Marks: ``(x)`` 1.1, ``[x]`` 1 / 1.1, ``(x:n)`` n; brackets inside each other multiply, an unclosed one goes to the
  end, a backslash makes the next bracket a character. Both read them alike.
* Each stretch of one weight is tokenized by itself. The tokens are divided among chunks of 75 (here 14); each chunk
  gets a start and an end token and is filled up with end tokens, all of weight 1, and is encoded by itself.
* The embeddings are multiplied by the weights and then by old mean / new mean: A1111's of each chunk, lpw's of all
  chunks together. So the two agree where there is one chunk, or no weight; else up to a factor for each chunk.
"""
import sys
from pathlib import Path

import numpy as np
import torch
from prompt_cases import PROMPTS
from transformers import CLIPTextModel, CLIPTokenizer

work, model = Path(sys.argv[1]), Path(sys.argv[2])
tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
encoder = CLIPTextModel.from_pretrained(model / "text_encoder").eval()
SIZE = tokenizer.model_max_length - 2


def stretches(prompt: str) -> list[tuple[str, float]]:
    """Characters with their weights, then joined where neighbours have the same. Plain recursion over brackets."""
    def inside(at: int, closing: str) -> tuple[list[tuple[str, float]], int, float | None]:
        """The characters up to the bracket's end, the place after it, and its number if it has one."""
        found: list[tuple[str, float]] = []
        while at < len(prompt):
            if prompt[at] == "\\" and at + 1 < len(prompt) and prompt[at + 1] in "\\()[]":
                found.append((prompt[at + 1], 1.0))
                at += 2
            elif prompt[at] in "([":
                inner, at, number = inside(at + 1, ")" if prompt[at] == "(" else "]")
                found += inner
            elif prompt[at] == closing:
                text = "".join(c for c, _ in found)
                head, colon, tail = text.rpartition(":")
                number = None
                if closing == ")" and colon and tail.strip():
                    try:
                        number = float(tail)
                        found = found[: len(head)]
                    except ValueError:
                        pass
                factor = number if number is not None else 1.1 if closing == ")" else 1 / 1.1
                return [(c, w * factor) for c, w in found], at + 1, number
            else:
                found.append((prompt[at], 1.0))
                at += 1
        factor = 1.1 if closing == ")" else 1 / 1.1 if closing == "]" else 1.0
        return [(c, w * factor) for c, w in found], at, None

    joined: list[tuple[str, float]] = []
    for character, weight in inside(0, "")[0]:
        if joined and joined[-1][1] == weight:
            joined[-1] = joined[-1][0] + character, weight
        else:
            joined.append((character, weight))
    return joined


def embedded(prompt: str) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (chunks, tokens, channels) and weights (chunks, tokens)."""
    tokens = [(token, weight) for text, weight in stretches(prompt)
              for token in tokenizer(text, add_special_tokens=False).input_ids]
    chunks = [tokens[i : i + SIZE] for i in range(0, max(1, len(tokens)), SIZE)]
    hidden, weights = [], []
    for chunk in chunks:
        fill = SIZE - len(chunk) + 1
        ids = [tokenizer.bos_token_id, *(token for token, _ in chunk), *[tokenizer.eos_token_id] * fill]
        with torch.no_grad():
            hidden.append(encoder(torch.tensor([ids])).last_hidden_state[0].double().numpy())
        weights.append([1.0, *(weight for _, weight in chunk), *[1.0] * fill])
    return np.stack(hidden), np.array(weights)


results = {}
for name, prompt in PROMPTS.items():
    hidden, weights = embedded(prompt)
    weighted = hidden * weights[..., None]
    by_chunk = [new * (old.mean() / new.mean()) for old, new in zip(hidden, weighted, strict=True)]
    results[f"a1111.{name}"] = np.concatenate(by_chunk)
    results[f"lpw.{name}"] = np.concatenate(weighted * (hidden.mean() / weighted.mean()))
np.savez(work / "reference.npz", **results)
