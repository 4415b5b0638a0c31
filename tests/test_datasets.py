"""`dreamda import`: small archives in exactly the official formats, partial, damaged and hostile ones, and what
generate and train make of them."""
import gzip
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from standin import FoldedStandIn, StandIn
from test_cli import fake, run  # noqa: F401  (fake is a fixture)
from test_generate import lines, tree

from dreamda.data import importers as datasets

from dreamda.runs import train as train_run

from dreamda.training import saved, setup
from dreamda.data import ImageFolder, own_prompt_files, prompts_from_file, prompts_from_template
from dreamda.generation.recipes import load_recipe, names

REAL_CALTECH = Path(os.environ.get("DREAMDA_SHARED", Path(__file__).parents[2] / "shared")) / "data/caltech101-subset"
RNG = np.random.default_rng(0)


def picture(kind: str = "JPEG", size: tuple[int, int] = (12, 9)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def prompts(folder: Path) -> dict[str, str]:
    scanned = ImageFolder.scan(folder)
    # classes.json names the folders
    assert prompts_from_template(scanned).keys() == {image.key for image in scanned.images}
    return prompts_from_file(scanned, *own_prompt_files(scanned))  # as dreamda generate does: each image has its line


# ---- the seven formats

def caltech() -> dict[str, bytes]:
    files = {
        f"101_ObjectCategories/{c}/image_{i:04d}.jpg": picture()
        for c in ("airplanes", "yin_yang")
        for i in range(1, 33)
    }
    return files | {
        "101_ObjectCategories/BACKGROUND_Google/image_0001.jpg": picture(),
        "101_ObjectCategories/BACKGROUND_Google/tmp": b"", "101_ObjectCategories/airplanes/.DS_Store": b"x"
    }


def test_caltech_in_every_packing(tmp_path, capsys):
    files = caltech()
    inner = tar(tmp_path / "101_ObjectCategories.tar.gz", files)
    official = zipped(
        tmp_path / "caltech-101.zip", {
            "caltech-101/101_ObjectCategories.tar.gz": inner.read_bytes(), "caltech-101/show_annotation.m": b"",
            "__MACOSX/caltech-101/._101_ObjectCategories.tar.gz": b"x"
        })
    folder = write(tmp_path / "folder", files)
    holds = zipped(tmp_path / "holds/caltech-101.zip",
                   {"caltech-101/101_ObjectCategories.tar.gz": inner.read_bytes()}).parent
    trees = []
    for number, source in enumerate((folder, folder / "101_ObjectCategories", inner, official, holds)):
        assert run("import", "caltech101", source, "--out", tmp_path / f"out{number}") == 1  # 2 of 101 classes
        trees.append(tree(tmp_path / f"out{number}"))
    assert all(t == trees[0] for t in trees)
    captured = capsys.readouterr()
    for words in ("train has 60 of the 3,030 images", "2 of the 101 classes", "BACKGROUND_Google (1 image)"):
        assert words in captured.err
    out = tmp_path / "out0"
    assert len(list((out / "train/airplanes").iterdir())) == 30 and len(list((out / "test/airplanes").iterdir())) == 2
    assert {*prompts(out / "train").values()} == {"a photo of an airplane", "a photo of a yin yang symbol"}
    for split in ("train", "test"):
        for path in (out / split).rglob("*.jpg"):
            assert path.read_bytes() == files[f"101_ObjectCategories/{path.parent.name}/{path.name}"]


@pytest.mark.skipif(not REAL_CALTECH.is_dir(),
                    reason="the Caltech-101 photographs are not on this machine (../shared/data)")
def test_real_caltech_photographs(tmp_path):
    report = datasets.import_dataset("caltech101", REAL_CALTECH, tmp_path / "out")
    assert report.counts == {"train": 600, "test": 600
                             } and report.classes == 20 and not report.skipped and not report.complete
    assert "a photo of a soccer ball" in prompts(tmp_path / "out/train").values()


def cars(folder: Path, *, devkit="devkit") -> dict[str, bytes]:
    savemat = pytest.importorskip("scipy.io", reason="SciPy writes and reads MATLAB files").savemat

    def mat(**variables) -> bytes:
        buffer = io.BytesIO()
        savemat(buffer, variables)
        return buffer.getvalue()

    def annotations(numbers, labelled=True):
        fields = [
            *((f"bbox_{c}", object) for c in ("x1", "y1", "x2", "y2")), *([("class", object)] if labelled else []),
            ("fname", object)
        ]
        rows = [(39, 116, 569, 375, *([c] if labelled else []), f"{i:05d}.jpg") for i, c in enumerate(numbers, 1)]
        return mat(annotations=np.array([rows], dtype=fields) if len(rows) > 1 else np.array([rows], dtype=fields))

    names = np.empty((1, 3), object)
    names[0] = ["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012", "Acura RL Sedan 2012"]
    return {
        f"{devkit}/cars_meta.mat": mat(class_names=names), f"{devkit}/cars_train_annos.mat": annotations([1, 2, 3, 2]),
        f"{devkit}/cars_test_annos.mat": annotations([1, 2], labelled=False), "cars_test_annos_withlabels.mat":
        annotations([2, 1]), **{f"cars_train/{i:05d}.jpg": picture()
                                for i in range(1, 5)}, **{f"cars_test/{i:05d}.jpg": picture()
                                                          for i in range(1, 3)}
    }


def test_stanford_cars(tmp_path, capsys):
    files = cars(tmp_path)
    assert run("import", "stanford-cars", write(tmp_path / "cars", files), "--out", tmp_path / "out") == 1
    assert sorted(p.name for p in (tmp_path / "out/train").iterdir() if p.is_dir()) == [
        "AM_General_Hummer_SUV_2000", "Acura_RL_Sedan_2012", "Ram_C-V_Cargo_Van_Minivan_2012"]
    texts = prompts(tmp_path / "out/train")
    assert texts["Ram_C-V_Cargo_Van_Minivan_2012/00002.jpg"] == "a photo of a Ram C/V Cargo Van Minivan 2012"
    assert texts["AM_General_Hummer_SUV_2000/00001.jpg"] == "a photo of an AM General Hummer SUV 2000"
    for i, c in ((1, "Ram_C-V_Cargo_Van_Minivan_2012"), (2, "AM_General_Hummer_SUV_2000")):
        assert (tmp_path / f"out/test/{c}/{i:05d}.jpg").read_bytes() == files[f"cars_test/{i:05d}.jpg"]

    packed = tmp_path / "packed"
    for archive, prefix in (("cars_train.tgz", "cars_train/"), ("cars_test.tgz", "cars_test/"), ("car_devkit.tgz",
                                                                                                 "devkit/")):
        tar(packed / archive, {name: content for name, content in files.items() if name.startswith(prefix)})
    write(packed, {"cars_test_annos_withlabels.mat": files["cars_test_annos_withlabels.mat"]})
    assert run("import", "stanford-cars", packed, "--out", tmp_path / "again") == 1
    assert tree(tmp_path / "again") == tree(tmp_path / "out")

    (tmp_path / "cars/cars_test_annos_withlabels.mat").unlink()
    (tmp_path / "cars/cars_train/00003.jpg").unlink()
    capsys.readouterr()
    assert run("import", "stanford-cars", tmp_path / "cars", "--out", tmp_path / "partial") == 1
    err = capsys.readouterr().err
    assert "skipped cars_train/00003.jpg: named by cars_train_annos.mat, but not there" in err
    assert "cars_test_annos_withlabels.mat is missing" in err
    (tmp_path / "cars/devkit/cars_meta.mat").write_bytes(b"no matlab file")
    assert run("import", "stanford-cars", tmp_path / "cars", "--out", tmp_path / "no") == 2
    assert "cars_meta.mat is no MATLAB file" in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_without_scipy_one_sentence_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "scipy.io", None)
    write(tmp_path / "cars", {"cars_train/00001.jpg": picture()})
    assert run("import", "stanford-cars", tmp_path / "cars", "--out", tmp_path / "out") == 2
    assert 'pip install "dreamda-c[datasets]"' in capsys.readouterr().err


