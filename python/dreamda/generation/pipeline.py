"""DreamDA's generation: images to latents, a perturbed reverse process, and back (arXiv 2403.12803; section 3.2 and figure 2).

Three step rules share one loop over timesteps:

* ``cycle``: the authors' published code. A source trajectory is sampled from the posterior given the seed image; the noise that
  explains it drives the target. That noise is never formed: it cancels in ``x_p = x_p_source + mean(target) - mean(source)``.
* ``asymmetric``: the paper's figure. Deterministic inversion of the seed (of the posterior's mean); then the clean image comes
  from the perturbed prediction, and the direction from the clean one.
* ``sdedit``: plain img2img (Meng et al., 2022), the baseline.

Work is cut into groups of a fixed number of U-Net rows that depends on the model and the mode only, short groups are padded, and
all noise is keyed. Small models run one single-threaded group a processor, side by side; large ones one group on all threads. So
an image's bits do not depend on what else is made, in which order, or where it was resumed.
"""

from __future__ import annotations

import hashlib
import math
import queue
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import _core
from ..networks.config import read_json, read_scheduler_config
from ..networks.hub import BUNDLED, find_model
from ..networks.models import UNet, VAE, TextEncoder, resolve_dtype
from ..networks.threads import resolve_threads
from ..options import accepts, from_keywords
from .options import GenerationOptions, OptionKeywords
from .schedulers import Schedule, Step

if TYPE_CHECKING:
    from typing_extensions import Unpack

# Streams of `dreamda.normals`: what a noise is for.
STREAM_POSTERIOR, STREAM_START, STREAM_STEP, STREAM_BOTTLENECK, STREAM_CANDIDATE = range(5)
# Latent positions in one call: a row more gains nothing then (measured from 1 to 48 rows), and short groups waste less.
POSITIONS = 1536
SMALL = 1024  # latent positions of an image up to which a group is left to one thread
CANDIDATES = 4  # noises drawn for each one that `diverse` keeps
MAX_PROMPTS = 1024  # text embeddings kept


@dataclass
class _Row:
    """One row of a U-Net call: whose latents, under which prompt, and with how much noise at the bottleneck."""

    unit: int
    context: np.ndarray
    noise_row: int | None = None  # the key's row; None: stays clean


def image_key(key: int | str) -> int:
    """The 64-bit number that keys an image's noise: the number itself, or the first 8 bytes of the text's SHA-256.

    Raises
    ------
    ValueError
        For a number outside of 0 to 2**64 - 1, or another type.
    """
    if isinstance(key, str):
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool) and 0 <= key < 1 << 64:
        return int(key)
    raise ValueError(f"keys: {key!r} is not possible; use texts, or whole numbers from 0 to 2**64 - 1")


def choose_diverse(candidates: np.ndarray, count: int) -> list[int]:
    """Indices of `count` mutually dissimilar arrays: the first, then always the one whose largest cosine similarity to those
    already chosen is smallest (the authors' idea; their own helper returns a wrong variable).

    Parameters
    ----------
    candidates : array (M, ...)
    count : int, at most M
    """
    flat = candidates.reshape(len(candidates), -1).astype(np.float64)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    chosen = [0]
    worst = flat @ flat[0]
    while len(chosen) < count:
        worst[chosen] = np.inf
        chosen.append(int(np.argmin(worst)))
        worst = np.maximum(worst, flat @ flat[chosen[-1]])
    return chosen


