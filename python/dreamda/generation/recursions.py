"""The reverse processes of DreamDA (arXiv 2403.12803, section 3.2 and figure 2): latents in, perturbed latents out.

There are three methods:

* ``cycle``: the authors' published code. A source trajectory is sampled from the posterior given the real image. Its
  noise drives the target, but is never computed, as it cancels:
  ``x_p = x_p_source + mean(target) - mean(source)``.
* ``asymmetric``: the paper's figure. The real image (the mean of its posterior) is inverted deterministically. Then the
  clean image comes from the perturbed prediction, and the direction from the clean prediction.
* ``sdedit``: plain img2img (Meng et al., 2022), the baseline.

All noise is keyed by the seed, the image's key and the variant. So an image does not depend on the other images, their
order, or interruptions.
"""
from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from .. import _core
from ..networks.models import guidance_input, size_input
from .lanes import work_through
from .options import GenerationOptions
from .schedulers import Step
from .tiles import Part, Tiles, stacked

if TYPE_CHECKING:
    from .pipeline import Pipeline

# Streams of `dreamda.normals`, one for each purpose of noise.
STREAM_POSTERIOR, STREAM_START, STREAM_STEP, STREAM_BOTTLENECK, STREAM_CANDIDATE = range(5)
# Called after a step with its number, its timestep, the latents (n, channels, h, w), and their n pairs
# (image, variant).
StepCallback = Callable[[int, int, np.ndarray, list[tuple[int, int]]], None]
CANDIDATES = 4  # number of noises drawn for each one that `diverse` keeps


@dataclass
class _Row:
    """One row of a U-Net call: its latents, condition, and noise at the bottleneck."""

    unit: int
    condition: Mapping[str, np.ndarray]  # from `Pipeline.condition`
    noise_row: int | None = None  # the key's row; None: no noise
    guidance_scale: float = 1.0  # for models that take it as an input