def pets() -> dict[str, bytes]:
    gif = io.BytesIO()
    Image.fromarray(np.full((8, 8), 200, np.uint8)).save(gif, "GIF")
    return {
        "images/Abyssinian_100.jpg": picture(), "images/Abyssinian_5.jpg": gif.getvalue(),
        "images/american_bulldog_2.jpg": picture("PNG"), "images/beagle_7.jpg": b"\xff\xd8broken",
        "images/Abyssinian_100.mat": b"MATLAB", "annotations/._trainval.txt": b"\0\1", "annotations/trainval.txt":
        b"Abyssinian_100 1 1 1\nAbyssinian_5 1 1 1\nbeagle_7 5 2 4\nbeagle_8 5 2 4\n", "annotations/test.txt":
        b"american_bulldog_2 2 2 1\n", "annotations/list.txt": b"#Image CLASS-ID SPECIES BREED ID\n"
    }


def test_oxford_pets(tmp_path, capsys):
    files = pets()
    assert run("import", "oxford-pets", write(tmp_path / "pets", files), "--out", tmp_path / "out") == 1
    err = capsys.readouterr().err
    assert "skipped beagle/beagle_7.jpg: cannot be decoded" in err or "skipped beagle/beagle_7.jpg: not an image" in err
    assert "skipped images/beagle_8.jpg: named by annotations/trainval.txt, but not there" in err
    assert "GIFs under another name, written as PNG: 1" in err
    assert prompts(tmp_path / "out/train") == {
        f"Abyssinian/{n}": "a photo of an Abyssinian, a breed of cat"
        for n in ("Abyssinian_100.jpg", "Abyssinian_5.png")
    }
    assert prompts(tmp_path / "out/test") == {
        "american_bulldog/american_bulldog_2.jpg": "a photo of an american bulldog, a breed of dog"
    }
    assert np.asarray(Image.open(tmp_path / "out/train/Abyssinian/Abyssinian_5.png")).mean() == 200
    for archive in ("images", "annotations"):
        tar(tmp_path / f"packed/{archive}.tar.gz",
            {name: content
             for name, content in files.items() if name.startswith(archive)})
    assert run("import", "oxford-pets", tmp_path / "packed", "--out", tmp_path / "again") == 1
    assert tree(tmp_path / "again") == tree(tmp_path / "out")
    (tmp_path / "pets/annotations/trainval.txt").write_bytes(b"Abyssinian_100 1 1 1\nAbyssinian_101,1\n")
    assert run("import", "oxford-pets", tmp_path / "pets", "--out", tmp_path / "no") == 2
    assert 'trainval.txt line 2 is not "name class species breed"' in capsys.readouterr().err


