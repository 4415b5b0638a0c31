"""Shards for WebDataset and folders for Hugging Face's datasets, read back by the libraries themselves where they are
installed."""
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image
from test_generate import SETTINGS, FakePipeline, lines, make_real, tree

import dreamda
from dreamda.runs.generate import generate_dataset


@pytest.fixture
def out(tmp_path):
    generate_dataset(make_real(tmp_path / "real"), tmp_path / "out", FakePipeline(), SETTINGS)
    return tmp_path / "out"


def members(shards) -> dict[str, bytes]:
    found = {}
    for shard in shards:
        with tarfile.open(shard) as tar:
            found |= {info.name: tar.extractfile(info).read() for info in tar}
    return found


def test_shards_hold_every_image_with_its_line_and_class(out, tmp_path):
    shards = dreamda.to_webdataset(out, str(tmp_path / "shards/s-%03d.tar"), shard_size=7)
    assert [s.name for s in shards] == ["s-000.tar", "s-001.tar", "s-002.tar"] and sorted(
        (tmp_path / "shards").iterdir()) == shards
    found = members(shards)
    rows = lines(out)
    assert len(found) == 3 * len(rows) == 54
    for index, row in enumerate(rows):
        assert found[f"{index:08d}.png"] == (out / row["file_name"]).read_bytes() and json.loads(
            found[f"{index:08d}.json"]) == row
        assert found[f"{index:08d}.cls"] == str(["ankle_boot", "coat"].index(row["label"])).encode()
    before = tree(tmp_path / "shards")
    dreamda.to_webdataset(out, str(tmp_path / "shards/s-%03d.tar"), shard_size=7)
    assert tree(tmp_path / "shards") == before


def test_plain_folders_and_unlabelled_images(tmp_path):
    root = make_real(tmp_path / "real").root
    found = members(dreamda.to_webdataset(root, str(tmp_path / "a-%d.tar")))
    assert len(found) == 18 and found["00000005.cls"] == b"1" and json.loads(
        found["00000005.json"]) == {"file_name": "coat/02.png", "label": "coat"}
    (root / "metadata.jsonl"
     ).write_text('{"file_name": "coat/01.png", "label": null}\n{"file_name": "coat/00.png", "text": "my coat"}\n')
    found = members(dreamda.to_webdataset(root, str(tmp_path / "b-%d.tar")))
    assert {*found} == {"00000000.png", "00000000.json", "00000001.png", "00000001.json", "00000001.cls"}


def test_bad_input(out, tmp_path):
    for pattern in ("shards.tar", "a-%d-%d.tar", "a-%s.tar", "%d-%%.tar%"):
        with pytest.raises(ValueError, match="must hold one number"):
            dreamda.to_webdataset(out, pattern)
    with pytest.raises(ValueError, match="shard_size must be 1 or more"):
        dreamda.to_webdataset(out, "a-%d.tar", shard_size=0)
    dreamda.to_webdataset(out, str(tmp_path / "long/%d.tar"), shard_size=6)
    with pytest.raises(ValueError, match="long/2.tar is of another, longer set of shards"):
        dreamda.to_webdataset(out, str(tmp_path / "long/%d.tar"), shard_size=9)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        dreamda.to_webdataset(tmp_path / "none", str(tmp_path / "a-%d.tar"))
    first = out / lines(out)[0]["file_name"]
    Image.new("RGB", (8, 8)).save(first)
    with pytest.raises(ValueError, match="is not the image that its line"):
        dreamda.to_webdataset(out, str(tmp_path / "s/a-%d.tar"))
    assert not list((tmp_path / "s").iterdir())
    for line, message in (({"file_name": "coat/77.png", "label": "coat"}, "is no image of"), ({"file_name":
                                                                                               3}, "is no image of"),
                          ({"file_name": "coat/00-001.png", "label":
                            3}, "must be a text or null"), ({"file_name": "coat/00-001.png", "label":
                                                             "hat"}, "'hat', which is no class folder")):
        (out / "metadata.jsonl").write_text(json.dumps(line))
        with pytest.raises(ValueError, match=message):
            dreamda.to_webdataset(out, str(tmp_path / "s/a-%d.tar"))


def test_webdataset_reads_the_shards(out, tmp_path):
    webdataset = pytest.importorskip("webdataset", reason='webdataset is not installed: pip install ".[test-others]"')
    dreamda.to_webdataset(out, str(tmp_path / "s-%03d.tar"), shard_size=10)
    samples = list(
        webdataset.WebDataset(str(tmp_path / "s-{000..001}.tar"),
                              shardshuffle=False).decode("rgb8").to_tuple("png", "cls", "json"))
    assert len(samples) == 18
    for (pixels, label, row), line in zip(samples, lines(out), strict=True):
        assert row == line and label == ["ankle_boot", "coat"].index(row["label"])
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(out / row["file_name"])))


def test_hugging_face_datasets_loads_the_folder(out, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    datasets = pytest.importorskip("datasets", reason='datasets is not installed: pip install ".[test-others]"')
    loaded = datasets.load_dataset("imagefolder", data_dir=str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == 18
    by_digest = {row["sha256"]: row for row in lines(out)}
    for sample in loaded:
        row = by_digest.pop(sample["sha256"])
        assert {k: sample[k] for k in ("label", "prompt", "seed_file", "variant", "noise_scale", "size")} == {
            k: row[k] for k in ("label", "prompt", "seed_file", "variant", "noise_scale", "size")}
        np.testing.assert_array_equal(np.asarray(sample["image"]),
                                      np.asarray(Image.open(io.BytesIO((out / row["file_name"]).read_bytes()))))
    assert loaded.class_encode_column("label").features["label"].names == ["ankle_boot", "coat"]
