"""Many machines: `Augmenter` as Ray Data, Dask and Spark use it, and `dreamda generate --engine ray` with a worker
killed in mid-run."""
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from networks import write_lcm, write_tiny_vae
from test_generate import tree
from test_labels import write_coco, write_images

import dreamda
from dreamda import distributed
from dreamda.runs import generate
from dreamda.data import ImageFolder, choose_prompts, coco, load_bundled
from dreamda.data.annotations import Composition
from dreamda.distributed import Augmenter, RayWorkers
from dreamda.runs.generate import EngineError, GenerationOptions, generate_dataset
from dreamda.runs.safeguards import Safeguards

FAST = {"variants": 2, "steps": 4, "seed": 3}


@pytest.fixture(scope="module")
def batch():
    bundled = load_bundled()
    images = bundled.seeds[::20].copy()
    images.flags.writeable = False
    return {
        "image": images, "prompt": np.array(["a photo of a coat"] * len(images), object), "label":
        np.arange(len(images)), "key": np.array([f"coat/{i}.png" for i in range(len(images))], object)
    }


@pytest.fixture(scope="module")
def expected(batch):
    pipe = dreamda.Pipeline.load("fashion-mini")
    return pipe.augment(batch["image"], list(batch["prompt"]), keys=list(batch["key"]), **FAST)


@pytest.fixture(scope="module")
def ray():
    """A cluster of two CPUs in a process of its own, so that what the engine starts and ends is what a user's does."""
    ray = pytest.importorskip("ray", reason="Ray is not installed (extra: ray)")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


# ---- the callable


def test_one_row_an_image(batch, expected):
    augmenter = Augmenter("fashion-mini", **FAST)
    out = augmenter(batch)
    n, k = expected.shape[:2]
    assert np.array_equal(out["image"], expected.reshape(n * k, *expected.shape[2:]))
    assert out["variant"].tolist() == [0, 1] * n
    assert out["label"].tolist() == np.repeat(batch["label"], k).tolist() and out["key"].tolist() == np.repeat(
        batch["key"], k).tolist()
    assert "variant" not in batch and len(batch["image"]) == n  # what was given is as it was


def test_as_many_rows_as_given(batch, expected):
    out = Augmenter("fashion-mini", explode=False, **FAST)(batch)
    assert np.array_equal(out["image"], expected) and out["label"] is batch["label"]


def test_any_batch_any_process_the_same_images(batch, expected):
    augmenter = pickle.loads(pickle.dumps(Augmenter("fashion-mini", explode=False, **FAST)))
    for rows in ([4, 1], [0]):
        out = augmenter({name: column[rows] for name, column in batch.items()})
        assert np.array_equal(out["image"], expected[rows])


def test_pickled_without_the_model(batch):
    augmenter = Augmenter("fashion-mini", **FAST)
    augmenter(batch)
    assert len(pickle.dumps(augmenter)) < 2000


def test_images_of_their_own_sizes(batch):
    rng = np.random.default_rng(0)
    column = np.empty(2, object)
    column[:] = [rng.integers(0, 256, (40, 30, 3), np.uint8), rng.integers(0, 256, (32, 32, 3), np.uint8)]
    rows = {"image": column, "prompt": ["a photo of a coat"] * 2, "key": [7, 8]}
    out = Augmenter("fashion-mini", explode=False, **FAST)(rows)["image"]
    pipe = dreamda.Pipeline.load("fashion-mini")
    for i, key in enumerate((7, 8)):
        assert np.array_equal(out[i], pipe.augment(column[i][None], ["a photo of a coat"], keys=[key], **FAST)[0])


def test_a_prompt_for_each_variant(batch):
    column = np.empty(len(batch["image"]), object)
    column[:] = [["a photo of a coat", "a (photo:1.2) of a bag"]] * len(column)
    column[0] = "a photo of a coat"
    out = Augmenter("fashion-mini", **FAST)(batch | {"prompt": column})
    assert list(out["prompt"][:4]) == ["a photo of a coat"] * 3 + ["a (photo:1.2) of a bag"]
    made = dreamda.Pipeline.load("fashion-mini").augment(batch["image"], list(column), keys=list(batch["key"]), **FAST)
    assert np.array_equal(out["image"], made.reshape(out["image"].shape)) and len(out["prompt"]) == len(out["image"])


