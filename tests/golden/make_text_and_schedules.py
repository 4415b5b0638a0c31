"""Writes tokens.json, tokenizer_folders.json, schedules.json and schedulers.json: what transformers and diffusers
compute.

    python tests/golden/make_text_and_schedules.py   # made with torch 2.13.0, diffusers 0.42.1, transformers 5.24.0
"""

import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

import diffusers
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler
from transformers import CLIPTokenizer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from batteries import schedulers as battery, tokenizers  # noqa: E402

TOKENIZER = HERE.parents[1] / "python/dreamda/bundled/fashion-mini/tokenizer"
LENGTH = 120

TEXTS = [
    "", " ", "a photo of a coat", "A PHOTO OF A COAT!!", "  lots   of\tspace\n", "it's they're we've I'll he'd I'M",
    "don\u2019t", "'s", "''", "na\u00efve caf\u00e9", "e\u0301cole", "\uff26\uff35\uff2c\uff2c width \uff11\uff12",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30b9\u30c8", "\ud55c\uad6d\uc5b4", "\u00df \u1e9e \ufb01 ligature",
    "emoji \U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd \u2764\ufe0f",
    "<|endoftext|> inside", "x<|startoftext|>y", "<|ENDOFTEXT|>", "1234567890 3.14", "\u200b zero\u00a0width\u2003em",
    "\x00\x01 control", "\u2026\u2014\u201cquotes\u201d", "\u0130stanbul \u0131 I", "\u01c5 titlecase",
    "\u0928\u092e\u0938\u094d\u0924\u0947", "\u0627\u0644\u0639\u0631\u0628\u064a\u0629", "!?.,;:#@$%^&*()[]{}", "</w>",
    "a</w>b", "\ufeffbom", "\u2028line sep", "\u2167 \u00bd \u00b2", "\U0001d518\U0001d52b\U0001d526", "q\u0323\u0303",
    "\ufdfa", "sneaker bag shirt pullover sandal ankle boot trouser t-shirt dress", "a" * 300, "word " * 60,
]

BASE = dict(num_train_timesteps=1000,
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type="epsilon")
CONFIGS = [
    BASE, BASE | dict(prediction_type="v_prediction"), BASE | dict(beta_schedule="linear",
                                                                   beta_start=0.0001,
                                                                   beta_end=0.02,
                                                                   set_alpha_to_one=True,
                                                                   steps_offset=0,
                                                                   clip_sample=True),
    BASE | dict(beta_schedule="squaredcos_cap_v2",
                set_alpha_to_one=True,
                clip_sample=True,
                clip_sample_range=2.0,
                prediction_type="v_prediction"),
    BASE | dict(num_train_timesteps=5, trained_betas=[0.1, 0.2, 0.3, 0.4, 0.5], steps_offset=0),
]
RUNS = [(100, 0.8, 1.0), (50, 1.0, 0.0), (7, 0.29, 0.5)]


def tokens():
    random.seed(0)
    alphabet = "abcdefghijklmnopqrstuvwxyzABC 0123456789'.,!?-_\u00e9\u00df\u00f1\u65e5\u672c\U0001f44d\t\n<|>"
    texts = TEXTS + ["".join(random.choices(alphabet, k=random.randint(0, 40))) for _ in range(100)]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(TOKENIZER, folder, dirs_exist_ok=True)
        tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=LENGTH)
        ids = [tokenizer(t, truncation=True, max_length=LENGTH)["input_ids"] for t in texts]
    return {"length": LENGTH, "texts": texts, "ids": ids}


def tokenizer_folders():
    ids = {}
    for entry in tokenizers.FOLDERS:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = CLIPTokenizer.from_pretrained(tokenizers.write_folder(entry, TOKENIZER, Path(folder)))
            ids[entry["name"]] = tokenizer(tokenizers.TEXTS, padding="max_length", truncation=True)["input_ids"]
    return {"texts": tokenizers.TEXTS, "ids": ids}


def schedules():
    cases = []
    x, prediction = torch.tensor([[-1.7, -0.4, 0.1, 0.9, 2.3]],
                                 dtype=torch.float64), torch.tensor([[0.6, -1.2, 0.3, 1.9, -0.2]], dtype=torch.float64)
    noise = torch.tensor([[0.2, -0.7, 1.1, -1.6, 0.5]], dtype=torch.float64)
    for config in CONFIGS:
        small = config["num_train_timesteps"] == 5
        for steps, strength, eta in [(5, 0.8, 1.0)] if small else RUNS:
            forward, inverse = DDIMScheduler(**config), DDIMInverseScheduler(**config)
            forward.alphas_cumprod, inverse.alphas_cumprod = forward.alphas_cumprod.double(
            ), inverse.alphas_cumprod.double()
            forward.set_timesteps(steps)
            inverse.set_timesteps(steps)
            timesteps = forward.timesteps[max(steps - int(steps * strength), 0):]
            rows = []
            for t in (timesteps[0], timesteps[len(timesteps) // 2], timesteps[-1]):
                down = forward.step(prediction, t, x, eta=eta, variance_noise=noise).prev_sample
                up = inverse.step(prediction, t, x).prev_sample
                rows.append(dict(t=int(t), down=down[0].tolist(), up=up[0].tolist()))
            cases.append(
                dict(config=config, steps=steps, strength=strength, eta=eta, timesteps=timesteps.tolist(), rows=rows))
    return dict(x=x[0].tolist(), prediction=prediction[0].tolist(), noise=noise[0].tolist(), cases=cases)


def schedulers():
    result = {}
    for entry in battery.SCHEDULERS:
        name = entry["config"].get("_class_name", "DDIMScheduler")
        made = getattr(diffusers, name).from_config(entry["config"])
        alphas = made.alphas_cumprod.tolist()
        places = [place for place in (0, 1, 2, 250, 500, 998, 999) if place < len(alphas)]
        result[entry["name"]] = dict(
            count=len(alphas),
            alphas={place: alphas[place]
                    for place in places},
            final=1.0 if made.config.get("final_sigmas_type") == "zero" or made.config.get("set_alpha_to_one", True)
            else alphas[0],
            clip=made.config.get("clip_sample_range", 1.0) if made.config.get("clip_sample", False) else None)
    return result


if __name__ == "__main__":
    for name, content in (("tokens.json", tokens()), ("tokenizer_folders.json", tokenizer_folders()),
                          ("schedules.json", schedules()), ("schedulers.json", schedulers())):
        (HERE / name).write_text(json.dumps(content, separators=(",", ":")) + "\n")
