"""`Pipeline`: a diffusion model that augments images.

It encodes images as latents, runs a reverse process on them (recursions.py), and decodes them. The latents of a model
in pixel space are the pixels.
"""
from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from .. import _core
from ..data.annotations.compose import Cutout
from ..data.files import BrokenImageError, digest_of_file
from ..data.images import fit, read_image, rgb_pixels
from ..data.prompt_syntax import Syntax
from ..networks.config import read_json, read_scheduler_config, read_unet_config, read_vae_config
from ..networks.hub import BUNDLED, find_model, part_folder
from ..networks.embeddings import Embedding, EmbeddingLike, open_embeddings
from ..networks.lora import Lora, LoraLike, opened
from ..networks.models import PixelSpace, UNet, VAE, TextEncoder, resolve_dtype
from ..networks.threads import resolve_threads
from ..options import ParameterError, accepts, from_keywords
from ..progress import bar
from ..text import counted
from .lanes import filled_up, group_size, is_small, work_through
from .options import GenerationOptions, OptionKeywords, is_from_text
from .recursions import STREAM_POSTERIOR, StepCallback, latents_of_variants
from .regions import Canvas, Keep, as_masks, kept_weight, laid_over, seam
from .schedulers import Schedule
from .tiles import WHOLE, Part, Tiles, scaled, stacked

if TYPE_CHECKING:
    from PIL import Image
    from typing_extensions import Unpack

    OneImage = np.ndarray | Image.Image | str | os.PathLike[str]
    Images = OneImage | Sequence[OneImage]

# One text for all images, or for each image a text, or a text for each of its variants
Texts = str | Sequence[str | Sequence[str]]
MAX_PROMPTS = 1024  # maximum number of cached text embeddings
# fields of `GenerationOptions` without effect in a model that reads no prompts
OF_TEXT = ("guidance_scale", "negative_prompt", "source_prompt", "source_guidance_scale", "guidance_low",
           "guidance_high", "prompt_syntax")
SEAM = 4  # minimum width of the seam around an object placed in an image, in pixels of the model's image
SEAM_STRENGTH = 0.3


def image_key(key: int | str) -> int:
    """The 64-bit key of an image's noise: the given number, or the first 8 bytes of the text's SHA-256.

    Raises
    ------
    ValueError
        The number is outside of 0 to 2**64 - 1, or `key` has another type.
    """
    if isinstance(key, str):
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool) and 0 <= key < 1 << 64:
        return int(key)
    raise ParameterError("keys", f"{key!r} is not possible; use texts, or whole numbers from 0 to 2**64 - 1")