def test_an_empty_batch(batch):
    out = Augmenter("fashion-mini", **FAST)({name: column[:0] for name, column in batch.items()})
    assert out["image"].shape == (0, 32, 32, 3) and len(out["variant"]) == 0


@pytest.mark.parametrize(
    "change, sentence",
    [(lambda b: b.pop("key"),
      "the batch has no column 'key' .it has image, label, prompt.; name the right one with key="),
     (lambda b: b.update(image=np.array([np.zeros(
         (4, 4), np.uint8), None], object)), r"images: expected uint8 \(H, W, 3\), and number 0 is uint8"),
     (lambda b: b.update(image=b["image"].astype(np.float32)), "images: expected uint8"),
     (lambda b: b.update(prompt=b["prompt"][:1]), "prompts: "),
     (lambda b: b.update(key=np.array([1.5] * len(b["key"]))), "keys: 1.5 is not possible"), ])
def test_a_wrong_batch(batch, change, sentence):
    wrong = dict(batch)
    change(wrong)
    with pytest.raises(ValueError, match=sentence):
        Augmenter("fashion-mini", **FAST)(wrong)


def test_wrong_arguments_are_found_at_once(tmp_path):
    with pytest.raises(
            TypeError,
            match=r"Augmenter\(\) got an unexpected keyword argument 'variant'; the options are variants, steps"):
        Augmenter("fashion-mini", variant=3)
    with pytest.raises(ValueError, match="^steps: 0 is not possible"):
        Augmenter("fashion-mini", steps=0)
    with pytest.raises((ValueError, FileNotFoundError), match="nothing-here"):
        Augmenter(str(tmp_path / "nothing-here"))


# ---- other people's engines


def test_dask(batch, expected):
    dask = pytest.importorskip("dask", reason="Dask is not installed")
    augmenter = Augmenter("fashion-mini", threads=1, **FAST)
    parts = [{name: column[i : i + 2] for name, column in batch.items()} for i in range(0, len(batch["key"]), 2)]
    made = dask.compute(*[dask.delayed(augmenter)(part) for part in parts], scheduler="processes", num_workers=2)
    assert np.array_equal(np.concatenate([part["image"] for part in made]), expected.reshape(-1, *expected.shape[2:]))


def test_ray_data(ray, batch, expected):
    data = pytest.importorskip("ray.data", reason="Ray Data is not installed (extra: ray)")
    rows = data.from_items([{name: column[i] for name, column in batch.items()} for i in range(len(batch["key"]))])
    made = rows.map_batches(Augmenter,
                            fn_constructor_args=["fashion-mini"],
                            fn_constructor_kwargs=FAST,
                            batch_size=2,
                            num_cpus=0.5,
                            compute=data.ActorPoolStrategy(size=2)).take_all()
    made.sort(key=lambda row: (row["label"], row["variant"]))
    assert np.array_equal(np.stack([row["image"] for row in made]), expected.reshape(-1, *expected.shape[2:]))


def test_spark(batch, expected):
    pytest.importorskip("pyspark", reason="Spark is not installed")
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql import SparkSession
    from pyspark.sql.types import ArrayType, ShortType

    parameters = dict(FAST)

    def make_predict():
        augmenter = Augmenter("fashion-mini", threads=1, explode=False, **parameters)

        def predict(image, prompt, key):
            made = augmenter({"image": image.astype(np.uint8), "prompt": prompt, "key": key})["image"]
            return made.reshape(len(made), -1).astype(np.int16)

        return predict

    os.environ["PYSPARK_PYTHON"] = sys.executable
    spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", False).getOrCreate()
    try:
        frame = spark.createDataFrame([(i, batch["image"][i].ravel().tolist(), batch["prompt"][i], batch["key"][i])
                                       for i in range(len(batch["key"]))],
                                      "row int, image array<int>, prompt string, key string")
        udf = predict_batch_udf(make_predict,
                                return_type=ArrayType(ShortType()),
                                batch_size=2,
                                input_tensor_shapes=[[32, 32, 3], None, None])
        made = frame.withColumn("made", udf("image", "prompt", "key")).select("row", "made").collect()
    finally:
        spark.stop()
    made = np.stack([row["made"] for row in sorted(made, key=lambda row: row["row"])])
    assert np.array_equal(made.reshape(expected.shape), expected)


# ---- the engine of `dreamda generate`


