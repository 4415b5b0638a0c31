"""The reverse processes of DreamDA (arXiv 2403.12803, section 3.2 and figure 2): latents in, perturbed latents out.

There are three methods:

* ``cycle``: the authors' published code. A source trajectory is sampled from the posterior given the real image. Its
  noise drives the target, but is never computed, as it cancels:
  ``x_p = x_p_source + mean(target) - mean(source)``.
* ``asymmetric``: the paper's figure. The real image (the mean of its posterior) is inverted deterministically. Then the
  clean image comes from the perturbed prediction, and the direction from the clean prediction.
* ``sdedit``: plain img2img (Meng et al., 2022), the baseline.

Variants from the text alone (`text_share`) are made by ``sdedit`` with strength 1, from latents that are 0.

All noise is keyed by the seed, the image's key and the variant. So an image does not depend on the other images, their
order, or interruptions.
"""
from __future__ import annotations

import heapq
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, takewhile
from typing import TYPE_CHECKING

import numpy as np

from .. import _core
from ..networks.models import guidance_input, size_input
from .lanes import work_through
from .options import GenerationOptions, is_from_text
from .schedulers import Step
from .tiles import Part, Tiles, stacked

if TYPE_CHECKING:
    from .pipeline import Pipeline

# Streams of `dreamda.normals`, one for each purpose of noise.
STREAM_POSTERIOR, STREAM_START, STREAM_STEP, STREAM_BOTTLENECK, STREAM_CANDIDATE = range(5)
# Called after a step with its number, its timestep, the latents (n, channels, h, w), and their n pairs
# (image, variant).
StepCallback = Callable[[int, int, np.ndarray, list[tuple[int, int]]], None]
Group = list[tuple[int, int]]  # the units, (image, variant), of a U-Net call
Work = Callable[[Group, int | None], None]  # makes a group in a lane
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


class Made:
    """What the processes of a call share: the latents of finished units, and the progress in U-Net rows.

    Parameters
    ----------
    progress : callable(done, total), optional
        Called after every U-Net call.
    """

    def __init__(self, progress: Callable[[int, int], None] | None = None) -> None:
        self.progress = progress
        self.latents: dict[tuple[int, int], np.ndarray] = {}
        self.done = self.total = 0
        self.lock = threading.Lock()

    def count(self, rows: int) -> None:
        """Report that U-Net rows are done."""
        with self.lock:
            self.done += rows
            if self.progress:
                self.progress(self.done, self.total)


def latents_of_variants(pipe: Pipeline,
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
                        tiles: Tiles | None = None) -> np.ndarray:
    """Make the latents of variants from those of images.

    Parameters
    ----------
    pipe, z0, prompts, keys, options, callback, kept, beside, tiles
        As in `ReverseProcess`.
    progress : callable(done, total), optional
        Called after every U-Net call.
    first : int
        Leave out the variants before this one.
    stop : callable, optional
        Called before every group of variants except the first; True ends the work early.

    Returns
    -------
    float32 array (N, K - first, latent_channels, h, w)
        If `stop` ended the work early, only the variants before the first unfinished one.
    """
    made, variants = Made(progress), range(first, options.variants)
    of_text = [k for k in variants if is_from_text(options.text_share, k)]
    of_image = [k for k in variants if not is_from_text(options.text_share, k)]
    processes = [ReverseProcess(pipe, latents, prompts, keys, chosen, numbers, made, callback, kept, beside, tiles)
                 for latents, chosen, numbers in ((np.zeros_like(z0), options.of_text, of_text),
                                                  (z0, options, of_image)) if numbers]
    prepared = [process.prepare() for process in processes]

    def groups() -> Iterator[tuple[Group, Work]]:
        for group, work in heapq.merge(*prepared, key=lambda each: each[0][0]):
            if stop and made.latents and stop():
                return
            yield group, work

    work_through(groups(), lambda each, lane: each[1](each[0], lane), pipe.threads, processes[0].tiles.tile)
    images = range(len(z0))
    finished = list(takewhile(lambda k: all((image, k) in made.latents for image in images), variants))
    return np.array([[made.latents[image, k] for k in finished] for image in images], np.float32)


