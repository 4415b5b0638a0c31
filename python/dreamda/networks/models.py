"""The single networks of a diffusers folder: `UNet`, `VAE`, `TextEncoder`.

Inputs and outputs are NumPy arrays in PyTorch's layouts.
"""

import os
import reprlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike

from .. import _core
from ..data.prompt_syntax import Syntax
from ..options import ParameterError
from ..text import counted
from .config import TIME_IDS, read_text_config, read_unet_config, read_vae_config
from .embeddings import Embedding, EmbeddingLike, open_embeddings
from .lora import TEXT_ENCODER, TEXT_ENCODER_2, UNET, Lora, LoraLike, opened
from .threads import resolve_threads
from .weights import CONVERT_TRANSFORMERS, WeightFile

TOKENS = "text_model.embeddings.token_embedding.weight"
MAX_SHAPES = 4  # each network keeps the plans of this many shapes


def resolve_dtype(dtype: str) -> str:
    """Resolve a dtype to "f32" or "bf16"; "auto" is bf16 if the processor supports it (AVX512-BF16 or AMX).

    Raises
    ------
    ValueError
        The name is unknown.
    """
    if dtype not in ("auto", "f32", "bf16"):
        raise ParameterError("dtype", f"{dtype!r} is unknown; use auto, f32 or bf16")
    if dtype != "auto":
        return dtype
    return "bf16" if _core.info()["kernels_isa"] in ("avx512_bf16", "amx") else "f32"


class Network:
    """A model of one family with its weights.

    A plan is created when a shape is first seen; the most recent plans are kept. Packed weights that only discarded
    plans have used are freed when the next plan is created.

    Parameters
    ----------
    family : str
        As named by `dreamda._core.Model`.
    config : dict
        The configuration for that family.
    weights : WeightFile
    dtype, threads
        As in `UNet.load`.
    ignore : tuple of str
        Prefixes of names in the file that belong to another network.
    loras : sequence of Lora
        Added to the weights when they are read, in this order.
    new_tokens : mapping of int to array, optional
        For a text encoder: rows, by token id, that the token table in the file does not have.
    part : {"unet", "text_encoder", "text_encoder_2"}
        Which layers of the LoRAs are for it.

    Raises
    ------
    ValueError
        The configuration is not possible, or the weights do not fit it; the message describes the mismatches.
    """

    def __init__(self,
                 family: str,
                 config: dict[str, Any],
                 weights: WeightFile,
                 dtype: str,
                 threads: int | None,
                 ignore: tuple[str, ...] = (),
                 loras: Sequence[Lora] = (),
                 new_tokens: Mapping[int, np.ndarray] | None = None,
                 part: str = UNET) -> None:
        try:
            parameters = _core.Model(family, config).parameters()
        except ValueError as error:
            folder = weights.path if weights.path.is_dir() else weights.path.parent
            raise ValueError(f"{folder / 'config.json'}: {error}") from None
        weights.check(parameters, ignore)
        self._new_tokens = new_tokens or {}
        if new_tokens:
            config = config | {"vocab_size": max(config["vocab_size"], *(number + 1 for number in new_tokens))}
        self._family, self._config = family, config
        self._model: _core.Model | None = _core.Model(family, config)
        self._weights, self._loras, self._part = weights, loras, part
        # shape -> (lane, threads) -> plan
        self._plans: OrderedDict[tuple, dict[tuple[int | None, int], _core.Plan]] = OrderedDict()
        self._lock = threading.Lock()
        self.dtype, self.threads = resolve_dtype(dtype), resolve_threads(threads)
        for lora in loras:
            lora.match(part, parameters)
        self.parameters = sum(int(np.prod(shape)) for _, shape in parameters)

    def plan(self, lane: int | None = None, **shape: int) -> _core.Plan:
        """The plan for a shape (see `dreamda._core.Model.plan`), its weights loaded.

        Plans of different lanes are single-threaded and may run concurrently. Without a lane, a plan uses all threads
        that OpenMP provides to a call from here.
        """
        threads = _core.team(self.threads) if lane is None else 1
        key = tuple(sorted(shape.items()))
        with self._lock:
            lanes = self._plans.setdefault(key, {})
            self._plans.move_to_end(key)
            if len(self._plans) > MAX_SHAPES:
                self._plans.popitem(last=False)
            if (lane, threads) not in lanes:
                if self._model is None:
                    self._model = _core.Model(self._family, self._config)
                plan = self._model.plan(dtype=self.dtype, threads=threads, **shape)
                missing = set(plan.missing())
                for name in filter(missing.__contains__, self._weights.names()):  # read once, front to back
                    if changes := [lora.change(self._part, name) for lora in self._loras
                                   if (self._part, name) in lora.matched]:
                        weight = self._weights.read_float32(name).reshape(changes[0].shape)
                        plan.load(name, sum(changes, weight))
                    elif name == TOKENS and self._new_tokens:
                        plan.load(name, self._token_table())
                    else:
                        plan.read(name, *self._weights.place(name))
                lanes[lane, threads] = plan
            return lanes[lane, threads]

    def _token_table(self) -> np.ndarray:
        """The token table of the file, with the new rows in their places."""
        known = self._weights.read_float32(TOKENS)
        table = np.zeros((self._config["vocab_size"], known.shape[1]), np.float32)
        table[: len(known)] = known
        for number, vector in self._new_tokens.items():
            table[number] = vector
        return table

    def close(self) -> None:
        """Free the plans' memory; the next call makes new ones."""
        with self._lock:
            self._plans.clear()

    def unload(self) -> None:
        """Free the weights' memory too; the next call reads them from the file again."""
        with self._lock:
            self._plans.clear()
            self._model = None