SLOW = {"variants": 4, "steps": 20, "seed": 3}


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Ten seeds."""
    bundled = load_bundled()
    root = tmp_path_factory.mktemp("real")
    bundled.write(bundled.folder(root))
    for path in root.glob("*/*.png"):
        if not path.stem.endswith("0"):
            path.unlink()
    assert len(ImageFolder.scan(root).images) == 10
    return root


@pytest.fixture(scope="module")
def alone(real, tmp_path_factory):
    """What one process makes."""
    out = tmp_path_factory.mktemp("alone") / "out"
    generate_dataset(ImageFolder.scan(real),
                     out,
                     dreamda.Pipeline.load("fashion-mini", threads=1),
                     GenerationOptions(**SLOW),
                     model="fashion-mini")
    return tree(out)


def workers_at_work():
    """Processes of the engine's workers that are making images; Ray names its processes by what they do."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(b"ray::_Worker.make"):
                found.append(int(path.parent.name))
        except OSError:
            pass  # it has just ended
    return found


def same(out, alone):
    """Every image, once, to the same bytes; of run.json all that is compared."""
    there = tree(out)
    run, run_alone = (json.loads(t.pop("run.json")) for t in (there, dict(alone)))
    del run["environment"], run_alone["environment"]
    assert run == run_alone
    return there == {name: content for name, content in alone.items() if name != "run.json"}


def test_a_worker_killed_in_mid_run(ray, real, alone, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "SECONDS_A_BATCH", 0.0)  # a seed a piece
    killed = []

    def kill_one(take, settings, stop, within):
        for number, each in enumerate(workers.stream(take, settings, stop, within)):
            if number == 2:
                killed.extend(workers_at_work()[:1])
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)
            yield each

    with RayWorkers("fashion-mini", threads=1) as workers:
        assert workers.count == 2 and workers.size == (32, 32)
        report = generate_dataset(ImageFolder.scan(real),
                                  tmp_path / "out",
                                  workers,
                                  GenerationOptions(**SLOW),
                                  model="fashion-mini",
                                  engine=kill_one)
    assert len(killed) == 1
    assert (report.made, report.present, report.skipped) == (40, 0, [])
    assert same(tmp_path / "out", alone)


def test_few_steps_another_vae_and_prompts_of_variants(ray, real, tmp_path):
    """Workers load the model and the VAE that the run names, and their images are those of one process."""
    lcm, tiny = write_lcm(tmp_path / "lcm"), write_tiny_vae(tmp_path / "tiny")
    settings = GenerationOptions(variants=2, steps=2, guidance_scale=2, source_guidance_scale=2, text_share=0.5)
    pipe = dreamda.Pipeline.load(lcm, threads=1, vae=tiny)
    changes = {"vae": str(tiny)}
    prompts = choose_prompts(ImageFolder.scan(real), ["a {photo|picture} of a {}", "an (image:1.2) of a {}"])
    generate_dataset(ImageFolder.scan(real), tmp_path / "alone", pipe, settings, prompts=prompts, model="lcm",
                     changes=changes)
    with RayWorkers(str(lcm), threads=1, vae=str(tiny)) as workers:
        assert workers.fingerprint == pipe.fingerprint and workers.vae_folder == tiny
        generate_dataset(ImageFolder.scan(real),
                         tmp_path / "out",
                         workers,
                         settings,
                         prompts=prompts,
                         model="lcm",
                         changes=changes,
                         engine=workers.stream)
    assert same(tmp_path / "out", tree(tmp_path / "alone"))
    with pytest.raises(ValueError, match="^vae: .* is no folder of a VAE"):
        RayWorkers(str(lcm), threads=1, vae=str(tmp_path))


def test_composed_images_and_copies_that_are_made_again(ray, real, tmp_path):
    """Objects are placed, and copies made again or left out, as by one process."""
    labels = coco(write_coco(tmp_path), write_images(tmp_path / "photos"))
    composed = labels.folder("objects", Composition(compose=2))
    settings = GenerationOptions(variants=2, steps=2, seed=3, method="sdedit", strength=1)
    cases = {"composed": (composed, {"prompts": labels.prompts(), "prompt_source": {"template": "a photo of {}"}}),
             "guarded": (ImageFolder.scan(real), {"safeguards": Safeguards(max_similarity=0.95, redraw=1)})}
    pipe = dreamda.Pipeline.load("fashion-mini", threads=1)
    with RayWorkers("fashion-mini", threads=1) as workers:
        for name, (folder, more) in cases.items():
            one, many = tmp_path / name, tmp_path / f"{name}-by-workers"
            alone = generate_dataset(folder, one, pipe, settings, **more)
            report = generate_dataset(folder, many, workers, settings, engine=workers.stream, **more)
            assert same(many, tree(one)) and (report.made, report.left_out) == (alone.made, alone.left_out)
    rows = [json.loads(line) for line in (tmp_path / "composed/metadata.jsonl").open()]
    assert len(rows) == 8 and any(row.get("objects_from") for row in rows)
    rows = [json.loads(line) for line in (tmp_path / "guarded/metadata.jsonl").open()]
    assert alone.left_out and any(row["redraws"] for row in rows)