def test_shenzhen(tmp_path):
    files = {f"ChinaSet_AllFiles/CXR_png/CHNCXR_{i:04d}_{int(i > 10)}.png": picture("PNG") for i in range(1, 31)}
    files |= {
        "ChinaSet_AllFiles/ClinicalReadings/CHNCXR_0001_0.txt": b"male 45yrs\nnormal",
        "ChinaSet_AllFiles/CXR_png/Thumbs.db": b"x"
    }
    archive = zipped(tmp_path / "ChinaSet_AllFiles.zip", files)
    report = datasets.import_dataset("shenzhen-tb", archive, tmp_path / "out")
    # 7 + 14: rounded in each class, 463 of 662 as in the paper
    assert report.counts == {"train": 21, "test": 9} and "70 %" in report.split
    assert [len(list((tmp_path / "out/train" / c).iterdir())) for c in ("normal", "tuberculosis")] == [7, 14]
    assert round(326 * datasets.shenzhen_tb.TRAINING) + round(
        336 * datasets.shenzhen_tb.TRAINING) == datasets.DATASETS["shenzhen-tb"].counts["train"]
    assert {k.split("/")[0]: v
            for k, v in prompts(tmp_path / "out/train").items()} == {
                "normal": "a chest X-ray of a healthy patient, normal lungs", "tuberculosis":
                "a chest X-ray of a patient with pulmonary tuberculosis"
            }
    datasets.import_dataset("shenzhen-tb",
                            write(tmp_path / "folder", files) / "ChinaSet_AllFiles/CXR_png", tmp_path / "again")
    assert tree(tmp_path / "again") == tree(tmp_path / "out")


def stl(numbers=(6, 4, 5)) -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
    images = {
        part: RNG.integers(0, 256, (n, 96, 96, 3), np.uint8)
        for part, n in zip(("train", "test", "unlabeled"), numbers)
    }
    # Each image: all of red, then green, then blue, and each of them column by column.
    files = {f"stl10_binary/{part}_X.bin": array.transpose(0, 3, 2, 1).tobytes() for part, array in images.items()}
    files |= {
        f"stl10_binary/{part}_y.bin": bytes(1 + i % 10 for i in range(n))
        for part, n in zip(("train", "test"), numbers)
    }
    return files | {"stl10_binary/class_names.txt": b"airplane\n", "stl10_binary/fold_indices.txt": b"0 1\n"}, images