def _array(value: ArrayLike, name: str, ndim: int, form: str) -> np.ndarray:
    array = np.asarray(value)
    if array.ndim != ndim or array.size == 0:
        raise ValueError(f"{name}: expected an array {form}, got shape {array.shape}")
    return array


def guidance_input(guidance_scale: ArrayLike, rows: int) -> np.ndarray:
    """Guidance scales as inputs of the U-Net's graph: 1000 (guidance_scale - 1) per row."""
    scales = np.asarray(guidance_scale, np.float64)
    if scales.shape not in ((), (1,), (rows,)) or not np.isfinite(scales).all():
        raise ValueError(
            f"guidance_scale: expected a finite number, or one for each of {rows} rows, "
            f"got {reprlib.repr(guidance_scale)}")
    return np.broadcast_to((1000 * (scales - 1)).astype(np.float32), (rows,))


def size_input(height: int, width: int, rows: int) -> np.ndarray:
    """The ``time_ids`` of an SDXL U-Net for whole images of a size: original size, corner, target size.

    The same as those of diffusers' img2img pipeline: an image counts as made at its own size and not cropped.
    """
    return np.tile(np.array([height, width, 0, 0, height, width], np.float32), (rows, 1))


class Part:
    """Base class of `UNet`, `VAE` and `TextEncoder`: a configuration, and networks that run on the same threads.

    Parameters
    ----------
    config : dict
    weights : dreamda.networks.weights.WeightFile
    networks : Network
        One or more.

    Attributes
    ----------
    config : dict
    parameters : int
    dtype : {"f32", "bf16"}
    threads : int
    files : list of Path
        The weight files.
    """

    def __init__(self, config: dict[str, Any], weights: WeightFile, *networks: Network) -> None:
        self.config, self.files, self._networks = config, weights.files, networks
        self.parameters = sum(network.parameters for network in networks)
        self.dtype, self.threads = networks[0].dtype, networks[0].threads

    def __repr__(self) -> str:
        folder = self.files[0].parent
        return (f"<dreamda.{type(self).__name__} {folder.parent.name + '/' + folder.name!r}: "
                f"{self.parameters:,} parameters, {self.dtype}, {counted(self.threads, 'thread')}>")

    def close(self) -> None:
        """Free the plans' memory; the next call makes new ones."""
        for network in self._networks:
            network.close()

    def unload(self) -> None:
        """Free the weights' memory too; the next call reads them from the file again."""
        for network in self._networks:
            network.unload()