class Pipeline:
    """A latent diffusion model made ready to augment images. Use `Pipeline.load`.

    Parameters
    ----------
    unet, vae, text_encoder, schedule, folder, size
        The attributes below; `size` is by default what the U-Net was made for.

    Attributes
    ----------
    unet : UNet
    vae : VAE
    text_encoder : TextEncoder
    schedule : dreamda.generation.schedulers.Schedule
    size : (int, int)
        Height and width in pixels of the images made.
    dtype : str
    threads : int
    threads_matter : bool
        Whether the images' last bits depend on the number of threads: those of large images do, small ones are left to one thread each.
    folder : Path
    """

    def __init__(self, unet: UNet, vae: VAE, text_encoder: TextEncoder, schedule: Schedule, folder: Path,
                 size: tuple[int, int] | None = None) -> None:
        self.unet, self.vae, self.text_encoder, self.schedule, self.folder = unet, vae, text_encoder, schedule, folder
        h, w = unet.config["sample_size"]
        self.size = _check_size((h * vae.factor, w * vae.factor) if size is None else size, vae.factor)
        self.dtype, self.threads = unet.dtype, unet.threads
        self.threads_matter = self.size[0] // vae.factor * (self.size[1] // vae.factor) > SMALL
        self._contexts: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()
        if unet.config["in_channels"] != vae.config["latent_channels"] or unet.config["out_channels"] != vae.config["latent_channels"]:
            raise ValueError(f"{folder}: the U-Net's in_channels and out_channels have to be the VAE's latent_channels "
                             f"{vae.config['latent_channels']}; inpainting and depth models are not supported")
        if unet.config["context_dim"] != text_encoder.config["hidden_size"]:
            raise ValueError(f"{folder}: the U-Net's cross_attention_dim {unet.config['context_dim']} is not the text encoder's "
                             f"hidden_size {text_encoder.config['hidden_size']}")

    @classmethod
    def load(cls, model: str | Path, dtype: str = "auto", threads: int | None = None,
             size: tuple[int, int] | None = None) -> "Pipeline":
        """Load a model.

        Parameters
        ----------
        model : str or path
            A bundled name ("fashion-mini"), a folder in diffusers' format, or a model id on the Hugging Face hub ("owner/name" or
            "owner/name@revision", fetched with the `hub` extra).
        dtype : {"auto", "f32", "bf16"}
            "auto" is bf16 where the processor computes in it.
        threads : int, optional
            Default: OMP_NUM_THREADS, else the processors this process may use.
        size : (int, int), optional
            Height and width to work at, multiples of the VAE's factor. Default: what the model was made for.

        Returns
        -------
        Pipeline

        Raises
        ------
        FileNotFoundError, ValueError
            Naming the file and the mend.
        """
        resolve_dtype(dtype), resolve_threads(threads)
        folder = find_model(model)
        parts = read_json(folder / "model_index.json")
        text = parts.get("text_encoder")
        if isinstance(text, list) and text[-1:] not in ([None], ["CLIPTextModel"]):
            raise ValueError(f"{folder / 'model_index.json'}: the text encoder {str(text)[:200]} is not supported, only CLIPTextModel is")
        return cls(
            UNet.load(folder / "unet", dtype, threads),
            VAE.load(folder / "vae", dtype, threads),
            TextEncoder.load(folder / "text_encoder", folder / "tokenizer", dtype, threads),
            Schedule(read_scheduler_config(folder / "scheduler")),
            folder,
            size,
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the configuration, tokenizer and weight files that were loaded, in hex."""
        files = [self.folder / part / "config.json" for part in ("unet", "vae", "text_encoder")]
        files += [self.folder / "scheduler" / "scheduler_config.json", *sorted((self.folder / "tokenizer").glob("*.json"))]
        files += [self.folder / "tokenizer" / "merges.txt", *self.unet.files, *self.vae.files, *self.text_encoder.files]
        digest = hashlib.sha256()
        for file in filter(Path.is_file, files):
            digest.update(f"{file.parent.name}/{file.name}\n".encode() + _file_digest(file))
        return digest.hexdigest()

    def close(self) -> None:
        """Give the memory of the plans back; the next call makes new ones. The weights stay."""
        for part in (self.unet, self.vae, self.text_encoder):
            part.close()

    # ---------------------------------------------------------------------------------------------- images

    @accepts(GenerationOptions, variants=4)
    def augment(self, images: np.ndarray, prompts: Sequence[str], *, keys: Sequence[int | str] | None = None,
                progress: Callable[[int, int], None] | bool | None = None, first: int = 0, stop: Callable[[], bool] | None = None,
                **options: Unpack[OptionKeywords]) -> np.ndarray:
        """Make `variants` new images of each image.

        Parameters
        ----------
        images : uint8 array (N, H, W, 3)
            Resized (bicubic) to the pipeline's ``size`` where they differ.
        prompts : sequence of N str
            What each image shows, "a photo of a coat".
        keys : sequence of N int or str, optional
            What else keys an image's noise. Default: its index in this call; pass file names to be independent of it.
        progress : callable(done, total) or bool, optional
            Called after every U-Net call with the share of work done; True shows a bar, in a terminal or in Jupyter.
        first : int
            Leave out the variants before this one; the others are the same as with them.
        stop : callable, optional
            Asked before every group of variants but the first: True ends the call early, after what is being computed. For one image
            only.
        GenerationOptions
            Its fields, by keyword.

        Returns
        -------
        uint8 array (N, K - first, height, width, 3); after `stop`, only the variants that were finished, at least one

        Raises
        ------
        ValueError
            Naming the argument and what is possible.
        """
        mode = from_keywords(GenerationOptions, Pipeline.augment, options)
        self.schedule.steps(mode.steps, mode.strength, mode.eta)
        images = _check_images(images)
        if not (isinstance(first, (int, np.integer)) and 0 <= first < mode.variants):
            raise ValueError(f"first: {first!r} is not possible with {mode.variants} variants; use a whole number below that")
        if stop is not None and len(images) > 1:
            raise ValueError(f"stop: works on one image at a time, not on {len(images)}")
        height, width = self.size
        prompts, identities = _per_image(len(images), prompts, keys)
        result = np.empty((len(images), mode.variants - first, height, width, 3), np.uint8)
        if isinstance(progress, bool):
            progress = _bar(result.shape[0] * result.shape[1]) if progress and result.size else None
        latent = height // self.vae.factor, width // self.vae.factor
        batch = self._group(1, *latent)
        for part in self._blocks(len(images), mode.variants, *latent):
            self._embed(prompts[part], mode, latent)
            report = _section(progress, part.start, len(images[part]), len(images))
            z0 = self.encode(images[part], identities[part], mode.seed, sample=mode.method != "asymmetric")
            self._make_room(latent, self.vae)
            latents = self._latents(z0, prompts[part], identities[part], mode, report, first, stop)
            self._make_room(latent, self.unet)
            flat = latents.reshape(-1, *latents.shape[2:])
            pixels = np.empty((len(flat), height, width, 3), np.uint8)

            def decode(i: int, lane: int | None) -> None:
                pixels[i : i + batch] = self._decode(flat[i : i + batch], batch, lane)

            self._each(range(0, len(flat), batch), decode, latents.shape[-2:])
            self._make_room(latent, self.vae)
            result = result[:, : latents.shape[1]]
            result[part] = pixels.reshape(*latents.shape[:2], height, width, 3)
        return result

    def _blocks(self, images: int, variants: int, h: int, w: int) -> Iterator[slice]:
        """Images pass through in blocks, so that memory does not grow with their number: enough to keep every lane busy, and whole
        groups of what is computed once an image."""
        group = self._group(1, h, w)
        block = -(-max(1, 8 * self.threads * group // variants) // group) * group
        return (slice(first, first + block) for first in range(0, images, block))

    def _make_room(self, latent_size: tuple[int, int], part: UNet | VAE) -> None:
        """Large images need memory more than the moment it takes to make a plan again: at 512 pixels the VAE's are the largest."""
        if latent_size[0] * latent_size[1] > SMALL:
            part.close()

    def _embed(self, prompts: Sequence[str], mode: GenerationOptions, latent_size: tuple[int, ...]) -> None:
        """Embed the prompts that are about to be needed. Where images are large the text encoder then gives its memory back: 0.4 GiB of
        Stable Diffusion's, for the minutes that an image takes."""
        missing = [p for p in dict.fromkeys([*prompts, "", mode.source_prompt]) if p not in self._contexts]
        for prompt in missing:
            self.context(prompt)
        if missing and latent_size[0] * latent_size[1] > SMALL:
            self.text_encoder.unload()

    def _each(self, groups: Iterable[Any], work: Callable[[Any, int | None], None], latent_size: tuple[int, int]) -> None:
        """work(group, lane) for every group: side by side, a lane a thread, where a group is too small for several threads. A group is asked
        for when somebody is free to work on it, so that an iterator may end early."""
        if latent_size[0] * latent_size[1] > SMALL:
            for group in groups:
                work(group, None)
            return
        lanes: queue.SimpleQueue[int] = queue.SimpleQueue()
        for lane in range(self.threads):
            lanes.put(lane)

        def run(group: Any) -> None:
            lane = lanes.get()
            try:
                work(group, lane)
            finally:
                lanes.put(lane)

        with ThreadPoolExecutor(self.threads, "dreamda") as pool:  # after an error, and Ctrl-C, what runs is waited for
            running: set[Future[None]] = set()
            for group in groups:
                running.add(pool.submit(run, group))
                if len(running) == self.threads:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
            for future in as_completed(running):
                future.result()

    def encode(self, images: np.ndarray, keys: Sequence[int | str] | None = None, seed: int = 0, sample: bool = True) -> np.ndarray:
        """Scaled latents of images.

        Parameters
        ----------
        images : uint8 array (N, H, W, 3)
        keys, seed
            As in `augment`.
        sample : bool
            Sample the VAE's posterior, the noise keyed by `seed` and `keys`, as ``cycle`` and ``sdedit`` do; False takes its mean,
            as ``asymmetric`` does.

        Returns
        -------
        float32 array (N, latent_channels, height / factor, width / factor)
        """
        images = _check_images(images)
        height, width = self.size
        identities = _identities(len(images), keys)
        shape = (self.vae.config["latent_channels"], height // self.vae.factor, width // self.vae.factor)
        batch = self._group(1, *shape[1:])
        result = np.empty((len(images), *shape), np.float32)

        def encode(first: int, lane: int | None) -> None:
            part = images[first : first + batch]
            x = np.stack([_resize(image, height, width) for image in part]).transpose(0, 3, 1, 2) / np.float32(127.5) - np.float32(1)
            noise = None
            if sample:
                drawn = [_core.normals(seed, k, 0, 0, STREAM_POSTERIOR, 0, shape) for k in identities[first : first + batch]]
                noise = _pad(np.stack(drawn), batch)
            result[first : first + batch] = self.vae.encode(_pad(x, batch), noise, lane)[: len(part)]

        self._each(range(0, len(images), batch), encode, shape[1:])
        return result

    def _decode(self, latents: np.ndarray, batch: int, lane: int | None) -> np.ndarray:
        x = self.vae.decode(_pad(latents, batch), lane)[: len(latents)].transpose(0, 2, 3, 1)
        if not np.isfinite(x).all():
            raise _core.Error("the model made pixels that are not numbers; use dtype f32, or a smaller guidance or noise scale")
        return np.rint(np.clip(x / 2 + np.float32(0.5), 0, 1) * 255).astype(np.uint8)

    def _group(self, rows: int, h: int, w: int) -> int:
        """How many units of `rows` U-Net rows go into one call. Depends on nothing but the model and the mode."""
        return max(1, POSITIONS // (rows * h * w))

    # ---------------------------------------------------------------------------------------------- latents

    @accepts(GenerationOptions, variants=4)
    def augment_latents(self, z0: np.ndarray, prompts: Sequence[str], keys: Sequence[int | str] | None = None, *,
                        progress: Callable[[int, int], None] | None = None, **options: Unpack[OptionKeywords]) -> np.ndarray:
        """Everything of `augment` between encoding and decoding.

        Parameters
        ----------
        z0 : float32 array (N, latent_channels, h, w)
            Scaled latents of the images, from `encode`.
        prompts, keys, progress
            As in `augment`.
        GenerationOptions
            Its fields, by keyword.

        Returns
        -------
        float32 array (N, K, latent_channels, h, w)

        Raises
        ------
        ValueError
            As in `augment`, or `z0` is no such array.
        """
        z0 = np.asarray(z0, np.float32)
        if z0.ndim != 4 or z0.shape[1] != self.vae.config["latent_channels"] or 0 in z0.shape[2:]:
            raise ValueError(f"z0: expected (N, {self.vae.config['latent_channels']}, h, w), got shape {z0.shape}")
        prompts, identities = _per_image(len(z0), prompts, keys)
        mode = from_keywords(GenerationOptions, Pipeline.augment_latents, options)
        self.schedule.steps(mode.steps, mode.strength, mode.eta)
        result = np.empty((len(z0), mode.variants, *z0.shape[1:]), np.float32)
        for part in self._blocks(len(z0), mode.variants, *z0.shape[2:]):
            self._embed(prompts[part], mode, z0.shape[2:])
            report = _section(progress, part.start, len(z0[part]), len(z0))
            result[part] = self._latents(z0[part], prompts[part], identities[part], mode, report)
        return result

    def _latents(self, z0: np.ndarray, prompts: list[str], keys: list[int], mode: GenerationOptions, progress: Callable[[int, int], None] | None,
                 first: int = 0, stop: Callable[[], bool] | None = None) -> np.ndarray:
        run = _Run(self, z0, prompts, keys, mode, progress, first, stop)
        return {"cycle": run.cycle, "asymmetric": run.asymmetric, "sdedit": run.sdedit}[mode.method]()

    def context(self, prompt: str) -> np.ndarray:
        """The embedding of a prompt; the last ones are remembered.

        Parameters
        ----------
        prompt : str

        Returns
        -------
        float32 array (tokens, context_dim)
        """
        with self._lock:
            if prompt not in self._contexts:
                self._contexts[prompt] = self.text_encoder([prompt])[0]
                if len(self._contexts) > MAX_PROMPTS:
                    self._contexts.popitem(last=False)
            return self._contexts[prompt]


class _Run:
    """One call of `augment_latents`: the units (image, variant), their noise, and the three recursions."""

    def __init__(self, pipe: Pipeline, z0: np.ndarray, prompts: list[str], keys: list[int], mode: GenerationOptions,
                 progress: Callable[[int, int], None] | None, first: int, stop: Callable[[], bool] | None) -> None:
        self.pipe, self.z0, self.prompts, self.keys, self.mode, self.progress = pipe, z0, prompts, keys, mode, progress
        self.first, self.stop = first, stop
        self.schedule = pipe.schedule
        self.steps = self.schedule.steps(mode.steps, mode.strength, mode.eta)
        self.guided = [mode.guidance_scale != 1 and mode.guidance_low <= s.t / self.schedule.num_train_timesteps < mode.guidance_high
                       for s in self.steps]
        self.target = 1 + any(self.guided)  # rows of a target, at most
        self.units = [(image, variant) for image in range(len(z0)) for variant in range(first, mode.variants)]
        self.stored: set[tuple[int, int]] = set()
        self.latents = np.empty((len(z0), mode.variants - first, *z0.shape[1:]), np.float32)
        self.done = self.total = 0
        self.lock = threading.Lock()

    def each(self, units: list[tuple[int, int]], rows: int, work: Callable[[list[tuple[int, int]], int | None], None]) -> None:
        """work(group, lane) for the units in groups of `rows` U-Net rows a unit."""
        self.pipe._each(self.groups(units, rows), work, self.z0.shape[2:])

    # ---- noise

    def noise(self, stream: int, image: int, variant: int, step: int) -> np.ndarray:
        return _core.normals(self.mode.seed, self.keys[image], variant, step, stream, 0, self.z0.shape[1:])

    def start(self, image: int, variant: int) -> np.ndarray:
        """x_T of a unit: the image's latent with noise added up to the first timestep."""
        a = self.steps[0].a_t
        if self.mode.diverse:
            noise = self.noise(STREAM_CANDIDATE, image, self.chosen[image][variant], 0)
        else:
            noise = self.noise(STREAM_START, image, 0 if self.mode.share_start else variant, 0)
        return np.float32(math.sqrt(a)) * self.z0[image] + np.float32(math.sqrt(1 - a)) * noise

    @cached_property
    def chosen(self) -> list[list[int]]:
        """For every image, the numbers of the candidates that its variants start from."""
        variants = range(CANDIDATES * self.mode.variants)
        return [choose_diverse(np.stack([self.noise(STREAM_CANDIDATE, image, m, 0) for m in variants]), self.mode.variants)
                for image in range(len(self.z0))]

    def step_noise(self, units: list[tuple[int, int]], step: Step) -> np.ndarray:
        """sigma n of a step; zeros where the step adds none."""
        if step.sigma == 0:
            return np.zeros((len(units), *self.z0.shape[1:]), np.float32)
        return np.float32(step.sigma) * np.stack([self.noise(STREAM_STEP, *unit, step.index) for unit in units])

    # ---- U-Net calls

    def groups(self, units: list[tuple[int, int]], rows: int) -> Iterator[list[tuple[int, int]]]:
        """The units in fixed-size groups; a short last one is filled up by repeating its last unit."""
        size = self.pipe._group(rows, *self.z0.shape[2:])
        for first in range(0, len(units), size):
            if self.stop and self.stored and self.stop():
                return
            group = units[first : first + size]
            yield group + [group[-1]] * (size - len(group))

    def expect(self, units: int, rows: int, targets: bool = True) -> None:
        size = self.pipe._group(rows, *self.z0.shape[2:])
        saved = self.guided.count(False) if targets and self.target > 1 else 0
        self.total += -(-units // size) * size * (rows * len(self.steps) - saved)

    def predict(self, x: np.ndarray, t: int, rows: list[_Row], units: list[tuple[int, int]], index: int,
                lane: int | None, decoders: int = 1) -> dict[str, np.ndarray]:
        """U-Net outputs for `rows`; row r sees x[r.unit]."""
        h, w = self.z0.shape[2:]
        tokens = rows[0].context.shape[0]
        plan = self.pipe.unet.plan(lane, rows=len(rows), height=h, width=w, tokens=tokens, decoders=decoders)
        inputs = {
            "sample": x[[r.unit for r in rows]],
            "timestep": np.full(len(rows), t, np.float32),
            "context": np.stack([r.context for r in rows]),
        }
        if self.mode.perturbation > 0 and any(r.noise_row is not None for r in rows):
            inputs["noise_scale"] = np.array([0 if r.noise_row is None else self.mode.perturbation for r in rows], np.float32)
            inputs["noise_key"] = np.array([self.key(*units[r.unit], index, r.noise_row or 0) for r in rows], np.uint32)
        out = plan.run(inputs)
        with self.lock:
            self.done += len(rows)
            if self.progress:
                self.progress(self.done, self.total)
        return out

    def key(self, image: int, variant: int, index: int, row: int) -> list[int]:
        seed, key, low = self.mode.seed, self.keys[image], 0xFFFFFFFF
        return [seed & low, seed >> 32, key & low, key >> 32, variant, index, STREAM_BOTTLENECK, row]

    def target_rows(self, units: list[tuple[int, int]], step: Step) -> list[_Row]:
        """Unconditional rows (where the step is guided), then text rows; all of them perturbed, with draws of their own."""
        text = [_Row(u, self.pipe.context(self.prompts[image]), 1) for u, (image, _) in enumerate(units)]
        if not self.guided[step.index]:
            return text
        return [_Row(u, self.pipe.context(""), 0) for u in range(len(units))] + text

    def source_rows(self, count: int) -> list[_Row]:
        text = [_Row(u, self.pipe.context(self.mode.source_prompt)) for u in range(count)]
        if self.mode.source_prompt == "" or self.mode.source_guidance_scale == 1:
            return text
        return [_Row(u, self.pipe.context("")) for u in range(count)] + text

    # ---- the recursions

    def cycle(self) -> np.ndarray:
        mode = self.mode
        source = len(self.source_rows(1))
        if mode.share_source:
            self.expect(len(self.z0), source, targets=False)
            self.expect(len(self.units), self.target)
            trajectories = self.source_trajectories(source)
        else:
            self.expect(len(self.units), source + self.target)
            trajectories = None

        def work(group: list[tuple[int, int]], lane: int | None) -> None:
            x = x_source = np.stack([self.start(*unit) for unit in group])
            # Source rows come behind the targets in one call, over the source's own latents.
            sources = [_Row(r.unit + len(group), r.context) for r in self.source_rows(len(group))]
            for step in self.steps:
                targets = self.target_rows(group, step)
                if trajectories is not None:
                    out = self.predict(x, step.t, targets, group, step.index, lane)["sample"]
                    mean_source, next_source = (np.stack(a) for a in zip(*(trajectories[image][step.index] for image, _ in group)))
                else:
                    both = self.predict(np.concatenate([x, x_source]), step.t, targets + sources, group + group, step.index, lane)
                    out, out_source = both["sample"][: len(targets)], both["sample"][len(targets) :]
                    mean_source = self.schedule.mean(_guide(out_source, len(group), mode.source_guidance_scale), x_source, step)
                    next_source = self.posterior(x_source, group, step)
                mean = self.schedule.mean(_guide(out, len(group), mode.guidance_scale), x, step)
                x, x_source = next_source + (mean - mean_source), next_source
            self.store(group, x)

        self.each(self.units, self.target if mode.share_source else source + self.target, work)
        return self.result

    def posterior(self, x: np.ndarray, units: list[tuple[int, int]], step: Step) -> np.ndarray:
        """x_p of the source: a sample of q(x_p | x_t, z0)."""
        z0 = self.z0[[image for image, _ in units]]
        if step.p <= 0:
            return z0
        noise = (x - np.float32(math.sqrt(step.a_t)) * z0) * np.float32(1 / math.sqrt(1 - step.a_t))
        return np.float32(math.sqrt(step.a_p)) * z0 + np.float32(step.direction) * noise + self.step_noise(units, step)

    def source_trajectories(self, rows: int) -> dict[int, list[tuple[np.ndarray, np.ndarray]]]:
        """For every image, (mean, next latent) of each step of the one source that all its variants share."""
        result: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {image: [] for image in range(len(self.z0))}

        def work(group: list[tuple[int, int]], lane: int | None) -> None:
            x = np.stack([self.start(*unit) for unit in group])
            sources = self.source_rows(len(group))
            for step in self.steps:
                out = self.predict(x, step.t, sources, group, step.index, lane)["sample"]
                mean = self.schedule.mean(_guide(out, len(group), self.mode.source_guidance_scale), x, step)
                x = self.posterior(x, group, step)
                for u, (image, _) in enumerate(group):
                    if len(result[image]) == step.index:  # a filled-up group repeats its last image
                        result[image].append((mean[u], x[u]))

        self.each([(image, 0) for image in result], rows, work)
        return result

    def asymmetric(self) -> np.ndarray:
        mode = self.mode
        self.expect(len(self.z0), 1, targets=False)
        self.expect(len(self.units), self.target)
        starts = self.inversions()

        def work(group: list[tuple[int, int]], lane: int | None) -> None:
            x = np.stack([starts[image] for image, _ in group])
            for step in self.steps:
                out = self.predict(x, step.t, self.target_rows(group, step), group, step.index, lane, decoders=2)
                clean = _guide(out["sample"], len(group), mode.guidance_scale)
                perturbed = _guide(out["perturbed"], len(group), mode.guidance_scale)
                noise, _ = self.schedule.noise_and_image(clean, x, step.a_t)
                _, image = self.schedule.noise_and_image(perturbed, x, step.a_t)
                x = (np.float32(math.sqrt(step.a_p)) * image + np.float32(step.direction) * noise
                     + self.step_noise(group, step))
            self.store(group, x)

        self.each(self.units, self.target, work)
        return self.result

    def inversions(self) -> list[np.ndarray]:
        """x_T of every image by DDIM inversion (no noise, no guidance): each step is undone with the prediction made at the
        less noisy latent under the noisier timestep."""
        result: list[np.ndarray] = [np.empty(0)] * len(self.z0)
        context = self.pipe.context(self.mode.source_prompt)

        def work(group: list[tuple[int, int]], lane: int | None) -> None:
            x = self.z0[[image for image, _ in group]]
            rows = [_Row(u, context) for u in range(len(group))]
            for step in reversed(self.steps):
                x = self.schedule.undo(self.predict(x, step.t, rows, group, step.index, lane)["sample"], x, step)
            for u, (image_index, _) in enumerate(group):
                result[image_index] = x[u]

        self.each([(image, 0) for image in range(len(self.z0))], 1, work)
        return result

    def sdedit(self) -> np.ndarray:
        self.expect(len(self.units), self.target)

        def work(group: list[tuple[int, int]], lane: int | None) -> None:
            x = np.stack([self.start(*unit) for unit in group])
            for step in self.steps:
                out = self.predict(x, step.t, self.target_rows(group, step), group, step.index, lane)["sample"]
                x = self.schedule.mean(_guide(out, len(group), self.mode.guidance_scale), x, step) + self.step_noise(group, step)
            self.store(group, x)

        self.each(self.units, self.target, work)
        return self.result

    def store(self, group: list[tuple[int, int]], x: np.ndarray) -> None:
        for (image, variant), latent in zip(group, x):
            self.latents[image, variant - self.first] = latent
            self.stored.add((image, variant))

    @property
    def result(self) -> np.ndarray:
        """The latents of the variants that were finished: all but for `stop`."""
        return self.latents[:, : len(self.stored) // len(self.z0)] if self.stop else self.latents


def _guide(out: np.ndarray, units: int, scale: float) -> np.ndarray:
    """Classifier-free guidance over [unconditional rows, text rows]; text rows alone pass through."""
    if len(out) == units:
        return out
    unconditional, text = out[:units], out[units:]
    return unconditional + np.float32(scale) * (text - unconditional)


def _file_digest(file: Path) -> bytes:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.digest()


def _check_images(images: np.ndarray) -> np.ndarray:
    try:
        images = np.asarray(images)
    except ValueError:
        raise ValueError("images: they differ in size; resize them, or pass them one by one") from None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape[1:]:
        raise ValueError(f"images: expected uint8 (N, H, W, 3), got {images.dtype} {images.shape}")
    return images


def _identities(count: int, keys: Sequence[int | str] | None) -> list[int]:
    if keys is None:
        return list(range(count))
    if isinstance(keys, str) or len(keys) != count:
        raise ValueError(f"keys: expected one an image ({count})")
    return [image_key(k) for k in keys]


def _per_image(count: int, prompts: Sequence[str], keys: Sequence[int | str] | None) -> tuple[list[str], list[int]]:
    if isinstance(prompts, str) or len(prompts) != count or not all(isinstance(p, str) for p in prompts):
        raise ValueError(f"prompts: expected a list of {count} texts, one an image")
    return list(prompts), _identities(count, keys)


def _check_size(size: tuple[int, int], factor: int) -> tuple[int, int]:
    try:
        height, width = (int(v) for v in size)
    except (TypeError, ValueError):
        raise ValueError(f"size: expected (height, width), got {size!r}") from None
    if height < factor or width < factor or height % factor or width % factor or max(height, width) > 8192:
        raise ValueError(f"size: {height} x {width} is not possible; use multiples of {factor}, up to 8192")
    return height, width


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image.astype(np.float32)
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC), np.float32)


def _pad(array: np.ndarray, rows: int) -> np.ndarray:
    return np.concatenate([array, np.repeat(array[-1:], rows - len(array), axis=0)]) if len(array) < rows else array


def _bar(images: int) -> Callable[[int, int], None]:
    """A progress bar as such a callable; it closes itself at the end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in Jupyter without ipywidgets the bar is one of text, which is as good
        from tqdm.auto import tqdm

    bar = tqdm(total=images, unit="image", bar_format="{l_bar}{bar}| {n:.1f}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]")

    def report(done: int, total: int) -> None:
        bar.update(images * done / total - bar.n)
        if done >= total:
            bar.close()

    return report


def _section(progress: Callable[[int, int], None] | None, first: int, count: int, images: int) -> Callable[[int, int], None] | None:
    """Progress of a block of images, as a share of all of them."""
    if progress is None:
        return None
    scale = 1_000_000

    def report(done: int, total: int) -> None:
        progress(int(scale * (first + count * done / total) / images), scale)

    return report