class ReverseProcess:
    """Makes the latents of some variants of images, all in the same way.

    Parameters
    ----------
    pipe : dreamda.Pipeline
    z0 : float32 array (N, latent_channels, h, w)
    prompts : list of list of str
        For each image, one for each variant.
    keys : list of int
        One for each image.
    options : GenerationOptions
        `text_share` is unused.
    variants : list of int
        Their numbers.
    made : Made
        Gets the latents and the progress.
    callback : callable(step, timestep, latents, units), optional
        Called after every step of a group of units (image, variant).
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
                 variants: Sequence[int],
                 made: Made,
                 callback: StepCallback | None = None,
                 kept: np.ndarray | None = None,
                 beside: np.ndarray | None = None,
                 tiles: Tiles | None = None) -> None:
        self.pipe, self.z0, self.prompts, self.keys, self.options = pipe, z0, prompts, keys, options
        self.made, self.callback, self.kept, self.beside = made, callback, kept, beside
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
        self.units = [(image, variant) for image in range(len(z0)) for variant in variants]
        # For every unit, the length of its contexts in chunks. A longer prompt of another unit must not change it.
        shared = [options.negative_prompt]
        if options.method == "cycle" and not options.share_source:
            shared.append(options.source_prompt)
        least = max(map(self.chunks_of, shared))
        self.chunks = {(i, k): max(least, self.chunks_of(prompts[i][k])) for i, k in self.units}
        # chosen here, as otherwise all lanes would do it at the same time
        self.chosen = self.choose() if options.diverse else []

    def prepare(self) -> Iterator[tuple[Group, Work]]:
        """Do the work that variants share; what remains are groups of variants, each with the function that makes it.

        The U-Net rows of both count in the total of the progress from here on.
        """
        rows, work = {"cycle": self.cycle, "asymmetric": self.asymmetric, "sdedit": self.sdedit}[self.options.method]()
        return ((group, work) for group in self.groups(self.variants(), rows))

    def each_source(self, rows: int, work: Work) -> None:
        """Call work(group, lane) for the images in groups, with `rows` U-Net rows per image."""
        work_through(self.groups(self.sources(), rows), work, self.pipe.threads, self.tiles.tile)

    # ---- prompts

    def condition(self, prompt: str | None, chunks: int = 1) -> dict[str, np.ndarray]:
        """The inputs of a row that depend on its prompt, whose embedding has at least `chunks` chunks."""
        return self.pipe.condition(prompt, self.options.prompt_syntax, chunks)

    def chunks_of(self, prompt: str) -> int:
        """The number of chunks of a prompt's embedding; 1 for models without one."""
        if self.pipe.conditioning != "text":
            return 1
        return len(self.condition(prompt)["context"]) // len(self.condition("")["context"])

    def variants(self) -> list[Group]:
        """All units, divided where the length of their contexts changes: a U-Net call has one length."""
        return [list(run) for _, run in groupby(self.units, key=self.chunks.__getitem__)]

    def sources(self) -> list[Group]:
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

    def step_noise(self, units: Group, step: Step) -> np.ndarray:
        """The fresh noise of a step, sigma n; zeros if the step adds none."""
        if step.sigma == 0:
            return np.zeros((len(units), *self.z0.shape[1:]), np.float32)
        return np.float32(step.sigma) * np.stack([self.noise(STREAM_STEP, *unit, step.index) for unit in units])

    # ---- U-Net calls

    def groups(self, runs: list[Group], rows: int) -> Iterator[Group]:
        """The units in fixed-size groups; the short last one of a run is filled up by repeating its last unit."""
        size, _ = self.tiles.batches(rows)
        for units in runs:
            for first in range(0, len(units), size):
                group = units[first : first + size]
                yield group + [group[-1]] * (size - len(group))

    def expect(self, runs: list[Group], rows: int, targets: bool = True) -> None:
        """Add the U-Net rows that the units will need to the total of the progress."""
        size, _ = self.tiles.batches(rows)
        saved = self.guided.count(False) if targets and self.target > 1 else 0
        groups = sum(-(-len(units) // size) for units in runs)
        self.made.total += groups * size * (rows * len(self.steps) - saved) * len(self.tiles)

    def predict(self, x: np.ndarray, t: int, rows: list[_Row], units: Group, index: int,
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
            self.made.count(len(rows) * len(parts))
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

    def keep(self, units: Group, x: np.ndarray, known: Callable[[], np.ndarray]) -> np.ndarray:
        """Latents after a step, with the `known` ones at kept positions."""
        if self.kept is None:
            return x
        return np.where(self.kept[[image for image, _ in units], None], known(), x)

    def kept_noise(self, units: Group, start: np.ndarray) -> np.ndarray:
        """The noise in the latents from which the units start. Kept positions have this noise to the end."""
        a, z0 = self.steps[0].a_t, self.z0[[image for image, _ in units]]
        return (start - np.float32(math.sqrt(a)) * z0) * np.float32(1 / math.sqrt(1 - a))

    def known(self, units: Group, step: Step, noise: np.ndarray) -> np.ndarray:
        """The images' own latents after a step, with `kept_noise`."""
        z0 = self.z0[[image for image, _ in units]]
        if step.index == len(self.steps) - 1:
            return z0
        return np.float32(math.sqrt(step.a_p)) * z0 + np.float32(math.sqrt(1 - step.a_p)) * noise

    def target_rows(self, units: Group, step: Step) -> list[_Row]:
        """Rows of the negative prompt (if the step is guided), then text rows. Each is perturbed with its own draw."""
        guidance, chunks = self.guidances[step.index], self.chunks[units[0]]
        text = [_Row(u, self.condition(self.prompts[image][variant], chunks), 1, guidance)
                for u, (image, variant) in enumerate(units)]
        if not self.guided[step.index]:
            return text
        negative = self.condition(self.options.negative_prompt or None, chunks)
        return [_Row(u, negative, 0) for u in range(len(units))] + text

    def source_rows(self, units: Group, chunks: int) -> list[_Row]:
        """Unconditional rows (if the source is guided), then text rows, all without perturbation."""
        guidance = self.options.source_guidance_scale
        text = [_Row(u, self.condition(self.source_prompts[image], chunks), guidance_scale=guidance)
                for u, (image, _) in enumerate(units)]
        if self.options.source_prompt == "" or guidance in (0, 1) or not self.pipe.guided_by_rows:
            return text
        return [_Row(u, self.condition(None, chunks)) for u in range(len(units))] + text

    # ---- the recursions: each returns the number of U-Net rows per unit, and the function that makes a group

    def cycle(self) -> tuple[int, Work]:
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

        def work(group: Group, lane: int | None) -> None:
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

        return self.target if options.share_source else source + self.target, work

    def posterior(self, x: np.ndarray, units: Group, step: Step) -> np.ndarray:
        """x_p of the source: a sample of q(x_p | x_t, z0)."""
        z0 = self.z0[[image for image, _ in units]]
        if step.p <= 0:
            return z0
        noise = (x - np.float32(math.sqrt(step.a_t)) * z0) * np.float32(1 / math.sqrt(1 - step.a_t))
        return np.float32(math.sqrt(step.a_p)) * z0 + np.float32(step.direction) * noise + self.step_noise(units, step)

    def source_trajectories(self, rows: int) -> dict[int, list[tuple[np.ndarray, np.ndarray]]]:
        """For every image, (mean, next latent) at each step of the source that all its variants share."""
        result: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {image: [] for image in range(len(self.z0))}

        def work(group: Group, lane: int | None) -> None:
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

        self.each_source(rows, work)
        return result

    def asymmetric(self) -> tuple[int, Work]:
        """The paper's figure: inversion, then perturbed images and clean directions."""
        options = self.options
        self.expect(self.sources(), 1, targets=False)
        self.expect(self.variants(), self.target)
        starts = self.inversions()

        def work(group: Group, lane: int | None) -> None:
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

        return self.target, work

    def inversions(self) -> list[np.ndarray]:
        """x_T of every image by DDIM inversion, without noise or guidance.

        Each step is undone with the prediction for the less noisy latent at the noisier timestep.
        """
        result: list[np.ndarray] = [np.empty(0)] * len(self.z0)

        def work(group: Group, lane: int | None) -> None:
            x = self.z0[[image for image, _ in group]]
            rows = [_Row(u, self.condition(self.source_prompts[image])) for u, (image, _) in enumerate(group)]
            for step in reversed(self.steps):
                x = self.schedule.undo(self.predict(x, step.t, rows, group, step.index, lane)["sample"], x, step)
            for u, (image_index, _) in enumerate(group):
                result[image_index] = x[u]

        self.each_source(1, work)
        return result

    def sdedit(self) -> tuple[int, Work]:
        """Plain img2img."""
        self.expect(self.variants(), self.target)

        def work(group: Group, lane: int | None) -> None:
            x = np.stack([self.start(*unit) for unit in group])
            kept_noise = self.kept_noise(group, x)
            before: np.ndarray | None = None
            for step in self.steps:
                out = self.predict(x, step.t, self.target_rows(group, step), group, step.index, lane)["sample"]
                mean, before = self.schedule.mean(_guide(out, len(group), self.options.guidance_scale), x, step, before)
                x = self.keep(group, mean + self.step_noise(group, step), partial(self.known, group, step, kept_noise))
                self.step_done(group, step, x)
            self.store(group, x)

        return self.target, work

    def step_done(self, group: Group, step: Step, x: np.ndarray) -> None:
        """Call the callback, without the units that only fill up the group."""
        if self.callback:
            units = list(dict.fromkeys(group))
            with self.made.lock:
                self.callback(step.index, step.t, x[: len(units)], units)

    def store(self, group: Group, x: np.ndarray) -> None:
        """Store the latents of a finished group."""
        self.made.latents.update(zip(group, x))


def _guide(out: np.ndarray, units: int, scale: float) -> np.ndarray:
    """Classifier-free guidance over [unconditional rows, text rows]; text rows alone are returned unchanged."""
    if len(out) == units:
        return out
    unconditional, text = out[:units], out[units:]
    return unconditional + np.float32(scale) * (text - unconditional)