class UNet(Part):
    """UNet2DConditionModel (Stable Diffusion 1.x, 2.x and XL) or UNet2DModel (pixels): predicts the noise in an image.

    Use `UNet.load`. Attributes: ``config`` (dict), ``parameters`` (int), ``dtype``, ``threads``, ``takes_guidance``
    (bool: the guidance scale is an input, as in latent consistency models), ``takes_size`` (bool: the pooled text and
    the size of the image are inputs, as in SDXL), ``takes_context`` (bool: it reads text embeddings),
    ``takes_class_labels`` (bool: it is class-conditional), ``takes_mask`` (bool: an inpainting
    model, whose input channels are the latents, the mask, and the latents of the masked image).

    Parameters
    ----------
    config : dict
        From `dreamda.networks.config.read_unet_config`.
    weights : dreamda.networks.weights.WeightFile
    dtype, threads
        As in `UNet.load`.
    loras : sequence of dreamda.networks.lora.Lora
    """

    def __init__(self,
                 config: dict[str, Any],
                 weights: WeightFile,
                 dtype: str = "auto",
                 threads: int | None = None,
                 loras: Sequence[Lora] = ()) -> None:
        network = Network("unet", config, weights, dtype, threads, loras=loras)
        super().__init__(config, weights, network)
        self.plan = network.plan
        self.takes_guidance = config["time_cond_proj_dim"] > 0
        self.takes_size = config["text_embeds_dim"] > 0
        self.takes_context = config["context_dim"] > 0
        self.takes_class_labels = config["class_embedding"] > 0
        self.takes_mask = self.takes_context and config["in_channels"] == 2 * config["out_channels"] + 1
        self.takes_class_numbers = self.takes_class_labels and config["class_embedding"] != 3

    @classmethod
    def load(cls,
             folder: str | os.PathLike[str],
             dtype: str = "auto",
             threads: int | None = None,
             loras: Sequence[LoraLike] = ()) -> "UNet":
        """Load a diffusers `unet` folder (safetensors).

        Parameters
        ----------
        folder : path
            With `config.json` and `diffusion_pytorch_model.safetensors` (or its shards, or its `.fp16` variant).
        dtype : {"auto", "f32", "bf16"}
            The type of the computation; sums, norms and softmax are always f32.
        threads : int, optional
            Default: the number of processors that this process may use, limited by OMP_NUM_THREADS and by a
            container's CPU quota.
        loras : sequence of (path, float)
            LoRA files with their scales, added to the weights. Layers for the text encoder are ignored.

        Returns
        -------
        UNet

        Raises
        ------
        FileNotFoundError, ValueError
            The message names the file, the key or the tensors, and the fix.
        """
        with opened(loras) as found:
            return cls(read_unet_config(folder), WeightFile(folder), dtype, threads, found)

    def centred(self, sample: np.ndarray) -> np.ndarray:
        """A sample as the network reads it: 2 x - 1 if its configuration says so (``center_input_sample``).

        Parameters
        ----------
        sample : array

        Returns
        -------
        array
        """
        return 2 * sample - 1 if self.config["center_input_sample"] else sample

    def class_input(self, class_labels: ArrayLike, rows: int) -> np.ndarray:
        """Class labels as inputs of the network's graph, one per row.

        Parameters
        ----------
        class_labels : int or array (rows,), or array (rows, width)
            Numbers of classes, or vectors for a model that reads those.
        rows : int

        Returns
        -------
        array (rows,) or (rows, width)

        Raises
        ------
        ValueError
            They are not such labels, or not one or one per row.
        """
        labels, classes = np.asarray(class_labels), self.config["num_class_embeds"]
        if classes:
            if labels.dtype.kind not in "iu" or not ((0 <= labels) & (labels < classes)).all():
                raise ValueError(f"class_labels: expected whole numbers from 0 to {classes - 1}, got "
                                 f"{reprlib.repr(class_labels)}")
            labels = labels.astype(np.int32)
        else:
            labels = labels.astype(np.float32)
        width = () if labels.ndim < 2 else labels.shape[1:]
        if labels.shape not in ((), (1,), (rows,), (rows, *width)):
            raise ValueError(f"class_labels: expected one, or one for each of {rows} rows, got shape {labels.shape}")
        return np.broadcast_to(labels, (rows, *width))

    @overload
    def __call__(self,
                 sample: ArrayLike,
                 timestep: ArrayLike,
                 context: ArrayLike | None = None,
                 bottleneck_noise: ArrayLike | None = None,
                 return_bottleneck: Literal[False] = False,
                 guidance_scale: ArrayLike | None = None,
                 text_embeds: ArrayLike | None = None,
                 time_ids: ArrayLike | None = None,
                 *,
                 class_labels: ArrayLike | None = None) -> np.ndarray: ...
    @overload
    def __call__(self,
                 sample: ArrayLike,
                 timestep: ArrayLike,
                 context: ArrayLike | None = None,
                 bottleneck_noise: ArrayLike | None = None,
                 *,
                 return_bottleneck: Literal[True],
                 guidance_scale: ArrayLike | None = None,
                 text_embeds: ArrayLike | None = None,
                 time_ids: ArrayLike | None = None,
                 class_labels: ArrayLike | None = None) -> tuple[np.ndarray, np.ndarray]:
        ...
    @overload
    def __call__(self,
                 sample: ArrayLike,
                 timestep: ArrayLike,
                 context: ArrayLike | None = None,
                 bottleneck_noise: ArrayLike | None = None,
                 return_bottleneck: bool = False,
                 guidance_scale: ArrayLike | None = None,
                 text_embeds: ArrayLike | None = None,
                 time_ids: ArrayLike | None = None,
                 *,
                 class_labels: ArrayLike | None = None) -> np.ndarray | tuple[np.ndarray, np.ndarray]: ...

    def __call__(self,
                 sample: ArrayLike,
                 timestep: ArrayLike,
                 context: ArrayLike | None = None,
                 bottleneck_noise: ArrayLike | None = None,
                 return_bottleneck: bool = False,
                 guidance_scale: ArrayLike | None = None,
                 text_embeds: ArrayLike | None = None,
                 time_ids: ArrayLike | None = None,
                 *,
                 class_labels: ArrayLike | None = None) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Run the network.

        Parameters
        ----------
        sample : array (rows, in_channels, H, W)
            Noisy latents.
        timestep : float or array (rows,)
        context : array (rows, tokens, context_dim), optional
            Text embeddings, for a UNet2DConditionModel.
        bottleneck_noise : array (rows, C, h, w), optional
            Added to the output of the mid block, or of the last down block if there is no mid block; the skip
            connections stay clean (DreamDA, arXiv 2403.12803).
        return_bottleneck : bool
            Also return that output, without noise.
        guidance_scale : float or array (rows,), optional
            Required by a latent consistency model that takes the guidance as an input (``takes_guidance``), and not
            allowed otherwise.
        text_embeds : array (rows, text_embeds_dim), optional
            The pooled text. Required by SDXL (``takes_size``), and not allowed otherwise.
        time_ids : array (rows, 6), optional
            Original height and width, top and left of the crop, target height and width, in pixels. Required and
            allowed as `text_embeds` is.
        class_labels : int or array (rows,), optional
            Required by a class-conditional model (``takes_class_labels``), and not allowed otherwise. For
            ``class_embed_type`` "timestep", any numbers; for "identity", an array (rows, embedding channels).

        Returns
        -------
        float32 array (rows, out_channels, H, W) [, float32 array (rows, C, h, w)]

        Raises
        ------
        ValueError
            The shapes do not fit each other or the model.
        """
        sample = _array(sample, "sample", 4, "(rows, channels, height, width)")
        rows, _, height, width = sample.shape
        multiple = self.config["size_multiple"]
        if height % multiple or width % multiple:
            raise ValueError(f"sample: {height} x {width} is not a multiple of {multiple}, as this model needs")
        inputs: dict[str, ArrayLike] = {
            "sample": self.centred(sample),
            "timestep": np.broadcast_to(np.asarray(timestep, np.float32), (rows,)),
        }
        shape = dict(rows=rows, height=height, width=width)
        if self.takes_context:
            if context is None:
                raise ValueError("context: this model needs text embeddings; give an array (rows, tokens, channels)")
            inputs["context"] = context = _array(context, "context", 3, "(rows, tokens, channels)")
            shape["tokens"] = context.shape[1]
        elif context is not None:
            raise ValueError("context: this model takes no text embeddings; leave it out")
        if self.takes_class_labels:
            if class_labels is None:
                raise ValueError("class_labels: this model is class-conditional; give a class, or one a row")
            inputs["class_labels"] = self.class_input(class_labels, rows)
        elif class_labels is not None:
            raise ValueError("class_labels: this model has no class embedding; leave them out")
        plan = self.plan(**shape)
        if self.takes_guidance:
            if guidance_scale is None:
                raise ValueError(
                    "guidance_scale: this model takes the guidance as an input; give a number, or one a row")
            inputs["guidance"] = guidance_input(guidance_scale, rows)
        elif guidance_scale is not None:
            raise ValueError(
                "guidance_scale: this model does not take the guidance as an input; guide by a "
                "second row without the prompt")
        added = {"text_embeds": text_embeds, "time_ids": time_ids}
        if self.takes_size:
            if missing := [name for name, value in added.items() if value is None]:
                raise ValueError(f"{missing[0]}: this model takes it as an input; give text_embeds "
                                 f"(rows, {self.config['text_embeds_dim']}) and time_ids (rows, {TIME_IDS})")
            inputs |= {name: np.asarray(value, np.float32) for name, value in added.items()}
        elif given := [name for name, value in added.items() if value is not None]:
            raise ValueError(f"{given[0]}: this model does not take it as an input; leave it out")
        if bottleneck_noise is not None:
            inputs |= {"noise": bottleneck_noise, "noise_scale": np.ones(rows, np.float32)}
        out = plan.run(inputs)
        return (out["sample"], out["bottleneck"]) if return_bottleneck else out["sample"]


class VAE(Part):
    """AutoencoderKL or AutoencoderTiny (TAESD): encodes images to latents and decodes them.

    Use `VAE.load`. An AutoencoderTiny has no standard deviation. Attributes: ``config`` (dict), ``factor`` (int, pixels
    per latent position), ``parameters``, ``dtype``, ``threads``.

    Parameters
    ----------
    config : dict
        From `dreamda.networks.config.read_vae_config`.
    weights : dreamda.networks.weights.WeightFile
    dtype, threads
        As in `UNet.load`.
    """

    def __init__(self,
                 config: dict[str, Any],
                 weights: WeightFile,
                 dtype: str = "auto",
                 threads: int | None = None) -> None:
        self.factor: int = config["factor"]
        self._tiny = config["family"] == "tiny_vae"
        self._encoder = Network(f"{config['family']}_encoder", config, weights, dtype, threads,
                                ("decoder.", "post_quant_conv."))
        self._decoder = Network(f"{config['family']}_decoder", config, weights, dtype, threads,
                                ("encoder.", "quant_conv."))
        super().__init__(config, weights, self._encoder, self._decoder)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], dtype: str = "auto", threads: int | None = None) -> "VAE":
        """Load a diffusers `vae` folder (safetensors).

        Parameters
        ----------
        folder, dtype, threads
            As in `UNet.load`.

        Returns
        -------
        VAE

        Raises
        ------
        FileNotFoundError, ValueError
            As in `UNet.load`.
        """
        return cls(read_vae_config(folder), WeightFile(folder), dtype, threads)

    def moments(self, images: ArrayLike, lane: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the posterior.

        Parameters
        ----------
        images : array (rows, 3, H, W) in [-1, 1]
            H and W are multiples of ``factor``.
        lane : int, optional
            Run single-threaded, concurrently with other lanes.

        Returns
        -------
        mean, std : float32 arrays (rows, latent_channels, H / factor, W / factor)
            Not scaled by ``scaling_factor``. An AutoencoderTiny's std is 0.

        Raises
        ------
        ValueError
            The shape is wrong, or H or W is not a multiple of ``factor``.
        """
        images = _array(images, "images", 4, "(rows, 3, height, width)")
        rows, _, height, width = images.shape
        if height % self.factor or width % self.factor:
            raise ValueError(f"images: {height} x {width} is not a multiple of the VAE's factor {self.factor}")
        plan = self._encoder.plan(lane, rows=rows, height=height, width=width)
        if self._tiny:
            latent = plan.run({"image": (np.asarray(images, np.float32) + 1) / 2})["latent"]
            return latent, np.zeros_like(latent)
        moments = plan.run({"image": images})["moments"]
        mean, log_variance = np.split(moments, 2, axis=1)
        return mean, np.exp(0.5 * np.clip(log_variance, -30, 20))

    def encode(self, images: ArrayLike, noise: ArrayLike | None = None, lane: int | None = None) -> np.ndarray:
        """Scaled latents of images.

        Parameters
        ----------
        images, lane
            As in `moments`.
        noise : array of the latents' shape, optional
            Standard normal noise, for a sample from the posterior. Default: use the mean of the posterior.

        Returns
        -------
        float32 array (rows, latent_channels, H / factor, W / factor)
        """
        mean, std = self.moments(images, lane)
        z = mean if noise is None else mean + std * np.asarray(noise, np.float32)
        if self.config["latents_mean"]:
            centre, scale = self._statistics()
            return (z - centre) * np.float32(self.config["scaling_factor"]) / scale
        return (z - np.float32(self.config["shift_factor"])) * np.float32(self.config["scaling_factor"])

    def _statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation by which the latents are normalized, each (channels, 1, 1)."""
        mean, deviation = (np.array(self.config[name], np.float32)[:, None, None]
                           for name in ("latents_mean", "latents_std"))
        return mean, deviation

    def decode(self, latents: ArrayLike, lane: int | None = None) -> np.ndarray:
        """Images from scaled latents.

        Parameters
        ----------
        latents : array (rows, latent_channels, h, w)
        lane : int, optional
            Run single-threaded, concurrently with other lanes.

        Returns
        -------
        float32 array (rows, 3, h * factor, w * factor)
            About in [-1, 1], not clipped.
        """
        latents = np.asarray(_array(latents, "latents", 4, "(rows, channels, height, width)"), np.float32)
        if self.config["latents_mean"]:
            centre, scale = self._statistics()
            z = latents * scale / np.float32(self.config["scaling_factor"]) + centre
        else:
            z = latents / np.float32(self.config["scaling_factor"]) + np.float32(self.config["shift_factor"])
        rows, _, h, w = z.shape
        plan = self._decoder.plan(lane, rows=rows, height=h * self.factor, width=w * self.factor)
        if self._tiny:
            return plan.run({"latent": 3 * np.tanh(z / 3)})["image"] * 2 - 1
        return plan.run({"latent": z})["image"]


class PixelSpace:
    """Takes the place of a `VAE` in a model without one: its latents are the pixels.

    Attributes
    ----------
    config : dict
        ``latent_channels``.
    factor : int
        1.

    Parameters
    ----------
    channels : int
        3, or 1 for a model of grey images.
    """

    factor = 1
    _GREY = np.array([0.299, 0.587, 0.114], np.float32)[:, None, None]  # ITU-R 601, as Pillow converts to "L"

    def __init__(self, channels: int) -> None:
        self.config = {"latent_channels": channels}

    def encode(self, images: ArrayLike, noise: ArrayLike | None = None, lane: int | None = None) -> np.ndarray:
        """The images, float32 (rows, 3, H, W) in [-1, 1], with the model's number of channels; see `VAE.encode`."""
        pixels = np.asarray(images, np.float32)
        return (pixels * self._GREY).sum(axis=1, keepdims=True) if self.config["latent_channels"] == 1 else pixels

    def decode(self, latents: ArrayLike, lane: int | None = None) -> np.ndarray:
        """The latents as images of three channels; see `VAE.decode`."""
        pixels = np.asarray(latents, np.float32)
        return np.repeat(pixels, 3, axis=1) if pixels.shape[1] == 1 else pixels

    def close(self) -> None:
        """Do nothing; there are no plans."""

    def unload(self) -> None:
        """Do nothing; there are no weights."""


