"""Find a model and its parts: a bundled name, a local folder, or an id on the Hugging Face hub.

Only the needed files are downloaded from the hub.
"""

import os
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from .config import read_json, shown

BUNDLED = Path(__file__).parents[1] / "bundled"
_ID = re.compile(r"(\w[\w.-]*/[\w.-]+)(?:@([\w./-]+))?", re.ASCII)
_AT_THE_ROOT = {"unet": "config.json", "scheduler": "scheduler_config.json"}
_WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model",
            "text_encoder_2": "model"}


def find_model(model: str | os.PathLike[str]) -> Path:
    """Find the folder of a model.

    Parameters
    ----------
    model : str or path
        A bundled name, a folder in diffusers' format, or an id on the hub, "owner/name" or "owner/name@revision" (a
        branch, tag or commit), which needs the `hub` extra. Files in the hub's cache are not downloaded again.

    Returns
    -------
    Path

    Raises
    ------
    FileNotFoundError
        The model was not found; the message says why the hub did not provide it.
    ValueError
        The path is a single checkpoint file instead of a folder.
    """
    path = Path(model)
    bundled = BUNDLED / str(model)
    if path.name == str(model) and (bundled / "model_index.json").is_file():
        return bundled
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise FileNotFoundError(
                f"{path}: has no model_index.json, so it is not a model folder in diffusers' format")
        return Path(os.path.abspath(path))
    if path.is_file():
        raise ValueError(
            f"{path}: is a file, but a folder in diffusers' format is needed; convert it where PyTorch is installed: "
            "diffusers' StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER, "
            "safe_serialization=True)")
    hub_id = _ID.fullmatch(str(model))
    if hub_id is None:
        raise FileNotFoundError(f"{model}: no such folder, and not a bundled model ({', '.join(bundled_models())})")
    return _fetch(hub_id[1], hub_id[2])


def bundled_models() -> list[str]:
    """The names of the models that come with the package."""
    return sorted(p.name for p in BUNDLED.iterdir() if (p / "model_index.json").is_file())


def part_folder(model: Path, part: str) -> Path:
    """The folder of a part ("unet", "vae", "text_encoder", "tokenizer", "scheduler" and so on) of a model.

    It is inside the model's own folder. If that has no such part, ``dreamda.json`` may name a bundled model whose
    parts are shared: ``{"parts_from": "fashion-mini"}``. Old models in pixel space have the files of the U-Net and the
    scheduler in the model's folder itself, where diffusers finds them as well.

    Parameters
    ----------
    model : Path
        The model's folder.
    part : str

    Returns
    -------
    Path
        The folder may not exist.

    Raises
    ------
    ValueError
        ``dreamda.json`` names something other than a bundled model.
    """
    about = model / "dreamda.json"
    if (model / part).exists():
        return model / part
    if part in _AT_THE_ROOT and (model / _AT_THE_ROOT[part]).is_file():
        return model
    if not about.is_file():
        return model / part
    shared = read_json(about).get("parts_from")
    if shared is None:
        return model / part
    if shared not in bundled_models():
        raise ValueError(f"{about}: 'parts_from' must be a bundled model ({', '.join(bundled_models())}), "
                         f"got {shown(shared)}")
    return BUNDLED / shared / part


def needed_files(files: Iterable[str]) -> list[str]:
    """The files of a repository that dreamda reads.

    These are the configurations, the tokenizer, and one form of each network's weights. Pickles, other variants and
    other parts are left out. Full precision is preferred to float16, and a single file to shards.
    """
    files = sorted(files)
    needed = [
        name for name in files if name in ("model_index.json", "dreamda.json") or name.count("/") == 1 and
        (name.startswith(("tokenizer/", "tokenizer_2/")) and name.endswith((".json", ".txt"))
         or name == "scheduler/scheduler_config.json"
         or name.endswith("/config.json") and name.partition("/")[0] in _WEIGHTS)
    ]
    in_folders = any(name.startswith("unet/") for name in files)
    needed += [] if in_folders else [name for name in files if name in _AT_THE_ROOT.values()]
    for part, stem in _WEIGHTS.items():
        for patterns in ([f"{stem}.safetensors"
                          ], [f"{stem}-?????-of-?????.safetensors",
                              f"{stem}.safetensors.index.json"], [f"{stem}.fp16.safetensors"],
                         [f"{stem}.fp16-*-of-*.safetensors", f"{stem}-*-of-*.fp16.safetensors",
                          f"{stem}.*index*.json"]):
            place = "" if part == "unet" and not in_folders else f"{part}/"
            chosen = [name for name in files if any(fnmatchcase(name, place + pattern) for pattern in patterns)]
            if any(name.endswith(".safetensors") for name in chosen):
                needed += chosen
                break
    return needed


def _fetch(model: str, revision: str | None) -> Path:
    try:
        from huggingface_hub import HfApi, constants, snapshot_download
        from huggingface_hub.errors import (GatedRepoError, HfHubHTTPError, RepositoryNotFoundError,
                                            RevisionNotFoundError)
    except ImportError:
        raise FileNotFoundError(f"{model}: no such folder; if it is a model id of the hub, install the extra: "
                                "pip install 'dreamda-c[hub]'") from None
    name = model if revision is None else f"{model}@{revision}"
    if constants.HF_HUB_OFFLINE:
        return _cached(model, revision, "HF_HUB_OFFLINE is set")
    try:
        files = HfApi().list_repo_files(model, revision=revision)
        return Path(snapshot_download(model, revision=revision, allow_patterns=needed_files(files)))
    except GatedRepoError:  # a RepositoryNotFoundError as well
        problem = (f"it is gated; accept its conditions at {constants.ENDPOINT}/{model}, then log in: hf auth login, "
                   "or HF_TOKEN")
    except RepositoryNotFoundError:
        problem = "the hub has no such model, or it is private; check the name, or log in: hf auth login, or HF_TOKEN"
    except RevisionNotFoundError:
        problem = f"the model has no revision {revision!r}"
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            problem = "access is denied; log in with an account that may read it: hf auth login, or HF_TOKEN"
        else:
            return _cached(model, revision, _first_line(error))
    except Exception as error:  # the exception for "no connection" differs between versions of the library
        return _cached(model, revision, _first_line(error))
    raise FileNotFoundError(f"{name}: not a local folder, and {problem}")


def _cached(model: str, revision: str | None, reason: str) -> Path:
    """The copy in the hub's cache, if it is complete; `reason` says why nothing can be downloaded."""
    from huggingface_hub import try_to_load_from_cache

    name = model if revision is None else f"{model}@{revision}"
    index = try_to_load_from_cache(model, "model_index.json", revision=revision)
    if not isinstance(index, str):
        raise FileNotFoundError(
            f"{name}: not a local folder, not in the hub's cache, and it cannot be fetched ({reason})")
    folder = Path(index).parent
    there = needed_files(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    parts = read_json(folder / "model_index.json")
    for part in _WEIGHTS:
        if part != "unet" and not parts.get(part):
            continue
        place = part_folder(folder, part)
        weights = [file for file in there if (folder / file).parent == place and file.endswith(".safetensors")]
        if place in (folder, folder / part) and not weights:
            raise FileNotFoundError(
                f"{name}: its copy in the hub's cache has no weights for {part}, and they cannot be fetched ({reason})")
    return folder


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300]}" if str(error).strip() else type(
        error).__name__