def choose_diverse(candidates: np.ndarray, count: int) -> list[int]:
    """Indices of `count` mutually dissimilar arrays.

    The first is chosen, then always the one whose largest cosine similarity to those already chosen is smallest (the
    authors' idea; their own helper returns a wrong variable).

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


class ReverseProcess:
    """Makes the latents of variants from those of images.

    Parameters
    ----------
    pipe : dreamda.Pipeline
    z0 : float32 array (N, latent_channels, h, w)
    prompts : list of list of str
        For each image, one for each variant.
    keys : list of int
        One for each image.
    options : GenerationOptions
    progress : callable(done, total), optional
        Called after every U-Net call.
    callback : callable(step, timestep, latents, units), optional
        Called after every step of a group of units (image, variant).
    first : int
        Leave out the variants before this one.
    stop : callable, optional
        Called before every group of variants except the first; True ends the work early.
    kept : bool array (N, h, w), optional
        Latent positions that stay the image's own.
    beside : float32 array (N, 1 + latent_channels, h, w), optional
        For an inpainting U-Net: the mask and the latents of the masked image, its inputs beside the latents.
    tiles : dreamda.generation.tiles.Tiles, optional
        The parts of the latents that the U-Net sees at a time. Default: all.
    """

    def __init__(self,
                 pipe: Pipeline,
                 z0: np.ndarray,
                 prompts: list[list[str]],
                 keys: list[int],
                 options: GenerationOptions,
                 progress: Callable[[int, int], None] | None = None,
                 callback: StepCallback | None = None,
                 first: int = 0,
                 stop: Callable[[], bool] | None = None,
                 kept: np.ndarray | None = None,
                 beside: np.ndarray | None = None,
                 tiles: Tiles | None = None) -> None:
        self.pipe, self.z0, self.prompts, self.keys = pipe, z0, prompts, keys
        self.options, self.progress = options, progress
        self.callback, self.first, self.stop, self.kept, self.beside = callback, first, stop, kept, beside
        self.schedule, self.tiles = pipe.schedule, tiles or Tiles.whole((z0.shape[2], z0.shape[3]))
        self.steps = self.schedule.steps(options.steps, options.strength, options.eta)
        within = [
            options.guidance_low <= s.t / self.schedule.num_train_timesteps < options.guidance_high for s in self.steps
        ]
        # A model that takes the guidance as an input needs no second row. 0 turns guidance off, for models that were
        # distilled to need none.
        self.guidances = [options.guidance_scale if w else 1.0 for w in within]
        self.guided = [pipe.guided_by_rows and g not in (0, 1) for g in self.guidances]
        # Without text, the source's condition is the image's own.
        self.source_prompts = [options.source_prompt if pipe.conditioning == "text" else own[0] for own in prompts]
        self.target = 1 + any(self.guided)  # rows of a target, at most
        self.units = [(image, variant) for image in range(len(z0)) for variant in range(first, options.variants)]
        # For every unit, the length of its contexts in chunks. A longer prompt of another unit must not change it.
        shared = [options.negative_prompt]
        if options.method == "cycle" and not options.share_source:
            shared.append(options.source_prompt)
        least = max(map(self.chunks_of, shared))
        self.chunks = {(i, k): max(least, self.chunks_of(prompts[i][k])) for i, k in self.units}
        self.stored: set[tuple[int, int]] = set()
        self.latents = np.empty((len(z0), options.variants - first, *z0.shape[1:]), np.float32)
        self.done = self.total = 0
        self.lock = threading.Lock()
        # chosen here, as otherwise all lanes would do it at the same time
        self.chosen = self.choose() if options.diverse else []

    def run(self) -> np.ndarray:
        """The latents of the finished variants, float32 (N, K - first, latent_channels, h, w).

        These are all variants, unless `stop` ended the work early.
        """
        {"cycle": self.cycle, "asymmetric": self.asymmetric, "sdedit": self.sdedit}[self.options.method]()
        return self.latents[:, : len(self.stored) // len(self.z0)] if self.stop else self.latents

    def each(self, runs: list[list[tuple[int, int]]], rows: int,
             work: Callable[[list[tuple[int, int]], int | None], None]) -> None:
        """Call work(group, lane) for the units in groups, with `rows` U-Net rows per unit."""
        work_through(self.groups(runs, rows), work, self.pipe.threads, self.tiles.tile)

    # ---- prompts

    def condition(self, prompt: str | None, chunks: int = 1) -> dict[str, np.ndarray]:
        """The inputs of a row that depend on its prompt, whose embedding has at least `chunks` chunks."""
        return self.pipe.condition(prompt, self.options.prompt_syntax, chunks)

    def chunks_of(self, prompt: str) -> int:
        """The number of chunks of a prompt's embedding; 1 for models without one."""
        if self.pipe.conditioning != "text":
            return 1
        return len(self.condition(prompt)["context"]) // len(self.condition("")["context"])

    def variants(self) -> list[list[tuple[int, int]]]:
        """All units, divided where the length of their contexts changes: a U-Net call has one length."""
        return [list(run) for _, run in groupby(self.units, key=self.chunks.__getitem__)]

    def sources(self) -> list[list[tuple[int, int]]]:
        """The units of work that is done once per image."""
        return [[(image, 0) for image in range(len(self.z0))]]

    # ---- noise

    def noise(self, stream: int, image: int, variant: int, step: int) -> np.ndarray:
        """The noise of a unit for one purpose, in the shape of its latent."""
        return _core.normals(self.options.seed, self.keys[image], variant, step, stream, 0, self.z0.shape[1:])

    def start(self, image: int, variant: int) -> np.ndarray:
        """x_T of a unit: the image's latent with noise added up to the first timestep."""
        a = self.steps[0].a_t
        if self.options.diverse:
            noise = self.noise(STREAM_CANDIDATE, image, self.chosen[image][variant], 0)
        else:
            noise = self.noise(STREAM_START, image, 0 if self.options.share_start else variant, 0)
        return np.float32(math.sqrt(a)) * self.z0[image] + np.float32(math.sqrt(1 - a)) * noise

    def choose(self) -> list[list[int]]:
        """For every image, the candidates from which its variants start, by number."""
        variants = range(CANDIDATES * self.options.variants)
        return [
            choose_diverse(np.stack([self.noise(STREAM_CANDIDATE, image, m, 0)
                                     for m in variants]), self.options.variants) for image in range(len(self.z0))
        ]

    def step_noise(self, units: list[tuple[int, int]], step: Step) -> np.ndarray:
        """The fresh noise of a step, sigma n; zeros if the step adds none."""
        if step.sigma == 0:
            return np.zeros((len(units), *self.z0.shape[1:]), np.float32)
        return np.float32(step.sigma) * np.stack([self.noise(STREAM_STEP, *unit, step.index) for unit in units])

    # ---- U-Net calls

    def groups(self, runs: list[list[tuple[int, int]]], rows: int) -> Iterator[list[tuple[int, int]]]:
        """The units in fixed-size groups; the short last one of a run is filled up by repeating its last unit."""
        size, _ = self.tiles.batches(rows)
        for units in runs:
            for first in range(0, len(units), size):
                if self.stop and self.stored and self.stop():
                    return
                group = units[first : first + size]
                yield group + [group[-1]] * (size - len(group))

    def expect(self, runs: list[list[tuple[int, int]]], rows: int, targets: bool = True) -> None:
        """Add the U-Net rows that the units will need to the total of the progress."""
        size, _ = self.tiles.batches(rows)
        saved = self.guided.count(False) if targets and self.target > 1 else 0
        groups = sum(-(-len(units) // size) for units in runs)
        self.total += groups * size * (rows * len(self.steps) - saved) * len(self.tiles)

    def predict(self, x: np.ndarray, t: int, rows: list[_Row], units: list[tuple[int, int]], index: int,
                lane: int | None, decoders: int = 1) -> dict[str, np.ndarray]:
        """U-Net outputs for `rows`; row r sees x[r.unit]."""
        h, w = self.tiles.tile
        sample = self.pipe.unet.centred(x[[r.unit for r in rows]])
        if self.beside is not None:
            sample = np.concatenate([sample, self.beside[[units[r.unit][0] for r in rows]]], axis=1)
        inputs = {
            "timestep": np.full(len(rows), t, np.float32),
            **{name: np.stack([r.condition[name] for r in rows]) for name in rows[0].condition}
        }
        tokens = {"tokens": inputs["context"].shape[1]} if "context" in inputs else {}
        _, together = self.tiles.batches(len(rows))
        plan = self.pipe.unet.plan(lane, rows=len(rows) * together, height=h, width=w, decoders=decoders, **tokens)
        if self.pipe.unet.takes_size:
            inputs["time_ids"] = size_input(h * self.pipe.vae.factor, w * self.pipe.vae.factor, len(rows))
        if self.pipe.unet.takes_guidance:
            inputs["guidance"] = guidance_input([r.guidance_scale for r in rows], len(rows))
        noise: np.ndarray | None = None
        if self.options.perturbation > 0 and any(r.noise_row is not None for r in rows):
            inputs["noise_scale"] = np.array([0 if r.noise_row is None else self.options.perturbation for r in rows],
                                             np.float32)
            if self.kept is None and len(self.tiles) == 1:
                inputs["noise_key"] = np.array([self.key(*units[r.unit], index, r.noise_row or 0) for r in rows],
                                               np.uint32)
            else:
                noise = np.stack([self.bottleneck_noise(*units[r.unit], index, r.noise_row or 0) for r in rows])
        if together > 1:
            inputs = {name: np.concatenate([array] * together) for name, array in inputs.items()}
        names = ("sample", "perturbed")[:decoders]

        def call(parts: Sequence[Part]) -> Sequence[np.ndarray]:
            inputs["sample"] = stacked(sample, parts, together)
            if noise is not None:
                inputs["noise"] = stacked(noise, parts, together, self.coarse)
            out = plan.run(inputs)
            with self.lock:
                self.done += len(rows) * len(parts)
                if self.progress:
                    self.progress(self.done, self.total)
            return np.split(np.stack([out[name] for name in names]), together, axis=1)

        return dict(zip(names, self.tiles.blended(call, together)))

    def coarse(self, part: slice) -> slice:
        """A part of the latents' rows or columns, at the bottleneck."""
        levels = len(self.pipe.unet.config["block_out_channels"]) - 1
        return slice(part.start >> levels, part.stop >> levels)

    def key(self, image: int, variant: int, index: int, row: int) -> list[int]:
        """The key from which the core draws a row's noise at the bottleneck, as 32-bit words."""
        seed, key, low = self.options.seed, self.keys[image], 0xFFFFFFFF
        return [seed & low, seed >> 32, key & low, key >> 32, variant, index, STREAM_BOTTLENECK, row]

    def bottleneck_noise(self, image: int, variant: int, index: int, row: int) -> np.ndarray:
        """The noise that the core would draw for a row at the bottleneck, scaled by the share that is not kept."""
        h, w = self.tiles.size
        levels = len(self.pipe.unet.config["block_out_channels"]) - 1
        shape = (self.pipe.unet.config["block_out_channels"][-1], h >> levels, w >> levels)
        noise = _core.normals(self.options.seed, self.keys[image], variant, index, STREAM_BOTTLENECK, row, shape)
        if self.kept is None:
            return noise
        return noise * (1 - self.kept[image].reshape(shape[1], 1 << levels, shape[2], 1 << levels).mean(
            (1, 3), np.float32))

    def keep(self, units: list[tuple[int, int]], x: np.ndarray, known: Callable[[], np.ndarray]) -> np.ndarray:
        """Latents after a step, with the `known` ones at kept positions."""
        if self.kept is None:
            return x
        return np.where(self.kept[[image for image, _ in units], None], known(), x)

    def kept_noise(self, units: list[tuple[int, int]], start: np.ndarray) -> np.ndarray:
        """The noise in the latents from which the units start. Kept positions have this noise to the end."""
        a, z0 = self.steps[0].a_t, self.z0[[image for image, _ in units]]
        return (start - np.float32(math.sqrt(a)) * z0) * np.float32(1 / math.sqrt(1 - a))

    def known(self, units: list[tuple[int, int]], step: Step, noise: np.ndarray) -> np.ndarray:
        """The images' own latents after a step, with `kept_noise`."""
        z0 = self.z0[[image for image, _ in units]]
        if step.index == len(self.steps) - 1:
            return z0
        return np.float32(math.sqrt(step.a_p)) * z0 + np.float32(math.sqrt(1 - step.a_p)) * noise

    def target_rows(self, units: list[tuple[int, int]], step: Step) -> list[_Row]:
        """Rows of the negative prompt (if the step is guided), then text rows. Each is perturbed with its own draw."""
        guidance, chunks = self.guidances[step.index], self.chunks[units[0]]
        text = [_Row(u, self.condition(self.prompts[image][variant], chunks), 1, guidance)
                for u, (image, variant) in enumerate(units)]
        if not self.guided[step.index]:
            return text
        negative = self.condition(self.options.negative_prompt or None, chunks)
        return [_Row(u, negative, 0) for u in range(len(units))] + text

    def source_rows(self, units: list[tuple[int, int]], chunks: int) -> list[_Row]:
        """Unconditional rows (if the source is guided), then text rows, all without perturbation."""
        guidance = self.options.source_guidance_scale
        text = [_Row(u, self.condition(self.source_prompts[image], chunks), guidance_scale=guidance)
                for u, (image, _) in enumerate(units)]
        if self.options.source_prompt == "" or guidance in (0, 1) or not self.pipe.guided_by_rows:
            return text
        return [_Row(u, self.condition(None, chunks)) for u in range(len(units))] + text

    # ---- the recursions

    def cycle(self) -> None:
        """The authors' code: the target follows the source's noise."""
        options = self.options
        source, units = len(self.source_rows([(0, 0)], 1)), self.variants()
        if options.share_source:
            self.expect(self.sources(), source, targets=False)
            self.expect(units, self.target)
            trajectories = self.source_trajectories(source)
        else:
            self.expect(units, source + self.target)
            trajectories = None

        def work(group: list[tuple[int, int]], lane: int | None) -> None:
            x = x_source = np.stack([self.start(*unit) for unit in group])
            # Source rows follow the target rows in the same call, with the source's own latents.
            sources = [
                replace(r, unit=r.unit + len(group)) for r in self.source_rows(group, self.chunks[group[0]])
            ]
            before: np.ndarray | None = None
            before_source: np.ndarray | None = None
            for step in self.steps:
                targets = self.target_rows(group, step)
                if trajectories is not None:
                    out = self.predict(x, step.t, targets, group, step.index, lane)["sample"]
                    mean_source, next_source = (np.stack(a)
                                                for a in zip(*(trajectories[image][step.index] for image, _ in group)))
                else:
                    both = self.predict(np.concatenate([x, x_source]), step.t, targets + sources, group + group,
                                        step.index, lane)
                    out, out_source = both["sample"][: len(targets)], both["sample"][len(targets) :]
                    out_source = _guide(out_source, len(group), options.source_guidance_scale)
                    mean_source, before_source = self.schedule.mean(out_source, x_source, step, before_source)
                    next_source = self.posterior(x_source, group, step)
                mean, before = self.schedule.mean(_guide(out, len(group), options.guidance_scale), x, step, before)
                x, x_source = self.keep(group, next_source + (mean - mean_source), lambda: next_source), next_source
                self.step_done(group, step, x)
            self.store(group, x)

        self.each(units, self.target if options.share_source else source + self.target, work)

    def posterior(self, x: np.ndarray, units: list[tuple[int, int]], step: Step) -> np.ndarray:
        """x_p of the source: a sample of q(x_p | x_t, z0)."""
        z0 = self.z0[[image for image, _ in units]]
        if step.p <= 0:
            return z0
        noise = (x - np.float32(math.sqrt(step.a_t)) * z0) * np.float32(1 / math.sqrt(1 - step.a_t))
        return np.float32(math.sqrt(step.a_p)) * z0 + np.float32(step.direction) * noise + self.step_noise(units, step)

    def source_trajectories(self, rows: int) -> dict[int, list[tuple[np.ndarray, np.ndarray]]]:
        """For every image, (mean, next latent) at each step of the source that all its variants share."""
        result: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {image: [] for image in range(len(self.z0))}

        def work(group: list[tuple[int, int]], lane: int | None) -> None:
            x = np.stack([self.start(*unit) for unit in group])
            sources = self.source_rows(group, self.chunks_of(self.options.source_prompt))
            before: np.ndarray | None = None
            for step in self.steps:
                out = self.predict(x, step.t, sources, group, step.index, lane)["sample"]
                mean, before = self.schedule.mean(_guide(out, len(group), self.options.source_guidance_scale), x, step,
                                                  before)
                x = self.posterior(x, group, step)
                for u, (image, _) in enumerate(group):
                    if len(result[image]) == step.index:  # a filled-up group repeats its last image
                        result[image].append((mean[u], x[u]))

        self.each(self.sources(), rows, work)
        return result

    def asymmetric(self) -> None:
        """The paper's figure: inversion, then perturbed images and clean directions."""
        options = self.options
        self.expect(self.sources(), 1, targets=False)
        self.expect(self.variants(), self.target)
        starts = self.inversions()

        def work(group: list[tuple[int, int]], lane: int | None) -> None:
            x = np.stack([starts[image] for image, _ in group])
            kept_noise = self.kept_noise(group, x)
            before: np.ndarray | None = None
            for step in self.steps:
                out = self.predict(x, step.t, self.target_rows(group, step), group, step.index, lane, decoders=2)
                clean = _guide(out["sample"], len(group), options.guidance_scale)
                perturbed = _guide(out["perturbed"], len(group), options.guidance_scale)
                noise, _ = self.schedule.noise_and_image(clean, x, step)
                _, image = self.schedule.noise_and_image(perturbed, x, step)
                x = self.schedule.combine(noise, image, step, before) + self.step_noise(group, step)
                x = self.keep(group, x, partial(self.known, group, step, kept_noise))
                before = image
                self.step_done(group, step, x)
            self.store(group, x)

        self.each(self.variants(), self.target, work)

    def inversions(self) -> list[np.ndarray]:
        """x_T of every image by DDIM inversion, without noise or guidance.

        Each step is undone with the prediction for the less noisy latent at the noisier timestep.
        """
        result: list[np.ndarray] = [np.empty(0)] * len(self.z0)

        def work(group: list[tuple[int, int]], lane: int | None) -> None:
            x = self.z0[[image for image, _ in group]]
            rows = [_Row(u, self.condition(self.source_prompts[image])) for u, (image, _) in enumerate(group)]
            for step in reversed(self.steps):
                x = self.schedule.undo(self.predict(x, step.t, rows, group, step.index, lane)["sample"], x, step)
            for u, (image_index, _) in enumerate(group):
                result[image_index] = x[u]

        self.each(self.sources(), 1, work)
        return result

    def sdedit(self) -> None:
        """Plain img2img."""
        self.expect(self.variants(), self.target)

        def work(group: list[tuple[int, int]], lane: int | None) -> None:
            x = np.stack([self.start(*unit) for unit in group])
            kept_noise = self.kept_noise(group, x)
            before: np.ndarray | None = None
            for step in self.steps:
                out = self.predict(x, step.t, self.target_rows(group, step), group, step.index, lane)["sample"]
                mean, before = self.schedule.mean(_guide(out, len(group), self.options.guidance_scale), x, step, before)
                x = self.keep(group, mean + self.step_noise(group, step), partial(self.known, group, step, kept_noise))
                self.step_done(group, step, x)
            self.store(group, x)

        self.each(self.variants(), self.target, work)

    def step_done(self, group: list[tuple[int, int]], step: Step, x: np.ndarray) -> None:
        """Call the callback, without the units that only fill up the group."""
        if self.callback:
            units = list(dict.fromkeys(group))
            with self.lock:
                self.callback(step.index, step.t, x[: len(units)], units)

    def store(self, group: list[tuple[int, int]], x: np.ndarray) -> None:
        """Store the latents of a finished group."""
        for (image, variant), latent in zip(group, x):
            self.latents[image, variant - self.first] = latent
            self.stored.add((image, variant))


def _guide(out: np.ndarray, units: int, scale: float) -> np.ndarray:
    """Classifier-free guidance over [unconditional rows, text rows]; text rows alone are returned unchanged."""
    if len(out) == units:
        return out
    unconditional, text = out[:units], out[units:]
    return unconditional + np.float32(scale) * (text - unconditional)