class TextEncoder(Part):
    """CLIPTextModel or CLIPTextModelWithProjection, and its tokenizer: encodes prompts as embeddings.

    Use `TextEncoder.load`.

    Attributes: ``config`` (dict), ``tokenizer`` (`dreamda.networks.tokenizer.Tokenizer` or None), ``parameters``,
    ``dtype``, ``threads``.

    Parameters
    ----------
    config : dict
        From `dreamda.networks.config.read_text_config`.
    weights : dreamda.networks.weights.WeightFile
    tokenizer : dreamda.networks.tokenizer.Tokenizer, optional
        Without one, only `encode_tokens` can be called.
    dtype, threads
        As in `UNet.load`.
    loras : sequence of dreamda.networks.lora.Lora
    embeddings : sequence of dreamda.networks.embeddings.Embedding
    part : {"text_encoder", "text_encoder_2"}
        The latter for the second text encoder of SDXL.

    Raises
    ------
    ValueError
        Tokenizer, weights and embeddings do not match, or the token of an embedding exists already.
    """

    def __init__(self,
                 config: dict[str, Any],
                 weights: WeightFile,
                 tokenizer: Any = None,
                 dtype: str = "auto",
                 threads: int | None = None,
                 loras: Sequence[Lora] = (),
                 embeddings: Sequence[Embedding] = (),
                 part: str = TEXT_ENCODER) -> None:
        self.tokenizer = tokenizer
        if tokenizer is not None and tokenizer.length > config["max_position_embeddings"]:
            raise ValueError(
                f"tokenizer: its model_max_length {tokenizer.length} exceeds the text encoder's "
                f"'max_position_embeddings' {config['max_position_embeddings']}; the two folders do not belong together"
            )
        if tokenizer is not None and tokenizer.vocab_size > config["vocab_size"]:
            raise ValueError(f"tokenizer: its {tokenizer.vocab_size} tokens exceed the text encoder's 'vocab_size' "
                             f"{config['vocab_size']}; the two folders do not belong together")
        new_tokens: dict[int, np.ndarray] = {}
        for embedding in embeddings:
            if embedding.second is not None:
                raise ValueError(f"{embedding.path}: made for the two text encoders of SDXL; give one made for this "
                                 "kind of model")
            width = embedding.vectors.shape[1]
            if width != config["hidden_size"]:
                raise ValueError(f"{embedding.path}: its vectors have {width} values, and the text encoder's tokens "
                                 f"{config['hidden_size']}; give an embedding made for this kind of model")
            if tokenizer is None:
                raise ValueError(f"{embedding.path}: an embedding needs a tokenizer, and this text encoder has none")
            try:
                new_tokens |= zip(tokenizer.add(embedding.tokens), embedding.vectors)
            except ValueError as error:
                raise ValueError(f"{embedding.path}: {error}; give the embedding another name, as "
                                 f"{embedding.path.name}:NAME or (file, name)") from None
        ignore = () if config["projection_dim"] else ("text_projection",)
        self._network = Network("clip_text", config, weights, dtype, threads, ignore, loras, new_tokens, part)
        super().__init__(config, weights, self._network)

    @classmethod
    def load(cls,
             folder: str | os.PathLike[str],
             tokenizer: str | os.PathLike[str] | None = None,
             dtype: str = "auto",
             threads: int | None = None,
             loras: Sequence[LoraLike] = (),
             embeddings: Sequence[EmbeddingLike] = ()) -> "TextEncoder":
        """Load a diffusers `text_encoder` folder (safetensors) and its tokenizer.

        Parameters
        ----------
        folder, dtype, threads
            As in `UNet.load`.
        tokenizer : path, optional
            Default: the folder `tokenizer` beside `folder` (`tokenizer_2` for `text_encoder_2`), if there is one.
        loras : sequence of (path, float)
            As in `UNet.load`; layers for other networks are ignored. Those for SDXL's second text encoder are used in a
            `folder` named text_encoder_2.
        embeddings : sequence of path or (path, str)
            Textual inversion files, optionally with another name for the token that each adds to the tokenizer.

        Returns
        -------
        TextEncoder

        Raises
        ------
        FileNotFoundError, ValueError
            As in `UNet.load`.
        """
        from .tokenizer import Tokenizer

        part = TEXT_ENCODER_2 if Path(folder).name == TEXT_ENCODER_2 else TEXT_ENCODER
        beside = Path(folder).parent / ("tokenizer_2" if part == TEXT_ENCODER_2 else "tokenizer")
        where = tokenizer if tokenizer is not None else beside if beside.is_dir() else None
        weights = WeightFile(folder, "text_model.", ("text_projection.",), CONVERT_TRANSFORMERS)
        with opened(loras) as found:
            return cls(read_text_config(folder), weights, Tokenizer(where) if where is not None else None, dtype,
                       threads, found, open_embeddings(embeddings), part)

    def encode_tokens(self, tokens: ArrayLike) -> np.ndarray:
        """Embeddings of token ids, after the final norm.

        Parameters
        ----------
        tokens : int array (rows, T)

        Returns
        -------
        float32 array (rows, T, hidden_size)

        Raises
        ------
        ValueError
            An id is outside the vocabulary, or there are more tokens than the model has positions.
        """
        return self._run(tokens)["hidden"]

    def _run(self, tokens: ArrayLike) -> dict[str, np.ndarray]:
        tokens = _array(tokens, "tokens", 2, "(rows, tokens)")
        return self._network.plan(rows=tokens.shape[0], tokens=tokens.shape[1]).run({"tokens": tokens})

    def encode_for_xl(self, tokens: ArrayLike) -> tuple[np.ndarray, np.ndarray | None]:
        """Embeddings of token ids as SDXL takes them.

        Parameters
        ----------
        tokens : int array (rows, T)

        Returns
        -------
        hidden : float32 array (rows, T, hidden_size)
            The input of the last layer, without the final norm.
        text_embeds : float32 array (rows, projection_dim) or None
            The pooled text: the projection of the end token. None if the model has no projection.

        Raises
        ------
        ValueError
            As in `encode_tokens`.
        """
        out = self._run(tokens)
        if not self.config["projection_dim"]:
            return out["penultimate"], None
        return out["penultimate"], out["projected"][np.arange(len(out["projected"])), self._ends(np.asarray(tokens))]

    def _ends(self, tokens: np.ndarray) -> np.ndarray:
        """The position of each row's end token.

        Older configurations have a wrong `eos_token_id` of 2. As the end token is the last of the vocabulary, it is
        then the highest id, apart from tokens that were added to the vocabulary.
        """
        if self.config["eos_token_id"] == 2:
            return np.where(tokens < self.config["vocab_size"], tokens, -1).argmax(axis=1)
        return (tokens == self.config["eos_token_id"]).argmax(axis=1)

    def __call__(self, prompts: list[str]) -> np.ndarray:
        """Embeddings of prompts, computed one prompt at a time, so that they do not depend on each other.

        Parameters
        ----------
        prompts : list of str

        Returns
        -------
        float32 array (len(prompts), tokenizer.length, hidden_size)

        Raises
        ------
        ValueError
            The text encoder was loaded without a tokenizer.
        """
        self._need_tokenizer()
        return np.concatenate([self.encode_tokens(ids[None]) for ids in self.tokenizer(list(prompts))])

    def embed(self, prompt: str) -> np.ndarray:
        """Embedding of a prompt with weights and of any length, as A1111 computes it.

        Each chunk of tokens is encoded by itself. Its embeddings are multiplied by the weights of their tokens, then
        scaled so that the chunk has the same mean as without weights.

        Parameters
        ----------
        prompt : str
            In the syntax of `dreamda.data.prompt_syntax`.

        Returns
        -------
        float32 array (chunks * tokenizer.length, hidden_size)

        Raises
        ------
        ValueError
            The text encoder was loaded without a tokenizer, or the prompt cannot be read.
        """
        self._need_tokenizer()
        ids, weights = self.tokenizer.chunks(prompt)
        return _weighted(prompt, [self.encode_tokens(row[None])[0] for row in ids], weights)

    def embed_for_xl(self, prompt: str, prompt_syntax: Syntax = "a1111") -> tuple[np.ndarray, np.ndarray | None]:
        """Embedding of a prompt as SDXL takes it; see `embed` and `encode_for_xl`.

        Parameters
        ----------
        prompt : str
        prompt_syntax : {"a1111", "plain"}
            "plain" reads the prompt as it is, and cuts it after one chunk.

        Returns
        -------
        hidden : float32 array (chunks * tokenizer.length, hidden_size)
        text_embeds : float32 array (projection_dim,) or None
            The pooled text of the first chunk, as in A1111.

        Raises
        ------
        ValueError
            As in `embed`.
        """
        self._need_tokenizer()
        if prompt_syntax == "plain":
            ids = self.tokenizer([prompt])
            weights = np.ones(ids.shape, np.float32)
        else:
            ids, weights = self.tokenizer.chunks(prompt)
        encoded = [self.encode_for_xl(row[None]) for row in ids]
        pooled = encoded[0][1]
        return _weighted(prompt, [hidden[0] for hidden, _ in encoded], weights), None if pooled is None else pooled[0]

    def _need_tokenizer(self) -> None:
        if self.tokenizer is None:
            raise ValueError(
                "prompts: this text encoder was loaded without a tokenizer; pass tokenizer=FOLDER to TextEncoder.load")


def _weighted(prompt: str, chunks: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """The embeddings of a prompt's chunks one after the other, with the weights of their tokens."""
    every = [apply_weights(hidden, row) for hidden, row in zip(chunks, weights)]
    if not all(np.isfinite(each).all() for each in every):
        raise ValueError(f"the weights of the prompt {prompt[:100]!r} cancel each other or are too large; write "
                         "weights of about 0.5 to 1.5")
    return np.concatenate(every)


def apply_weights(hidden: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Embeddings of the tokens of a chunk, (tokens, channels), times their weights, with the mean of all restored."""
    if (weights == 1).all():
        return hidden
    weighted = hidden * weights[:, None]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return weighted * np.float32(hidden.mean(dtype=np.float64) / weighted.mean(dtype=np.float64))