def test_more_threads_than_any_node_has(ray):
    with pytest.raises(ValueError,
                       match="--threads 3: no node of the Ray cluster has so many CPUs, the largest has 2; give fewer"):
        RayWorkers("fashion-mini", threads=3)


def test_a_taken_cluster_is_no_silent_hang(ray, monkeypatch):
    monkeypatch.setattr(distributed, "START_SECONDS", 2.0)

    @ray.remote(num_cpus=2)
    class Other:
        def here(self):
            return True

    other = Other.remote()
    assert ray.get(other.here.remote())
    with pytest.raises(
            EngineError,
            match=r"no worker of 2 CPUs has started within 2 s \(0 CPUs are free\); wait until others have finished"):
        RayWorkers("fashion-mini")
    ray.kill(other)


def test_an_error_of_loading_is_the_workers_own_sentence(ray, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match="nothing-here"):
        RayWorkers(str(tmp_path / "nothing-here"), threads=1)


# ---- as a user types it


# A seed a piece: on a fast machine the second piece would hold all the others, and an interrupted run would end
# complete.
START = "import dreamda.runs.generate as g, sys; g.SECONDS_A_BATCH = 0; from dreamda.cli import main; sys.exit(main())"


def command(*arguments):
    """`dreamda` in a process of its own: a Ray cluster belongs to a process."""
    return subprocess.Popen([sys.executable, "-c", START, *map(str, arguments)],
                            stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE,
                            text=True)


OPTIONS = ["--model", "fashion-mini", "--engine", "ray", "--variants", 4, "--steps", 20, "--seed", 3]


def warned(err: str) -> list[str]:
    """The lines of stderr but for the progress, which a slow machine reports."""
    return [line for line in err.splitlines() if not line.endswith(" left") and " images to make: " not in line]


def test_command_line_interrupted_and_resumed(ray, real, alone, tmp_path):
    out = tmp_path / "out"
    address = ["--address", ray.get_runtime_context().gcs_address, "--threads", 1]
    run = command("generate", real, "--out", out, *OPTIONS, *address)
    until = time.monotonic() + 120
    while not list(out.glob("*/*.png")) and run.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=120)
    assert run.returncode == 130 and "stopped by SIGINT" in err and "run the same command again to resume" in err, err
    assert 0 < len(list(out.glob("*/*.png"))) < 40
    again = command("generate", real, "--out", out, *OPTIONS, *address)
    text, err = again.communicate(timeout=240)
    assert again.returncode == 0 and "were there already" in text and warned(err) == [], err
    assert same(out, alone)


def test_command_line_with_a_cluster_of_its_own(ray, real, alone, tmp_path):
    run = command("generate", real, "--out", tmp_path / "out", *OPTIONS)
    text, err = run.communicate(timeout=240)
    assert run.returncode == 0 and "40 images made" in text and warned(err) == [], err
    assert same(tmp_path / "out", alone)


@pytest.mark.parametrize("options, sentence", [
    (["--engine", "ray", "--address", "127.0.0.1:9"], "--address 127.0.0.1:9: there is no Ray cluster to be reached"),
    (["--engine", "spark"], "--engine must be local or ray; it is 'spark'"),
    (["--address", "auto"], "--address is for --engine ray; add that"),
])
def test_wrong_use(real, tmp_path, options, sentence):
    if "ray" in options:
        pytest.importorskip("ray", reason="Ray is not installed (extra: ray)")
    run = command("generate", real, "--out", tmp_path / "out", "--model", "fashion-mini", *options)
    _, err = run.communicate(timeout=240)
    assert run.returncode == 2 and sentence in err and err.count("\n") == 1, err
    assert not (tmp_path / "out").exists()


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'--engine ray needs Ray: pip install "dreamda-c\[ray\]"'):
        RayWorkers("fashion-mini")