def test_stl10_and_amst_on_its_unlabelled_images(tmp_path, capsys, monkeypatch):
    files, images = stl((20, 20, 12))
    archive = tar(tmp_path / "stl10_binary.tar.gz", files)
    assert run("import", "stl10", archive, "--out", tmp_path / "out") == 1
    assert "20 train, 20 test, 12 unlabelled images of 10 classes" in capsys.readouterr().out
    for part, where in (("train", "train/bird/00011.png"), ("test", "test/truck/00009.png"),
                        ("unlabeled", "unlabelled/images/000004.png")):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / where)),
                                      images[part][int(Path(where).stem)])
    assert prompts(tmp_path / "out/train")["airplane/00000.png"] == "a photo of an airplane"
    datasets.import_dataset("stl10", write(tmp_path / "folder", files), tmp_path / "again")
    assert tree(tmp_path / "again") == tree(tmp_path / "out")

    def create(name, *, size, batch, slots, **_):
        return StandIn(batch=batch, height=size[0], width=size[1], slots=slots)

    monkeypatch.setattr(setup, "create_backbone", create)
    monkeypatch.setattr(saved, "FoldedBackbone", FoldedStandIn)
    options = [
        "--epochs", "2", "--batch-size", "4", "--steps-per-epoch", "2", "--threshold", "0", "--size", "32", "--threads",
        "1"
    ]
    job = ["train", tmp_path / "out/train", tmp_path / "out/unlabelled", "--test", tmp_path / "out/test"]
    assert run(*job, "--out", tmp_path / "run", *options) in (0, 1)
    labelling = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[3])
    assert labelling["images"] == 12 and "agree_with_seed" not in labelling
    capsys.readouterr()
    assert run(*job, "--out", tmp_path / "plain", "--method", "plain", *options) == 2
    assert "--method: plain trains on their labels, but 12 synthetic images have none" in capsys.readouterr().err
    assert run("train", tmp_path / "out/train", tmp_path / "out/unlabelled", "--test", tmp_path / "out/unlabelled",
               "--out", tmp_path / "no", *options) == 2
    assert 'must have the texts "file_name" and "label"' in capsys.readouterr().err


@pytest.mark.parametrize("name, content, message",
                         [("train_X.bin", b"\1" * 27_649, "train_X.bin ends within an image"),
                          ("train_X.bin", b"\1" * 27_648 * 2, "has 2 images, but train_y.bin 6 labels"),
                          ("train_X.bin", b"\1" * 27_648 * 8, "has 8 images, but train_y.bin 6 labels"),
                          ("train_y.bin", bytes(6), "must hold a byte from 1 to 10"),
                          ("train_X.bin", None, "has no stl10_binary/train_X.bin"),
                          ("train_y.bin", None, "has no stl10_binary/train_y.bin")])
