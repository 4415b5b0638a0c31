"""Models from the hub: huggingface_hub against a server on this machine that does as much of the hub as it asks for."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest

import dreamda
from dreamda.networks.hub import BUNDLED, find_model, needed_files, part_folder

MODEL = BUNDLED / "fashion-mini"
UNET = "unet/diffusion_pytorch_model.safetensors"
COMMITS = {"main": "0" * 40, "v1": "1" * 40}
PROGRAM = "import sys, dreamda; print(dreamda.Pipeline.load(sys.argv[1], 'f32', threads=1).fingerprint)"
needs_hub = pytest.mark.skipif(not find_spec("huggingface_hub"), reason="the hub extra is not installed")


def test_a_hub_id_needs_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match=r"pip install 'dreamda-c\[hub\]'"):
        find_model("owner/name")


COMMON = [
    "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json", "text_encoder/model.safetensors",
    "tokenizer/merges.txt", "tokenizer/vocab.json", "unet/config.json", "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors"
]
SHARDS = [
    "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
    "unet/diffusion_pytorch_model-00002-of-00002.safetensors", "unet/diffusion_pytorch_model.safetensors.index.json"
]
HALF_SHARDS = [
    "unet/diffusion_pytorch_model-00001-of-00002.fp16.safetensors",
    "unet/diffusion_pytorch_model-00002-of-00002.fp16.safetensors",
    "unet/diffusion_pytorch_model.safetensors.index.fp16.json"
]
NEWER_HALF_SHARDS = [
    "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
    "unet/diffusion_pytorch_model.fp16-00002-of-00002.safetensors",
    "unet/diffusion_pytorch_model.safetensors.index.fp16.json"
]
HALF = ["unet/diffusion_pytorch_model.fp16.safetensors"]
OTHERS = [
    "README.md", "model.ckpt", "v1-5-pruned.safetensors", "safety_checker/model.safetensors",
    "safety_checker/config.json", "tokenizer/x/vocab.json", "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.non_ema.safetensors", "unet/model.onnx", "text_encoder/pytorch_model.bin",
    "vae/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16.safetensors", "unet/flax_model.msgpack",
    "feature_extractor/config.json"
]


@pytest.mark.parametrize("there, chosen", [([UNET], [UNET]), ([UNET, *HALF], [UNET]), ([UNET, *SHARDS], [UNET]),
                                           (SHARDS, SHARDS), (SHARDS + HALF, SHARDS), (HALF, HALF),
                                           (HALF_SHARDS, HALF_SHARDS), (NEWER_HALF_SHARDS, NEWER_HALF_SHARDS),
                                           (HALF + HALF_SHARDS, HALF), (SHARDS + HALF_SHARDS, SHARDS), ([], [])])
def test_only_needed_files_are_chosen(there, chosen):
    assert sorted(needed_files(COMMON + OTHERS + there)) == sorted(COMMON + chosen)


@pytest.mark.parametrize("place", ["", "unet/"])
def test_the_files_of_a_model_in_pixel_space(place):
    """Old models of the hub have all files at their root."""
    scheduler = "scheduler/scheduler_config.json" if place else "scheduler_config.json"
    wanted = ["model_index.json", scheduler, f"{place}config.json", f"{place}diffusion_pytorch_model.safetensors"]
    others = ["README.md", "diffusion_pytorch_model.bin", "images/generated_image_0.png", "run.py"]
    assert sorted(needed_files(wanted + others)) == sorted(wanted)


PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


@pytest.mark.parametrize("own", [("unet", "scheduler"), ("unet", "vae", "tokenizer"), ()])
def test_a_model_may_share_the_parts_of_a_bundled_one(tmp_path, own):
    """Such a folder is the model that the whole folder is."""
    for part in own:
        shutil.copytree(MODEL / part, tmp_path / part)
    shutil.copy(MODEL / "model_index.json", tmp_path)
    (tmp_path / "dreamda.json").write_text('{"parts_from": "fashion-mini"}')
    assert [part_folder(tmp_path, part).parent for part in PARTS
            ] == [tmp_path if part in own else MODEL for part in PARTS]
    pipe, whole = (dreamda.Pipeline.load(model, "f32", threads=1) for model in (tmp_path, "fashion-mini"))
    assert pipe.fingerprint == whole.fingerprint
    seed = dreamda.load_bundled().seeds[:1]
    assert (pipe.augment(seed, "a coat", steps=2, variants=1) == whole.augment(seed, "a coat", steps=2,
                                                                               variants=1)).all()


@pytest.mark.parametrize("name", ["", ".", "..", "../bundled/fashion-mini", "fashion-mini/", "fashion-mini/../x",
                                  str(MODEL), "owner/name", 1, True, ["fashion-mini"], {"fashion-mini": 1},
                                   "x" * 10**5])
def test_only_a_bundled_model_shares_its_parts(tmp_path, name):
    shutil.copy(MODEL / "model_index.json", tmp_path)
    about = tmp_path / "dreamda.json"
    about.write_text(json.dumps({"parts_from": name}))
    with pytest.raises(ValueError) as caught:
        dreamda.Pipeline.load(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{about}: 'parts_from' must be a bundled model (fashion-mini") and len(message) < 1000


class Hub(BaseHTTPRequestHandler):
    """One repository, "owner/mini", with two revisions."""

    files: dict[str, dict[str, bytes]] = {}  # commit -> name -> content
    asked: list[tuple[str, str]] = []  # names of files, and the range of bytes asked for
    cut: set[str] = set()  # files whose first download breaks off in the middle
    denied: tuple[int, str] | None = None  # status and code of the hub for every question

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = self.path.split("?")[0]
        if self.denied:
            status, code = self.denied
            return self.reply(b"", status, **{"X-Error-Code": code, "X-Error-Message": code})
        if not path.startswith(("/api/models/owner/mini", "/owner/mini/")):
            return self.reply(b"", 404, **{"X-Error-Code": "RepoNotFound"})
        parts = path.split("/")
        if path.startswith("/api/models/"):
            revision = parts[6] if len(parts) > 6 else "main"
            commit = COMMITS.get(revision, revision)
            if commit not in self.files:
                return self.reply(b"", 404, **{"X-Error-Code": "RevisionNotFound"})
            files = self.files[commit]
            if len(parts) > 5 and parts[5] == "tree":
                return self.reply(
                    json.dumps([{"type": "file", "path": n, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                                for n, c in files.items()]).encode())
            return self.reply(
                json.dumps({"id": "owner/mini", "sha": commit, "siblings": [{"rfilename": n} for n in files]}).encode())
        commit, name = parts[4], "/".join(parts[5:])
        content = self.files.get(COMMITS.get(commit, commit), {}).get(name)
        if content is None:
            return self.reply(b"", 404, **{"X-Error-Code": "EntryNotFound"})
        span = self.headers.get("Range", "")
        if self.command == "GET":
            self.asked.append((name, span))
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if span:
            begin = int(span.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
            return self.reply(content[begin:], 206, **headers)
        if self.command == "GET" and name in self.cut:
            self.cut.discard(name)
            self.reply(content, sent=len(content) // 2, **headers)
            self.close_connection = True
            return None
        return self.reply(content, **headers)

    do_HEAD = do_GET

    def reply(self, content, code=200, sent=None, **headers):
        self.send_response(code)
        for key, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:sent])

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    """The server's class, and a function that loads a model in a process of its own."""
    files = {str(f.relative_to(MODEL)): f.read_bytes() for f in MODEL.rglob("*") if f.is_file()}
    handler = type("Handler", (Hub,), {"files": {COMMITS["main"]: files}, "asked": [], "cut": set()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    environment |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(Path(dreamda.__file__).parents[1])
    }

    def load(model="owner/mini", **more):
        return subprocess.run([sys.executable, "-c", PROGRAM, model],
                              env=environment | more,
                              capture_output=True,
                              text=True,
                              timeout=120)

    yield handler, load
    server.shutdown()
    server.server_close()


def fetched(handler):
    return {name for name, _ in handler.asked}


@needs_hub
@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_models_from_the_hub(hub, variant):
    """One variant and no pickle is fetched; the second time, and offline, nothing is."""
    handler, load = hub
    files = handler.files[COMMITS["main"]]
    files[UNET.replace(".safe", f"{variant}.safe")] = files.pop(UNET)
    wanted = set(files)
    files |= {
        "model.ckpt": b"", "unet/diffusion_pytorch_model.bin": b"", "unet/diffusion_pytorch_model.non_ema.safetensors":
        b"", "vae/diffusion_pytorch_model.fp16.safetensors": b"", "v1-5-pruned.safetensors": b"",
        "safety_checker/model.safetensors": b""
    }
    first = load()
    assert first.returncode == 0, first.stderr
    assert fetched(handler) == wanted
    handler.asked.clear()
    for again in (load(), load(HF_HUB_OFFLINE="1"), load(HF_ENDPOINT="http://127.0.0.1:9")):
        assert again.returncode == 0, again.stderr
        assert again.stdout == first.stdout and not handler.asked


@needs_hub
def test_revisions(hub):
    handler, load = hub
    old = handler.files[COMMITS["main"]]
    handler.files[COMMITS["v1"]] = old | {
        "scheduler/scheduler_config.json": old["scheduler/scheduler_config.json"].replace(b"0.012", b"0.013")
    }
    main, named, commit = load(), load("owner/mini@v1"), load(f"owner/mini@{COMMITS['v1']}")
    assert main.returncode == named.returncode == 0, named.stderr
    assert named.stdout == commit.stdout != main.stdout
    absent = load("owner/mini@v2")
    assert "FileNotFoundError: owner/mini@v2: not a local folder, and the model has no revision 'v2'" in absent.stderr


@needs_hub
@pytest.mark.parametrize("denied, says", [
    ((404, "RepoNotFound"), "the hub has no such model, or it is private; check the name, or log in"),
    ((401, "RepoNotFound"), "the hub has no such model, or it is private; check the name, or log in"),
    ((403, "GatedRepo"), "it is gated; accept its conditions at http://127.0.0.1"),
    ((401, "GatedRepo"), "it is gated; accept its conditions at http://127.0.0.1"),
    ((403, "Forbidden"), "access is denied; log in with an account that may read it"),
])
def test_models_that_the_hub_does_not_give(hub, denied, says):
    handler, load = hub
    handler.denied = denied
    done = load()
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert message.startswith("FileNotFoundError: owner/mini: not a local folder, and ") and says in message


@needs_hub
def test_a_download_that_breaks_off_is_resumed(hub, tmp_path):
    """By a range of bytes, and the file is whole in the end."""
    handler, load = hub
    large, size = "tokenizer/large.txt", 25 << 20  # huggingface_hub writes pieces of 10 MiB
    handler.files[COMMITS["main"]][large] = os.urandom(size)
    handler.cut.add(large)
    done = load()
    assert done.returncode == 0, done.stderr
    spans = [span for name, span in handler.asked if name == large]
    assert spans[0] == "" and spans[1] == f"bytes={10 << 20}-"
    whole = next(tmp_path.glob(f"hub/models--owner--mini/snapshots/*/{large}")).read_bytes()
    assert whole == handler.files[COMMITS["main"]][large]


@needs_hub
def test_offline_without_a_whole_copy(hub, tmp_path):
    handler, load = hub
    nothing = load(HF_HUB_OFFLINE="1")
    assert ("FileNotFoundError: owner/mini: not a local folder, not in the hub's cache, and it cannot be fetched "
            "(HF_HUB_OFFLINE is set)") in nothing.stderr
    assert load().returncode == 0
    next(tmp_path.glob(f"hub/models--owner--mini/snapshots/*/{UNET}")).unlink()
    part = load(HF_HUB_OFFLINE="1")
    assert ("its copy in the hub's cache has no weights for unet, and they cannot be fetched (HF_HUB_OFFLINE is set)"
            ) in part.stderr
    assert load().returncode == 0


@needs_hub
def test_a_model_from_the_hub_may_share_bundled_parts(hub):
    handler, load = hub
    files = handler.files[COMMITS["main"]]
    for name in [name for name in files if name.startswith(("vae/", "text_encoder/", "tokenizer/"))]:
        del files[name]
    files["dreamda.json"] = b'{"parts_from": "fashion-mini"}'
    for done in (load(), load(HF_HUB_OFFLINE="1")):
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == dreamda.Pipeline.load("fashion-mini", "f32", threads=1).fingerprint