class Pipeline:
    """A diffusion model that augments images. Create it with `Pipeline.load`.

    Parameters
    ----------
    unet, vae, text_encoder, schedule, folder, size, vae_folder, loras, scheduler, embeddings, text_encoder_2,
    force_zeros_for_empty_prompt
        The attributes below. By default, `size` is the size that the U-Net was made for, and `vae_folder` the VAE in
        `folder`.

    Attributes
    ----------
    unet : UNet
    vae : VAE or dreamda.networks.models.PixelSpace
        The latter for a model in pixel space.
    text_encoder, text_encoder_2 : TextEncoder or None
        None for a model in pixel space. Only SDXL has a second.
    conditioning : {"text", "class", "none"}
        What tells the model what to make: prompts, the numbers of classes, or nothing.
    guided_by_rows : bool
        Whether guidance takes a second row of the U-Net. A model without text has no guidance, and some few-step models
        take it as an input.
    schedule : dreamda.generation.schedulers.Schedule
    size : (int, int)
        Height and width of the new images in pixels.
    dtype : str
    threads : int
    threads_matter : bool
        Whether the number of threads can change the images slightly. It can for large images; a small one is made by
        one thread.
    folder : Path
    vae_folder : Path or None
        The folder of the VAE, if there is one.
    loras : tuple of dreamda.networks.lora.Lora
        The LoRAs that were added to the weights of the networks.
    scheduler : str or None
        The sampler of `schedule`, if it is not the model's own.
    embeddings : tuple of dreamda.networks.embeddings.Embedding
        Their tokens were added to those of the text encoder.
    force_zeros_for_empty_prompt : bool
        Whether zeros stand for the embedding of a missing negative prompt, as in SDXL.
    """

    def __init__(self,
                 unet: UNet,
                 vae: VAE | PixelSpace,
                 text_encoder: TextEncoder | None,
                 schedule: Schedule,
                 folder: Path,
                 size: tuple[int, int] | None = None,
                 vae_folder: Path | None = None,
                 loras: Sequence[Lora] = (),
                 scheduler: str | None = None,
                 embeddings: Sequence[Embedding] = (),
                 text_encoder_2: TextEncoder | None = None,
                 force_zeros_for_empty_prompt: bool = False) -> None:
        self.loras, self.scheduler, self.embeddings = tuple(loras), scheduler, tuple(embeddings)
        self.unet, self.vae, self.text_encoder, self.schedule, self.folder = unet, vae, text_encoder, schedule, folder
        self.text_encoder_2, self.force_zeros_for_empty_prompt = text_encoder_2, force_zeros_for_empty_prompt
        own_vae = None if isinstance(vae, PixelSpace) else part_folder(folder, "vae")
        self.vae_folder = own_vae if vae_folder is None else vae_folder
        self.conditioning: Literal["text", "class", "none"] = (
            "text" if text_encoder is not None else "class" if unet.takes_class_labels else "none")
        self.guided_by_rows = text_encoder is not None and not unet.takes_guidance
        h, w = unet.config["sample_size"]
        self.size = _check_size((h * vae.factor, w * vae.factor) if size is None else size,
                                vae.factor * unet.config["size_multiple"])
        self.dtype, self.threads = unet.dtype, unet.threads
        self.threads_matter = not is_small(self.size[0] // vae.factor, self.size[1] // vae.factor)
        self._embedded: OrderedDict[tuple[str, str], dict[str, np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()
        channels, latent = (unet.config["in_channels"], unet.config["out_channels"]), vae.config["latent_channels"]
        if channels not in ((latent, latent), (2 * latent + 1, latent)):
            raise ValueError(
                f"{folder}: the U-Net's in_channels {channels[0]} and out_channels {channels[1]} do not fit the VAE's "
                f"latent_channels {latent}; both have to be {latent}, or in_channels {2 * latent + 1} for inpainting: "
                "depth and instruction models are not supported")
        if text_encoder is None:
            return
        if unet.takes_class_labels:
            raise ValueError(f"{folder}: its U-Net takes class labels beside the text, which is not supported; a UNet "
                             "alone can be loaded")
        self._check_text(text_encoder, text_encoder_2)

    def _check_text(self, first: TextEncoder, second: TextEncoder | None) -> None:
        """Refuse a U-Net that the text encoders do not fit."""
        unet = self.unet.config
        if self.unet.takes_size != (second is not None):
            raise ValueError(f"{self.folder}: its U-Net {'takes' if second is None else 'does not take'} the pooled "
                             f"text of a second text encoder, and it has {'none' if second is None else 'one'}")
        encoders = [first] if second is None else [first, second]
        width = sum(encoder.config["hidden_size"] for encoder in encoders)
        if unet["context_dim"] != width:
            raise ValueError(f"{self.folder}: the U-Net's cross_attention_dim {unet['context_dim']} is not the "
                             f"hidden_size {width} of the text encoder{'' if second is None else 's'}")
        if second is None:
            return
        if unet["text_embeds_dim"] != second.config["projection_dim"]:
            raise ValueError(f"{self.folder}: the U-Net takes a pooled text of {unet['text_embeds_dim']} values, and "
                             f"its second text encoder gives {second.config['projection_dim']}; refiners are not "
                             "supported")
        lengths = [encoder.tokenizer.length for encoder in encoders if encoder.tokenizer is not None]
        if len(set(lengths)) > 1:
            raise ValueError(f"{self.folder}: the tokenizers of its two text encoders have other model_max_length: "
                             f"{lengths[0]} and {lengths[1]}")

    @classmethod
    def load(cls,
             model: str | Path,
             dtype: str = "auto",
             threads: int | None = None,
             size: tuple[int, int] | None = None,
             vae: str | Path | None = None,
             loras: Sequence[LoraLike] = (),
             scheduler: str | None = None,
             embeddings: Sequence[EmbeddingLike] = ()) -> "Pipeline":
        """Load a model.

        Parameters
        ----------
        model : str or path
            A bundled name ("fashion-mini", or its few-step student "fashion-mini-lcm"), a folder in diffusers' format,
            or a model id on the Hugging Face hub ("owner/name" or "owner/name@revision", fetched with the `hub` extra).
            It is a Stable Diffusion 1.x, 2.x or XL model or, with a UNet2DModel, a model in pixel space (DDPMPipeline,
            DDIMPipeline), unconditional or class-conditional.
        dtype : {"auto", "f32", "bf16"}
            "auto" is bf16 if the CPU has instructions for it.
        threads : int, optional
            Default: OMP_NUM_THREADS, else the number of CPUs that this process may use.
        size : (int, int), optional
            Height and width of the new images, multiples of the VAE's factor; in pixel space, of 2 for every level but
            one. Default: the size that the model was made for.
        vae : str or path, optional
            A folder with another AutoencoderKL or AutoencoderTiny, to use instead of the model's own. It must be made
            for the same latents.
        loras : sequence of (path, float)
            LoRA files of peft, diffusers or kohya's scripts, with their scales. They are added to the weights of the
            U-Net and the text encoders.
        scheduler : {"lcm", "tcd", "euler-trailing", "ddim-trailing", "dpm"}, optional
            The sampler, if a LoRA needs another one than the model's own: "lcm" for an LCM-LoRA.
        embeddings : sequence of path or (path, str)
            Files of textual inversion. Each adds a token for use in prompts; a text after the path gives the token
            another name than the file does.

        Returns
        -------
        Pipeline

        Raises
        ------
        FileNotFoundError, ValueError
            The message names the file and the fix. A ParameterError if `vae` does not fit the model or `scheduler` is
            unknown.
        """
        resolve_dtype(dtype), resolve_threads(threads)
        folder = find_model(model)
        if in_pixel_space(folder):
            return cls._load_pixels(folder, dtype, threads, size, loras, scheduler,
                                    {"vae": vae, "embeddings": embeddings})
        own = part_folder(folder, "vae")
        vae_folder = own if vae is None else _other_vae(Path(vae), own)
        parts = read_json(folder / "model_index.json")
        two = _has_two_text_encoders(folder / "model_index.json", parts)
        learned = open_embeddings(embeddings)
        first, second = ([each.half(number) for each in learned] for number in (0, 1)) if two else (learned, [])
        with opened(loras) as found:
            return cls(
                UNet.load(part_folder(folder, "unet"), dtype, threads, found),
                VAE.load(vae_folder, dtype, threads),
                TextEncoder.load(part_folder(folder, "text_encoder"), part_folder(folder, "tokenizer"), dtype, threads,
                                 found, first),
                Schedule(read_scheduler_config(part_folder(folder, "scheduler"), scheduler)),
                folder,
                size,
                vae_folder,
                found,
                scheduler,
                learned,
                TextEncoder.load(part_folder(folder, "text_encoder_2"), part_folder(folder, "tokenizer_2"), dtype,
                                 threads, found, second) if two else None,
                parts.get("force_zeros_for_empty_prompt", two) is True,
            )

    @classmethod
    def _load_pixels(cls, folder: Path, dtype: str, threads: int | None, size: tuple[int, int] | None,
                     loras: Sequence[LoraLike], scheduler: str | None, impossible: Mapping[str, Any]) -> "Pipeline":
        """`load` for a model in pixel space, which has neither a VAE nor a text encoder."""
        for name, given in impossible.items():
            if given:
                raise ParameterError(name,
                                     "is not possible: this model works on pixels, and reads no text; leave it out")
        others = {"vae", "vqvae", "text_encoder"} & {
            name for name, part in read_json(folder / "model_index.json").items() if part and part != [None, None]}
        if others:
            raise ValueError(f"{folder / 'model_index.json'}: has a UNet2DModel and a {min(others)}, which do not go "
                             "together here; a UNet2DModel is supported in pixel space")
        with opened(loras) as found:
            unet = UNet.load(part_folder(folder, "unet"), dtype, threads, found)
            channels, made = unet.config["in_channels"], unet.config["out_channels"]
            if channels not in (1, 3) or made != channels:
                learned = "; a model that also predicts its variance is not supported" if made == 2 * channels else ""
                raise ValueError(f"{folder}: the U-Net's in_channels {channels} and out_channels {made} both have to "
                                 f"be 3 (RGB) or 1 (grey){learned}")
            if unet.takes_class_labels and not unet.takes_class_numbers:
                raise ValueError(f"{folder}: the U-Net's class_embed_type is identity, so its classes are vectors that "
                                 "no file holds; a UNet alone can be loaded")
            return cls(unet, PixelSpace(channels), None,
                       Schedule(read_scheduler_config(part_folder(folder, "scheduler"), scheduler)), folder, size,
                       loras=found, scheduler=scheduler)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 in hex of the loaded configuration, tokenizer and weight files.

        It includes the scales of LoRA files and the names of embeddings.
        """
        place = {part: part_folder(self.folder, part) for part in ("unet", "text_encoder", "scheduler", "tokenizer")}
        place["vae"] = self.vae_folder or part_folder(self.folder, "vae")
        files = [(part, place[part] / "config.json") for part in ("unet", "vae", "text_encoder")]
        files.append(("scheduler", place["scheduler"] / "scheduler_config.json"))
        files += [("tokenizer", file) for file in sorted(place["tokenizer"].glob("*.json"))]
        files.append(("tokenizer", place["tokenizer"] / "merges.txt"))
        if self.text_encoder_2 is not None:
            tokenizer = part_folder(self.folder, "tokenizer_2")
            files.append(("text_encoder_2", part_folder(self.folder, "text_encoder_2") / "config.json"))
            files += [("tokenizer_2", file) for file in [*sorted(tokenizer.glob("*.json")), tokenizer / "merges.txt"]]
        for part, network in self.networks.items():
            files += [(part, file) for file in network.files]
        digest = hashlib.sha256()
        for part, file in files:
            if file.is_file():
                digest.update(f"{part}/{file.name}\n".encode() + bytes.fromhex(digest_of_file(file)))
        for lora in self.loras:
            digest.update(f"lora {lora.scale!r}\n".encode() + bytes.fromhex(lora.sha256))
        if self.scheduler is not None:
            digest.update(f"scheduler {self.scheduler}\n".encode())
        for embedding in self.embeddings:
            digest.update(f"embedding {embedding.token}\n".encode() + bytes.fromhex(embedding.sha256))
        if self.force_zeros_for_empty_prompt:
            digest.update(b"force_zeros_for_empty_prompt\n")
        return digest.hexdigest()

    @property
    def networks(self) -> dict[str, UNet | VAE | TextEncoder]:
        """The networks by the names of their folders."""
        parts = {"unet": self.unet, "vae": self.vae, "text_encoder": self.text_encoder,
                 "text_encoder_2": self.text_encoder_2}
        return {name: part for name, part in parts.items() if isinstance(part, (UNet, VAE, TextEncoder))}

    def close(self) -> None:
        """Free the memory, also that of the weights. The pipeline can still be used; it then reads the files again."""
        for part in self.networks.values():
            part.unload()
        with self._lock:
            self._embedded.clear()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        height, width = self.size
        return (f"<dreamda.Pipeline {self.folder.name!r}: {height} x {width} pixels, {self.dtype}, "
                f"{counted(self.threads, 'thread')}>")

    # ---------------------------------------------------------------------------------------------- images

    @overload
    def augment(self,
                images: Images,
                prompts: Texts | None = None,
                *,
                class_labels: int | Sequence[int] | None = None,
                keys: int | str | Sequence[int | str] | None = None,
                progress: Callable[[int, int], None] | bool | None = None,
                callback_on_step_end: StepCallback | None = None,
                **options: Unpack[OptionKeywords]) -> np.ndarray: ...
    @overload
    def augment(self,
                images: Images,
                prompts: Texts | None = None,
                *,
                class_labels: int | Sequence[int] | None = None,
                masks: np.ndarray | Sequence[np.ndarray] | None = None,
                keep: Keep,
                keys: int | str | Sequence[int | str] | None = None,
                progress: Callable[[int, int], None] | bool | None = None,
                callback_on_step_end: StepCallback | None = None,
                **options: Unpack[OptionKeywords]) -> list[np.ndarray]:
        ...

    @accepts(GenerationOptions, variants=4)
    def augment(self,
                images: Images,
                prompts: Texts | None = None,
                *,
                class_labels: int | Sequence[int] | None = None,
                masks: np.ndarray | Sequence[np.ndarray] | None = None,
                keep: Keep | None = None,
                keys: int | str | Sequence[int | str] | None = None,
                progress: Callable[[int, int], None] | bool | None = None,
                callback_on_step_end: StepCallback | None = None,
                **options: Unpack[OptionKeywords]) -> np.ndarray | list[np.ndarray]:
        """Make new images of each image.

        Parameters
        ----------
        images : array, PIL image, path, or a sequence of them
            One image or several, of any sizes: arrays are uint8 (H, W, 3) or (N, H, W, 3). They are resized (bicubic)
            to the pipeline's ``size`` if they differ; `fit` says how another aspect ratio is treated.
        prompts : str or sequence of N (str or sequence of `variants` str)
            A description of each image, "a photo of a coat"; a single text is used for all images. For an image it may
            be a sequence with a text for each variant; for a single image, `prompts` itself may be that sequence.
            ``(word:1.3)`` gives a word weight, see `prompt_syntax`; `dreamda.data.escape_prompt` makes a text with
            brackets one that is read as it is. Required by models that read prompts.
        masks : sequence of N arrays (H, W), optional
            For `keep`: the objects in each image, bool, or float from 0 to 1.
        keep : {"objects", "background", "none"}, optional
            Make images of the same sizes as `images`, in which the pixels of the objects or of the background stay the
            same, with a soft edge around them, and the rest is new. With "none", nothing stays. `fit` is then unused.
        keys : sequence of N int or str, optional
            Keys of the images' noise, so that it does not depend on the batch. Default: a hash of the pixels. Equal
            images then get equal noise; with file names as keys, they get different noise.
        progress : callable(done, total) or bool, optional
            Called after every U-Net call with the amount of work done; True shows a bar, in a terminal or in Jupyter.
        class_labels : int or sequence of N int, optional
            For a class-conditional model: the class of each image, or that of all. Such a model takes no prompts, and
            an unconditional one takes neither.
        callback_on_step_end : callable(step, timestep, latents, units), optional
            Called after every diffusion step of every group of images, with the number of the step from 0, its
            timestep, the latents (n, latent_channels, h, w), and their n pairs (index of the image, variant). An
            exception in it ends the call.
        GenerationOptions
            Its fields, by keyword. Those of guidance and prompts are for models that read prompts.

        Returns
        -------
        uint8 array (N, variants, height, width, 3)
            Without the first axis if a single image was given. With `keep`, a list of N arrays (variants, H, W, 3); for
            a single image, its array.

        Raises
        ------
        ParameterError
            A ValueError that names the parameter and the possible values.
        """
        pixels, single = as_pixels(images)
        chosen = from_keywords(GenerationOptions, Pipeline.augment, options)
        if single and prompts is not None and not isinstance(prompts, str) and len(prompts) == chosen.variants > 1:
            prompts = [prompts]  # type: ignore[list-item]  # checked later
        self.check_given(options)
        prompts = self._conditions(prompts, class_labels, len(pixels))
        made: np.ndarray | list[np.ndarray]
        if keep is None:
            if masks is not None:
                raise ParameterError("keep", "say what the masks are for: objects, background or none")
            made = self._augment(pixels, prompts, keys, chosen, progress=progress, callback=callback_on_step_end)
        else:
            if single and masks is not None and np.ndim(masks) == 2:
                masks = [np.asarray(masks)]
            made = self._augment_around(pixels, prompts, masks, keep, keys, chosen, progress, callback_on_step_end)
        return made[0] if single else made

    def check_given(self, options: Iterable[str]) -> None:
        """Refuse options that have no effect in a model without text.

        Parameters
        ----------
        options : iterable of str
            The names of those that were given.

        Raises
        ------
        ParameterError
            It names the first of them.
        """
        for name in options:
            if self.conditioning != "text" and name in OF_TEXT:
                raise ParameterError(name, "has no effect: this model reads no prompts; leave it out")

    def _conditions(self, prompts: Texts | None, class_labels: int | Sequence[int] | None, count: int) -> Texts:
        """The condition of each image as a text: its prompt, the number of its class, or nothing."""
        if self.conditioning == "text":
            if class_labels is not None:
                raise ParameterError("class_labels", "are for class-conditional models; this one reads prompts")
            if prompts is None:
                raise ParameterError("prompts", "are missing; give a text for all images, or one an image")
            return prompts
        if prompts is not None:
            instead = "give class_labels" if self.conditioning == "class" else "leave them out"
            raise ParameterError("prompts", f"are not possible: this model reads no text; {instead}")
        if self.conditioning == "none":
            if class_labels is not None:
                raise ParameterError("class_labels", "are not possible: this model is unconditional; leave them out")
            return ""
        if class_labels is None:
            raise ParameterError("class_labels", "are missing: this model is class-conditional; give a class for all "
                                 "images, or one an image")
        numbers = np.asarray(class_labels)
        if numbers.dtype.kind not in "iu" or numbers.shape not in ((), (count,)):
            raise ParameterError("class_labels", f"expected a whole number, or {count}, one an image")
        return [str(number) for number in np.broadcast_to(numbers, (count,)).tolist()]

    def _augment_around(self, pixels: list[np.ndarray], prompts: Texts,
                        masks: np.ndarray | Sequence[np.ndarray] | None, keep: Keep,
                        keys: int | str | Sequence[int | str] | None, options: GenerationOptions,
                        progress: Callable[[int, int], None] | bool | None,
                        callback: StepCallback | None) -> list[np.ndarray]:
        """`augment` with `keep`, which works on the images of one size at a time."""
        texts, identities = _texts(prompts, len(pixels), options.variants), _identities(keys, pixels)
        every = as_masks(masks, [(image.shape[0], image.shape[1]) for image in pixels], keep)
        if isinstance(progress, bool):
            progress = _bar(len(pixels) * options.variants) if progress and pixels else None
        same: dict[tuple[int, ...], list[int]] = {}
        for number, image in enumerate(pixels):
            same.setdefault(image.shape, []).append(number)
        result: list[np.ndarray] = [np.empty(0)] * len(pixels)
        done = 0
        for numbers in same.values():
            made = self._augment(np.stack([pixels[n] for n in numbers]), [texts[n] for n in numbers],
                                 [identities[n] for n in numbers],
                                 options,
                                 progress=_section(progress, done, len(numbers), len(pixels)),
                                 callback=_renumbered(callback, numbers),
                                 masks=[every[n] for n in numbers],
                                 keep=keep)
            done += len(numbers)
            for number, variants in zip(numbers, made):
                result[number] = variants
        return result

    def _check(self, options: GenerationOptions) -> None:
        """Refuse options that this model does not support."""
        self.schedule.steps(options.steps, options.strength, options.eta)
        if options.text_share and self.conditioning == "none":
            raise ParameterError("text_share", "is not possible: this model reads neither prompts nor classes, so only "
                                               "the real image says what to make; leave it at 0")
        if self.text_encoder is None:
            self.check_given(name for name in ("negative_prompt", "source_prompt") if getattr(options, name))
        if self.unet.takes_guidance and options.negative_prompt:
            raise ParameterError(
                "negative_prompt",
                "is not possible: this model takes the guidance as an input, without a second row; leave it empty")
        for name in ("guidance_scale", "source_guidance_scale"):
            if self.unet.takes_guidance and getattr(options, name) < 1:
                raise ParameterError(
                    name,
                    f"{getattr(options, name):g} is not possible: this model takes the guidance as "
                    "an input, which begins at 1")

    def _augment(self,
                 images: Sequence[np.ndarray] | np.ndarray,
                 prompts: Texts,
                 keys: int | str | Sequence[int | str] | None,
                 options: GenerationOptions,
                 *,
                 progress: Callable[[int, int], None] | bool | None = None,
                 callback: StepCallback | None = None,
                 first: int = 0,
                 stop: Callable[[], bool] | None = None,
                 masks: Sequence[np.ndarray] | None = None,
                 keep: Keep | None = None,
                 cutouts: Sequence[Cutout | None] = ()) -> np.ndarray:
        """`augment` for resumable runs: makes the variants from `first` on, which do not depend on the earlier ones.

        `stop` is for one image only. It is called before every group of variants except the first; if it returns True,
        the call returns the finished variants. With `keep`, all images must have the same size. `cutouts` are laid over
        the new images (see `_lay_over`).
        """
        self._check(options)
        if options.text_share and keep is not None:
            raise ParameterError("text_share", "is not possible with masks, which are about the real image; leave it "
                                               "at 0")
        if not (isinstance(first, (int, np.integer)) and 0 <= first < options.variants):
            raise ParameterError(
                "first", f"{first!r} is not possible with {options.variants} variants; use a whole number below that")
        if stop is not None and len(images) > 1:
            raise ParameterError("stop", f"works on one image at a time, not on {len(images)}")
        canvas = None if keep is None else self._canvas(images[0].shape[:2])
        height, width = self.size if canvas is None else canvas.size
        texts, identities = _texts(prompts, len(images), options.variants), _identities(keys, images)
        shape = (height, width) if canvas is None else canvas.image
        result = np.empty((len(images), options.variants - first, *shape, 3), np.uint8)
        if isinstance(progress, bool):
            progress = _bar(result.shape[0] * result.shape[1]) if progress and result.size else None
        tiles = self._tiles((height, width), options.tile_size)
        batch, _ = tiles.batches()
        all_from_text = all(is_from_text(options.text_share, k) for k in range(first, options.variants))
        for part in self._blocks(len(images), options.variants, *tiles.tile):
            self._embed([variants[first:] for variants in texts[part]], options, tiles.tile)
            report = _section(progress, part.start, len(images[part]), len(images))
            real = images[part] if canvas is None else [canvas.place(image) for image in images[part]]
            if all_from_text:
                z0 = np.zeros((len(real), self.vae.config["latent_channels"], *tiles.size), np.float32)
            else:
                z0 = self._encode(real, identities[part], options.seed, options.method != "asymmetric", options.fit,
                                  tiles)
            weights, kept = None, None
            if canvas is not None and masks is not None and keep is not None:
                weights = [kept_weight(mask, keep, canvas.edge) for mask in masks[part]]
                kept = np.stack([canvas.kept_latents(weight, keep, self.vae.factor) for weight in weights])
            beside = self._beside(real, kept, identities[part], options, tiles)
            self._free_plans(tiles.tile, self.vae)
            latents = latents_of_variants(self, z0, texts[part], identities[part], options, report,
                                          _renumbered(callback, range(part.start, len(images))), first, stop, kept,
                                          beside, tiles)
            self._free_plans(tiles.tile, self.unet)
            flat = latents.reshape(-1, *latents.shape[2:])
            pixels = np.empty((len(flat), height, width, 3), np.uint8)

            def decode(i: int, lane: int | None) -> None:
                pixels[i : i + batch] = self._decode(flat[i : i + batch], tiles, lane)

            work_through(range(0, len(flat), batch), decode, self.threads, tiles.tile)
            self._free_plans(tiles.tile, self.vae)
            result = result[:, : latents.shape[1]]
            made = pixels.reshape(*latents.shape[:2], height, width, 3)
            if canvas is None or weights is None:
                result[part] = made
                continue
            for number, (variants, weight) in enumerate(zip(made, weights), part.start):
                for k, variant in enumerate(variants):
                    result[number, k] = laid_over(images[number], canvas.take_back(variant), weight)
        if any(cutout is not None for cutout in cutouts):
            self._lay_over(result, cutouts, masks or (), texts, identities, options, first)
        return result

    def _lay_over(self, made: np.ndarray, cutouts: Sequence[Cutout | None], masks: Sequence[np.ndarray],
                  texts: list[list[str]], identities: list[int], options: GenerationOptions, first: int) -> None:
        """Lay objects over new images, uint8 (N, K, H, W, 3), and make the seams around them anew at low strength.

        The images' own objects, bool `masks`, are not changed by the seams.
        """
        numbers = [number for number, cutout in enumerate(cutouts) if cutout is not None]
        canvas = self._canvas(made.shape[2:4])
        width = max(SEAM * canvas.edge, round(self.vae.factor * canvas.image[0] / canvas.inner[0]))
        seams = []
        for number in numbers:
            pixels, weight = cutouts[number]  # type: ignore[misc]  # it is not None
            made[number] = laid_over(pixels, made[number], weight)
            seams.append(seam(weight, width) & ~masks[number])
        for k in range(made.shape[1]):
            low = replace(options_of_seams(options), variants=first + k + 1)
            made[numbers, k] = self._augment(made[numbers, k], [texts[n][: first + k + 1] for n in numbers],
                                             [identities[n] for n in numbers], low, first=first + k, masks=seams,
                                             keep="background")[:, 0]

    def _canvas(self, image: tuple[int, int]) -> Canvas:
        """The canvas for an image of this height and width."""
        return Canvas.of(image, self.size, self._multiple)

    @property
    def _multiple(self) -> int:
        """The pixels on a side of a position of the U-Net's coarsest level."""
        return self.vae.factor << (len(self.unet.config["block_out_channels"]) - 1)

    def _tiles(self, size: tuple[int, int], tile_size: int) -> Tiles:
        """The tiles of the latents of images of this height and width."""
        height, width = size[0] // self.vae.factor, size[1] // self.vae.factor
        multiple = self._multiple // self.vae.factor
        if tile_size % self._multiple:
            raise ParameterError("tile_size", f"{tile_size} is not possible; use a multiple of {self._multiple}, or 0")
        own = [-(-side // multiple) * multiple for side in self.unet.config["sample_size"]]
        if tile_size:
            tile = (tile_size // self.vae.factor, tile_size // self.vae.factor)
        elif height * width <= WHOLE * own[0] * own[1]:
            tile = (height, width)
        else:
            tile = (own[0], own[1])
        if any(side > part and side % multiple for side, part in zip((height, width), tile)):
            raise ParameterError(
                "size", f"{size[0]} x {size[1]} is too large to be made whole, and tiles need multiples of "
                f"{self._multiple}; use these, or a smaller size")
        return Tiles.of((height, width), tile, multiple)

    def _blocks(self, images: int, variants: int, h: int, w: int) -> Iterator[slice]:
        """Blocks of images, so that memory does not grow with their number.

        They are large enough to keep every lane busy, and multiples of the groups for work that is done once per image.
        """
        group = group_size(1, h, w)
        block = -(-max(1, 8 * self.threads * group // variants) // group) * group
        return (slice(first, first + block) for first in range(0, images, block))

    def _free_plans(self, latent_size: tuple[int, int], part: UNet | VAE | PixelSpace) -> None:
        """For large images, free the plans' memory; compared with such an image, making a plan again is fast."""
        if not is_small(*latent_size):
            part.close()

    def _embed(self, prompts: Sequence[Sequence[str]], options: GenerationOptions, latent_size: tuple[int,
                                                                                                       int]) -> None:
        """Embed the prompts that are needed next.

        For large images, then free the memory of the text encoders: with Stable Diffusion 0.4 GiB, for the minutes
        that an image takes.
        """
        if self.text_encoder is None:
            for text in {text for variants in prompts for text in variants}:
                self.condition(text)  # checks it
            return
        texts = [text for variants in prompts for text in variants]
        needed = dict.fromkeys([*texts, "", options.source_prompt, options.negative_prompt])
        missing = [p for p in needed if (p, options.prompt_syntax) not in self._embedded]
        for prompt in missing:
            self.context(prompt, options.prompt_syntax)
        if missing and not is_small(*latent_size):
            for part in self.networks.values():
                if isinstance(part, TextEncoder):
                    part.unload()

    def encode(self,
               images: Images,
               keys: int | str | Sequence[int | str] | None = None,
               seed: int = 0,
               sample: bool = True) -> np.ndarray:
        """Scaled latents of images.

        Parameters
        ----------
        images, keys, seed
            As in `augment`; images with another aspect ratio are cropped to their centre.
        sample : bool
            Sample the VAE's posterior, with noise keyed by `seed` and `keys`, as ``cycle`` and ``sdedit`` do; False
            takes its mean, as ``asymmetric`` does.

        Returns
        -------
        float32 array (N, latent_channels, height / factor, width / factor)
            Without the first axis if a single image was given.
        """
        pixels, single = as_pixels(images)
        made = self._encode(pixels, _identities(keys, pixels), seed, sample, "crop", self._tiles(self.size, 0))
        return made[0] if single else made

    def _beside(self, images: Sequence[np.ndarray] | np.ndarray, kept: np.ndarray | None, keys: list[int],
                options: GenerationOptions, tiles: Tiles) -> np.ndarray | None:
        """The inputs of an inpainting U-Net beside the latents, (N, 1 + latent_channels, h, w); None for others.

        These are the mask, 1 where the image is made anew, and the latents of the image with grey pixels there. Without
        kept positions, all of the image is made anew.
        """
        if not self.unet.takes_mask:
            return None
        new = np.ones((len(images), *tiles.size), np.bool_) if kept is None else ~kept
        latents = self._encode(images, keys, options.seed, options.method != "asymmetric", options.fit, tiles, new)
        return np.concatenate([new[:, None].astype(np.float32), latents], axis=1)

    def _encode(self,
                images: Sequence[np.ndarray] | np.ndarray,
                keys: list[int],
                seed: int,
                sample: bool,
                how: str,
                tiles: Tiles,
                hidden: np.ndarray | None = None) -> np.ndarray:
        """`encode`; of the images without their `hidden` latent positions, bool (N, h, w), where those are given."""
        factor, shape = self.vae.factor, (self.vae.config["latent_channels"], *tiles.size)
        size, (batch, together) = (tiles.size[0] * factor, tiles.size[1] * factor), tiles.batches()
        result = np.empty((len(images), *shape), np.float32)

        def encode(first: int, lane: int | None) -> None:
            part = images[first : first + batch]
            x = np.stack([fit(image, size, how) for image in part]).astype(np.float32)
            x = x.transpose(0, 3, 1, 2) / np.float32(127.5) - np.float32(1)
            noise, row = None, 0
            if hidden is not None:
                grey = hidden[first : first + batch, None].repeat(factor, 2).repeat(factor, 3)
                x, row = np.where(grey, np.float32(0), x), 1
            if sample:
                drawn = [
                    _core.normals(seed, k, 0, 0, STREAM_POSTERIOR, row, shape) for k in keys[first : first + batch]
                ]
                noise = filled_up(np.stack(drawn), batch)
            x = filled_up(x, batch)

            def encode_tiles(parts: Sequence[Part]) -> Sequence[np.ndarray]:
                pixels = stacked(x, parts, together, partial(scaled, scale=factor))
                drawn = None if noise is None else stacked(noise, parts, together)
                return np.split(self.vae.encode(pixels, drawn, lane), together)

            result[first : first + batch] = tiles.blended(encode_tiles, together)[: len(part)]

        work_through(range(0, len(images), batch), encode, self.threads, tiles.tile)
        return result

    def _decode(self, latents: np.ndarray, tiles: Tiles, lane: int | None) -> np.ndarray:
        batch, together = tiles.batches()
        filled = filled_up(latents, batch)

        def decode(parts: Sequence[Part]) -> Sequence[np.ndarray]:
            return np.split(self.vae.decode(stacked(filled, parts, together), lane), together)

        x = tiles.blended(decode, together, self.vae.factor)
        x = x[: len(latents)].transpose(0, 2, 3, 1)
        if not np.isfinite(x).all():
            raise _core.Error(
                "the model made pixels that are not numbers; use dtype f32, or a smaller guidance or noise scale")
        return np.rint(np.clip(x / 2 + np.float32(0.5), 0, 1) * 255).astype(np.uint8)

    # ---------------------------------------------------------------------------------------------- latents

    @accepts(GenerationOptions, variants=4)
    def augment_latents(self,
                        z0: np.ndarray,
                        prompts: Texts | None = None,
                        keys: int | str | Sequence[int | str] | None = None,
                        *,
                        class_labels: int | Sequence[int] | None = None,
                        progress: Callable[[int, int], None] | None = None,
                        callback_on_step_end: StepCallback | None = None,
                        **options: Unpack[OptionKeywords]) -> np.ndarray:
        """The part of `augment` between encoding and decoding.

        Parameters
        ----------
        z0 : float32 array (N, latent_channels, h, w)
            Scaled latents of the images, from `encode`.
        prompts, class_labels, progress, callback_on_step_end
            As in `augment`.
        keys : sequence of N int or str, optional
            As in `augment`; default: a hash of the latents, which differs from that of the pixels.
        GenerationOptions
            Its fields, by keyword.

        Returns
        -------
        float32 array (N, K, latent_channels, h, w)

        Raises
        ------
        ParameterError
            As in `augment`, or `z0` is not such an array.
        """
        chosen = from_keywords(GenerationOptions, Pipeline.augment_latents, options)
        z0 = np.asarray(z0, np.float32)
        if z0.ndim != 4 or z0.shape[1] != self.vae.config["latent_channels"] or 0 in z0.shape[2:]:
            raise ParameterError("z0",
                                 f"expected (N, {self.vae.config['latent_channels']}, h, w), got shape {z0.shape}")
        self.check_given(options)
        prompts = self._conditions(prompts, class_labels, len(z0))
        texts, identities = _texts(prompts, len(z0), chosen.variants), _identities(keys, z0)
        self._check(chosen)
        size = (z0.shape[2] * self.vae.factor, z0.shape[3] * self.vae.factor)
        tiles = self._tiles(size, chosen.tile_size)
        result = np.empty((len(z0), chosen.variants, *z0.shape[1:]), np.float32)
        for part in self._blocks(len(z0), chosen.variants, *tiles.tile):
            self._embed(texts[part], chosen, tiles.tile)
            report = _section(progress, part.start, len(z0[part]), len(z0))
            hidden = np.broadcast_to(np.uint8(0), (len(z0[part]), *size, 3))  # nothing of the images is seen
            beside = self._beside(hidden, None, identities[part], chosen, tiles)
            result[part] = latents_of_variants(self, z0[part], texts[part], identities[part], chosen, report,
                                               _renumbered(callback_on_step_end, range(part.start, len(z0))),
                                               beside=beside,
                                               tiles=tiles)
        return result

    def context(self, prompt: str, prompt_syntax: Syntax = "a1111", chunks: int = 1) -> np.ndarray:
        """The embedding of a prompt; recent ones are cached.

        Parameters
        ----------
        prompt : str
        prompt_syntax : {"a1111", "plain"}
            As in `augment`.
        chunks : int
            If the embedding has fewer chunks, those of empty prompts follow, as in A1111.

        Returns
        -------
        float32 array (tokens, context_dim)
            Of a whole number of chunks, each ``text_encoder.tokenizer.length`` tokens.

        Raises
        ------
        ParameterError
            A weight is not a number or too large, the prompt is too long, or the model reads no prompts.
        """
        return self._text_condition(prompt, prompt_syntax, chunks)["context"]

    def _text_condition(self, prompt: str, prompt_syntax: Syntax, chunks: int) -> dict[str, np.ndarray]:
        """The U-Net's inputs for a prompt: the embedding and, for SDXL, the pooled text."""
        if self.text_encoder is None:
            raise ParameterError("prompt", "is not possible: this model reads no text")
        with self._lock:
            key = prompt, prompt_syntax
            if key not in self._embedded:
                try:
                    self._embedded[key] = self._encode_prompt(self.text_encoder, prompt, prompt_syntax)
                except ValueError as error:
                    raise ParameterError("prompts", str(error)) from error
                if len(self._embedded) > MAX_PROMPTS:
                    self._embedded.popitem(last=False)
            found = self._embedded[key]
        missing = chunks - len(found["context"]) // self.text_encoder.tokenizer.length
        if missing <= 0:
            return found
        empty = self.context("", prompt_syntax)
        return found | {"context": np.concatenate([found["context"], *[empty] * missing])}

    def _encode_prompt(self, first: TextEncoder, prompt: str, prompt_syntax: Syntax) -> dict[str, np.ndarray]:
        second = self.text_encoder_2
        if second is None:
            return {"context": first([prompt])[0] if prompt_syntax == "plain" else first.embed(prompt)}
        (hidden, _), (more, pooled) = (encoder.embed_for_xl(prompt, prompt_syntax) for encoder in (first, second))
        if len(hidden) != len(more):
            raise ValueError(f"the two tokenizers of {self.folder} make {len(hidden)} and {len(more)} tokens of the "
                             f"prompt {prompt[:100]!r}; they do not belong together")
        assert pooled is not None  # its projection was compared with the U-Net
        return {"context": np.concatenate([hidden, more], axis=-1), "text_embeds": pooled}

    def condition(self, text: str | None, prompt_syntax: Syntax = "a1111", chunks: int = 1) -> dict[str, np.ndarray]:
        """The inputs of a row of the U-Net that tell it what to make.

        Parameters
        ----------
        text : str or None
            A prompt; for a class-conditional model the number of a class, and for an unconditional one the empty text.
            None stands for a missing negative prompt: the empty text, or zeros for a model with
            ``force_zeros_for_empty_prompt``.
        prompt_syntax, chunks
            As in `context`, for prompts.

        Returns
        -------
        dict of str to array
            By the names of the U-Net's inputs.

        Raises
        ------
        ParameterError
            The text is not such a number.
        """
        if self.conditioning == "text":
            found = self._text_condition(text or "", prompt_syntax, chunks)
            if text is None and self.force_zeros_for_empty_prompt:
                found = {name: np.zeros_like(value) for name, value in found.items()}
            return found
        if self.conditioning == "none":
            return {}
        try:
            return {"class_labels": self.unet.class_input(int(text or ""), 1)[0]}
        except ValueError:
            classes = self.unet.config["num_class_embeds"]
            possible = f"from 0 to {classes - 1}" if classes else "as the model was trained with"
            raise ParameterError("class_labels", f"{text!r} is not possible; use whole numbers {possible}") from None


def in_pixel_space(folder: Path) -> bool:
    """Whether a model's folder has a UNet2DModel, which works on pixels and reads no text."""
    return read_unet_config(part_folder(folder, "unet"))["context_dim"] == 0


def options_of_seams(options: GenerationOptions) -> GenerationOptions:
    """The options with which the seams around objects of other images are made."""
    strength = min(options.strength, max(SEAM_STRENGTH, 1 / options.steps))
    return replace(options, method="sdedit", strength=strength, noise_scale=0.0, source_prompt="", share_source=False)


def as_pixels(images: Images) -> tuple[list[np.ndarray], bool]:
    """The images as uint8 arrays (H, W, 3), and whether a single image was given."""
    from PIL import Image

    single = isinstance(images,
                        (str, os.PathLike, Image.Image)) or (isinstance(images, np.ndarray) and images.ndim == 3)
    every: Sequence[Any] = [images] if single else images  # type: ignore[assignment, list-item]
    if isinstance(every, np.ndarray) and (every.dtype != np.uint8 or every.ndim != 4):
        raise ParameterError("images", f"expected uint8 (N, H, W, 3), got {every.dtype} {every.shape}")
    return [_one(image, number) for number, image in enumerate(every)], single


def _one(image: OneImage, number: int) -> np.ndarray:
    from PIL import Image

    try:
        if isinstance(image, (str, os.PathLike)):
            return read_image(image).pixels
        if isinstance(image, Image.Image):
            return rgb_pixels(image)
    except BrokenImageError as error:
        name = os.fspath(image) if isinstance(image, (str, os.PathLike)) else f"number {number}"
        raise ParameterError("images", f"{name}: {error}") from error
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3 or not pixels.size:
        raise ParameterError("images",
                             f"expected uint8 (H, W, 3), and number {number} is {pixels.dtype} {pixels.shape}")
    return pixels


def _texts(prompts: Texts, count: int, variants: int) -> list[list[str]]:
    """For every image, a prompt for each variant."""
    if isinstance(prompts, str):
        return [[prompts] * variants] * count
    every = [[each] * variants if isinstance(each, str) else list(each) if isinstance(each, Sequence) else [each]
             for each in prompts]
    if len(every) != count or not all(isinstance(text, str) for texts in every for text in texts):
        raise ParameterError("prompts", f"expected a text for all, or {count} texts, one an image")
    if odd := next((texts for texts in every if len(texts) != variants), None):
        raise ParameterError("prompts", f"expected {variants} texts for an image, one a variant, got {len(odd)}")
    return every


def _identities(keys: int | str | Sequence[int | str] | None, arrays: Sequence[np.ndarray] | np.ndarray) -> list[int]:
    """The key of each image's noise; by default, a hash of its pixels or latents."""
    if keys is None:
        return [
            int.from_bytes(hashlib.sha256(f"{a.shape}{a.dtype}".encode() + a.tobytes()).digest()[:8], "little")
            for a in arrays
        ]
    every = [keys] if isinstance(keys, (str, int, np.integer)) else list(keys)
    if len(every) != len(arrays):
        raise ParameterError("keys", f"expected {len(arrays)}, one an image, got {len(every)}")
    return [image_key(key) for key in every]


def _renumbered(callback: StepCallback | None, numbers: Sequence[int]) -> StepCallback | None:
    """The callback for some of the images, called with their numbers in the whole call."""
    if callback is None:
        return None
    return lambda step, timestep, latents, units: callback(step, timestep, latents, [(numbers[image], variant)
                                                                                     for image, variant in units])


def _has_two_text_encoders(index: Path, parts: dict[str, Any]) -> bool:
    """Whether a model has a second text encoder, as SDXL; other kinds are refused."""
    two = parts.get("text_encoder_2") not in (None, [None, None])
    for part, wanted in (("text_encoder", "CLIPTextModel"), ("text_encoder_2", "CLIPTextModelWithProjection")):
        kind = parts.get(part)
        if isinstance(kind, list) and kind[-1:] not in ([None], [wanted]):
            raise ValueError(f"{index}: the {part.replace('_', ' ', 1)} {str(kind)[:200]} is not supported, only "
                             f"{wanted} is")
    if parts.get("requires_aesthetics_score"):
        raise ValueError(f"{index}: 'requires_aesthetics_score' is on, as of a refiner of SDXL, which is not "
                         "supported; use a base model")
    return two


def _other_vae(vae: Path, replaced: Path) -> Path:
    """The folder of a VAE that replaces the model's own; ParameterError if it was made for other latents."""
    folder = Path(os.path.abspath(vae))
    if not (folder / "config.json").is_file():
        hint = f"; give {vae / 'vae'}" if (folder / "vae" / "config.json").is_file() else ""
        raise ParameterError("vae", f"{vae} is no folder of a VAE in diffusers' format: it has no config.json{hint}")
    other, own = read_vae_config(folder), read_vae_config(replaced)
    same = ["latent_channels", "factor"]
    if other["family"] == own["family"]:  # an AutoencoderTiny gives scaled latents
        same += ["scaling_factor", "shift_factor", "latents_mean", "latents_std"]
    for name in same:
        if other[name] != own[name]:
            raise ParameterError(
                "vae", f"{vae} has the {name} {other[name]}, and the model's own VAE {own[name]}: it was made for "
                "other latents; use one made for this kind of model")
    return folder


def _check_size(size: tuple[int, int], factor: int) -> tuple[int, int]:
    try:
        height, width = (int(v) for v in size)
    except (TypeError, ValueError):
        raise ParameterError("size", f"expected (height, width), got {size!r}") from None
    if height < factor or width < factor or height % factor or width % factor or max(height, width) > 8192:
        raise ParameterError("size", f"{height} x {width} is not possible; use multiples of {factor}, up to 8192")
    return height, width


def _bar(images: int) -> Callable[[int, int], None]:
    """A progress bar as a callable; it closes itself at the end."""
    shown = bar(images, "image")

    def report(done: int, total: int) -> None:
        shown.update(images * done / total - shown.n)
        if done >= total:
            shown.close()

    return report


def _section(progress: Callable[[int, int], None] | None, first: int, count: int,
             images: int) -> Callable[[int, int], None] | None:
    """The progress callback for a block of images, as a share of all images."""
    if progress is None:
        return None
    scale = 1_000_000

    def report(done: int, total: int) -> None:
        progress(int(scale * (first + count * done / total) / images), scale)

    return report