def test_stl10_damaged(tmp_path, capsys, name, content, message):
    files, _ = stl()
    files[f"stl10_binary/{name}"] = content
    write(tmp_path / "stl", {k: v for k, v in files.items() if v is not None})
    assert run("import", "stl10", tmp_path / "stl", "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err and os.listdir(tmp_path) == ["stl"]


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def fashion(train=20, test=10) -> tuple[dict[str, bytes], np.ndarray]:
    images = RNG.integers(0, 256, (train, 28, 28), np.uint8)
    return {
        "train-images-idx3-ubyte.gz": gzip.compress(idx(images)), "train-labels-idx1-ubyte.gz":
        gzip.compress(idx(np.arange(train, dtype=np.uint8) % 10)), "t10k-images-idx3-ubyte.gz":
        gzip.compress(idx(images[:test])), "t10k-labels-idx1-ubyte.gz":
        gzip.compress(idx(np.arange(test, dtype=np.uint8) % 10))
    }, images


def test_fashion_mnist(tmp_path, capsys):
    files, images = fashion()
    report = datasets.import_dataset("fashion-mnist", write(tmp_path / "fm", files), tmp_path / "out")
    assert report.counts == {"train": 20, "test": 10} and report.classes == 10
    found = np.asarray(Image.open(tmp_path / "out/train/ankle_boot/00019.png"))
    np.testing.assert_array_equal(found[2:-2, 2:-2], images[19])
    assert found.shape == (32, 32) and not found[:2].any() and prompts(
        tmp_path / "out/test")["t-shirt/00000.png"] == "a photo of a t-shirt"
    unpacked = {name.removesuffix(".gz"): gzip.decompress(content) for name, content in files.items()}
    datasets.import_dataset("fashion-mnist", write(tmp_path / "raw", unpacked), tmp_path / "again")
    assert tree(tmp_path / "again") == tree(tmp_path / "out")
    for name, content, message in (("train-images-idx3-ubyte.gz", files["train-images-idx3-ubyte.gz"][:-300],
                                    "download it again"), ("train-images-idx3-ubyte.gz",
                                                           gzip.compress(idx(images)[:-5]), "is no IDX file"),
                                   ("train-images-idx3-ubyte.gz", gzip.compress(idx(images[:5])),
                                    "do not belong together"), ("train-labels-idx1-ubyte.gz", b"nothing",
                                                                "download it again")):
        write(tmp_path / "bad", files | {name: content})
        assert run("import", "fashion-mnist", tmp_path / "bad", "--out", tmp_path / "no") == 2
        assert message in (err := capsys.readouterr().err) and err.count("\n") == 1 and not (tmp_path / "no").exists()
    assert run("import", "fashion-mnist", tmp_path / "fm/train-images-idx3-ubyte.gz", "--out", tmp_path / "no") == 2
    assert "give a folder that holds train-images-idx3-ubyte.gz, " in capsys.readouterr().err


def test_cifar10_binary_and_never_the_pickled_one(tmp_path, capsys):
    images = RNG.integers(0, 256, (20, 32, 32, 3), np.uint8)
    batch = b"".join(bytes([i % 10]) + image.transpose(2, 0, 1).tobytes() for i, image in enumerate(images))
    files = {f"cifar-10-batches-bin/data_batch_{i}.bin": batch
             for i in (1, 2)} | {"cifar-10-batches-bin/test_batch.bin": batch}
    archive = tar(tmp_path / "cifar-10-binary.tar.gz", files)
    assert run("import", "cifar10", archive, "--out", tmp_path / "out") == 1
    captured = capsys.readouterr()
    assert "data_batch_3.bin is missing" in captured.err and "40 train, 20 test images" in captured.out
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out/train/dog/2-00015.png")), images[15])
    assert run("import", "cifar10",
               write(tmp_path / "folder", files) / "cifar-10-batches-bin", "--out", tmp_path / "again") == 1
    assert tree(tmp_path / "again") == tree(tmp_path / "out")
    pickled = tar(tmp_path / "py/cifar-10-python.tar.gz", {"cifar-10-batches-py/data_batch_1": b"\x80\x04."})
    for source in (pickled, pickled.parent, write(tmp_path / "pp", {"cifar-10-batches-py/data_batch_1": b"\x80"})):
        capsys.readouterr()
        assert run("import", "cifar10", source, "--out", tmp_path / "no") == 2
        assert "pickles, and those are never opened here; give the binary version, cifar-10" in capsys.readouterr(
        ).err
    write(tmp_path / "folder", {"cifar-10-batches-bin/data_batch_1.bin": bytes([77]) + batch[1:]})
    assert run("import", "cifar10", tmp_path / "folder", "--out", tmp_path / "no") == 2
    assert "has the label 77" in capsys.readouterr().err


# ---- what can be wrong with any of them

def test_a_complete_one_is_0(tmp_path, monkeypatch):
    about = datasets.DATASETS["fashion-mnist"]
    monkeypatch.setitem(datasets.DATASETS, "fashion-mnist",
                        datasets.DataSet(about.title, about.archives, {"train": 20, "test": 10}, 10, about.read))
    assert run("import", "fashion-mnist", write(tmp_path / "fm", fashion()[0]), "--out", tmp_path / "out") == 0


@pytest.mark.parametrize("name", datasets.DATASETS)
def test_something_else_is_named_and_nothing_written(tmp_path, capsys, name):
    if name == "stanford-cars":
        pytest.importorskip("scipy.io", reason="Stanford Cars needs SciPy")
    write(tmp_path / "else", {"photos/dog/a.png": picture("PNG")})
    (tmp_path / "text.tar.gz").write_bytes(b"no archive")
    (tmp_path / "text.zip").write_bytes(b"PK no archive")
    before = tree(tmp_path)
    for source, message in (("else", "found: else/photos/dog/*.png (1)"), ("none", "no such file"),
                            ("text.tar.gz", "download it again"), ("text.zip", "download it again"),
                            ("else/photos/dog/a.png", "neither a zip nor a tar archive")):
        assert run("import", name, tmp_path / source, "--out", tmp_path / "deep/er/out") == 2
        captured = capsys.readouterr()
        assert message in captured.err and captured.err.startswith("dreamda: ") and captured.err.count(
            "\n") == 1 and captured.out == ""
    assert tree(tmp_path) == before and not (tmp_path / "deep").exists()


def test_the_help_names_every_data_set(capsys):
    assert run("import", "--help") == 0
    shown = "".join(capsys.readouterr().out.split())  # lines are broken at hyphens, too
    assert [name for name in datasets.DATASETS if name not in shown] == []


def test_an_unknown_name_and_a_full_out(tmp_path, capsys):
    assert run("import", "imagenet", tmp_path, "--out", tmp_path / "out") == 2
    assert "no data set called 'imagenet'; there are: caltech101, " in capsys.readouterr().err
    source = write(tmp_path / "folder", caltech())
    (tmp_path / "out").mkdir()
    assert run("import", "caltech101", source, "--out", tmp_path / "out") == 1
    before = tree(tmp_path)
    assert run("import", "caltech101", source, "--out", tmp_path / "out") == 2
    assert run("import", "caltech101", source) == run("import", "caltech101", source, "a", "--out", "b") == 2
    assert "is there already; give a new or an empty folder" in capsys.readouterr().err and tree(tmp_path) == before
    assert run("import", "caltech101", source, tmp_path / "without --out") == 1


def test_hostile_archives_write_nothing_outside(tmp_path, capsys):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    path = tmp_path / "in/101_ObjectCategories.tar"
    names_ = [
        "101_ObjectCategories/../../../image_0001.jpg", "/101_ObjectCategories/ok/image_0001.jpg",
        "101_ObjectCategories/../image_0002.jpg", "101_ObjectCategories/ok/../image_0003.jpg"
    ]
    tar(path, {name: picture() for name in names_})
    with tarfile.open(path, "a") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo(f"101_ObjectCategories/ok/image_{ord(kind):04d}.jpg")
            info.type, info.linkname = kind, str(victim)
            archive.addfile(info)
    assert run("import", "caltech101", path, "--out", tmp_path / "out") == 1
    assert sorted(p.relative_to(tmp_path).as_posix()
                  for p in tmp_path.rglob("*.jpg")) == ["out/train/ok/image_0001.jpg"]
    assert victim.read_text() == "mine"
    link = write(tmp_path / "folder", caltech()) / "101_ObjectCategories/airplanes/image_0099.jpg"
    os.mkfifo(link)
    assert run("import", "caltech101", tmp_path / "folder", "--out", tmp_path / "no") == 2
    assert "is no regular file; remove it" in capsys.readouterr().err


def test_a_torn_archive_and_one_that_is_there_twice(tmp_path, capsys):
    whole = tar(tmp_path / "101_ObjectCategories.tar.gz", caltech()).read_bytes()
    for length in (100, len(whole) // 2, len(whole) - 3000):
        (tmp_path / "101_ObjectCategories.tar.gz").write_bytes(whole[:length])
        assert run("import", "caltech101", tmp_path / "101_ObjectCategories.tar.gz", "--out", tmp_path / "out") == 2
        assert "download it again" in (
            err := capsys.readouterr().err) and err.count("\n") == 1 and not (tmp_path / "out").exists()
    files = caltech()
    write(tmp_path / "twice/a", files), write(tmp_path / "twice/b", files)
    assert run("import", "caltech101", tmp_path / "twice", "--out", tmp_path / "out") == 2
    assert "is there twice; give a folder that holds the data set once" in capsys.readouterr().err and not (
        tmp_path / "out").exists()


def test_interrupted_and_full_disk_leave_nothing(tmp_path, capsys, monkeypatch):
    source = write(tmp_path / "in", caltech())
    count = iter(range(100))

    def stop(image):
        if next(count) > 20:
            raise KeyboardInterrupt
        return b"x"

    with monkeypatch.context() as patch:
        patch.setattr(datasets, "decode_image", stop)
        assert run("import", "caltech101", source, "--out", tmp_path / "out") == 130
    assert os.listdir(tmp_path) == ["in"]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", lambda self, content:
                      (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert run("import", "caltech101", source, "--out", tmp_path / "out") == 2
    assert os.listdir(tmp_path) == [
        "in"
    ] and "out cannot be written (No space left on device), and nothing of it was kept" in capsys.readouterr().err
    (tmp_path / "file").write_text("mine")
    assert run("import", "caltech101", source, "--out", tmp_path / "file/out") == 2
    assert "file/out cannot be written (" in (err := capsys.readouterr().err) and err.count("\n") == 1


# ---- recipes

@pytest.mark.parametrize("name", ["caltech101", "stanford-cars", "oxford-pets", "shenzhen-tb"])
def test_recipes_of_the_papers_tasks(fake, tmp_path, name):  # noqa: F811
    settings, template = load_recipe(name)
    assert name in names() and template.count("{}") == 1
    assert settings["steps"] == 100 and settings["strength"] == 0.8 and settings["guidance_scale"] == 7.5 and settings[
        "noise_scale"] == 3
    write(tmp_path / "real", {"wild_cat/a.png": picture("PNG"), "owl/b.png": picture("PNG")})
    assert run("generate", tmp_path / "real", "--out", tmp_path / "out", "--model", "fake", "--recipe", name,
               "--variants", "1", "--steps", "10") == 0
    rows = lines(tmp_path / "out")
    assert [r["prompt"] for r in rows] == [
        template.replace("{}", w).replace("a photo of a owl", "a photo of an owl") for w in ("owl", "wild cat")
    ]
    assert {(r["steps"], r["strength"], r["guidance_scale"], r["noise_scale"], r["method"])
            for r in rows} == {(10, 0.8, 7.5, 3.0, "cycle")}


def test_explicit_options_and_own_prompts_win_over_a_recipe(fake, tmp_path, capsys):  # noqa: F811
    write(tmp_path / "real", {"owl/b.png": picture("PNG")})
    (tmp_path / "mine.json").write_text(
        json.dumps({"variants": 2, "steps": 4, "strength": 1, "template": "{} at night", "noise_scale": 2.0}))
    job = ["generate", tmp_path / "real"]
    options = ["--model", "fake", "--recipe", tmp_path / "mine.json"]
    assert run(*job, "--out", tmp_path / "a", *options) == 0
    assert [(r["variant"], r["steps"], r["strength"], r["noise_scale"], r["prompt"])
            for r in lines(tmp_path / "a")] == [(v, 4, 1.0, 2.0, "owl at night") for v in (0, 1)]
    assert run(*job, "--out", tmp_path / "b", *options, "--variants", "10", "--method", "sdedit", "--template",
               "one {}", "--strength", "0.8") == 0
    assert [(r["steps"], r["strength"], r["noise_scale"], r["prompt"])
            for r in lines(tmp_path / "b")] == [(4, 0.8, 0.0, "one owl")] * 10
    (tmp_path / "real/metadata.jsonl").write_text('{"file_name": "owl/b.png", "text": "my owl"}')
    assert run(*job, "--out", tmp_path / "c", *options) == 0 and lines(tmp_path / "c")[0]["prompt"] == "my owl"
    for content, message in (("[]", "is no JSON object"), ("{", "is no JSON object"),
                             ('{"colour": 1}', "has 'colour'; the options are variants, "),
                             ('{"steps": 2.5}', "steps: 2.5 is not possible"),
                             ('{"steps": true}', "steps: True is not possible"), ('{"template": 3}', "must be a text"),
                             ('{"template": "owl"}', "must hold {} once"), ('{"strength": 7}',
                                                                            "strength: 7 is not possible")):
        (tmp_path / "mine.json").write_text(content)
        (tmp_path / "real/metadata.jsonl").unlink(missing_ok=True)
        capsys.readouterr()
        assert run(*job, "--out", tmp_path / "no", *options) == 2
        assert message in (err := capsys.readouterr().err) and err.count("\n") == 1 and not (tmp_path / "no").exists()
    assert run(*job, "--out", tmp_path / "no", "--model", "fake", "--recipe", "cars") == 2
    assert "the recipes that come with dreamda are caltech101, oxford-pets, " in capsys.readouterr().err
