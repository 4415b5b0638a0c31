"""What the classes that are returned show of themselves: one line, without their arrays and lists.

A line of the table for each. (`Pipeline` and its networks are in test_pipeline.py.)
"""
from pathlib import Path

import numpy as np
import pytest

from dreamda.data.annotations.coco import CocoLabels
from dreamda.data.bundled import load_bundled
from dreamda.data.folders import ImageFolder, ImageRef
from dreamda.data.importers import ImportReport
from dreamda.data.prompts import Prompts
from dreamda.generation.options import GenerationOptions
from dreamda.runs.generate import Report
from dreamda.runs.labelled import LabelledFolder
from dreamda.runs.measures import Judged, Neighbours
from dreamda.runs.replay import RecordedRun, ReplayReport
from dreamda.runs.train import TrainReport
from dreamda.runs.trial import Comparison, Kind, Plan, Trial, Verdict
from dreamda.training.metrics import evaluate_predictions
from dreamda.training.saved import TrainedModel

METRICS = evaluate_predictions(np.eye(2, dtype=np.float32)[[0, 1, 1]], np.array([0, 1, 0]), ["cat", "dog"])
MANY = [("a/b.png", "truncated")] * 1000
IMAGES = tuple(ImageRef("cat", f"{i}.png") for i in range(1200))

PLAN = Plan(per_class=10, variants=5, steps=200, folds=5, presets=("fast", ), seconds=60.0)
GAIN = Comparison(Kind("fast"), 0.032, 0.011, 0.053)


def annotations(path: str, names: list[str], problems: list[tuple[str, str]]) -> CocoLabels:
    labels = object.__new__(CocoLabels)  # without reading a file
    labels.path, labels.names, labels.problems = Path(path), names, problems
    return labels


SHOWN = {
    "Report(6 of 12 images made, 2 were there already, 1,000 files skipped, 1 note, stopped by SIGINT)":
    lambda: Report(6, 2, 12, MANY, 3.5, 2, ["a note"]),
    "Report(1 of 1 image made)":
    lambda: Report(made=1, total=1),
    "ReplayReport(11 of 12 images repeated to the same bytes, 1 differ, 1,000 real images changed)":
    lambda: ReplayReport(12, 11, ["a/b-000.png"], "its pixels differ", MANY),
    "ReplayReport(12 of 12 images repeated to the same bytes)":
    lambda: ReplayReport(12, 12),
    "ImportReport(train 1,200, test 1 of 2 classes, complete)":
    lambda: ImportReport({
        "train": 1200, "test": 1
    }, 2, "the official one", complete=True),
    "ImportReport(train 3 of 1 class, incomplete, 1,000 files skipped)":
    lambda: ImportReport({"train": 3}, 1, skipped=MANY),
    "TrainReport(1 epoch, best epoch 1 with validation accuracy 0.7500, no metrics, 3 events, 1 note)":
    lambda: TrainReport(1, None, {
        "epoch": 1, "accuracy": 0.75
    }, [{}] * 3, None, ["a note"]),
    "TrainReport(30 epochs, Metrics(accuracy 0.6667, macro-F1 0.6667, AUC 0.7500, 3 images, 2 classes), 0 events, "
    "1,000 files skipped)":
    lambda: TrainReport(30, METRICS, skipped=MANY),
    "Metrics(accuracy 0.6667, macro-F1 0.6667, AUC 0.7500, 3 images, 2 classes)":
    lambda: METRICS,
    "TrainedModel(resnet18, width 16, small stem, images of 32 x 32, 1 class: cat)":
    lambda: TrainedModel("resnet18", "small", 16, (32, 32), (0.5, ) * 3, (0.5, ) * 3, ["cat"], {}),
    "ImageFolder('photos': 1,200 images of 1 class, 1,000 files ignored)":
    lambda: ImageFolder(Path("photos"), ("cat", ), IMAGES, tuple(MANY)),
    "LabelledFolder('photos': 2 images of 2 classes)":
    lambda: LabelledFolder(Path("photos"), [Path("photos/a/b.png")] * 2, np.arange(2), ["a", "b"]),
    "RecordedRun('synthetic': 2 images of 'sd15')":
    lambda: RecordedRun(Path("synthetic"), {"model": "sd15"}, GenerationOptions(), [{}, {}]),
    "Prompts(1,200 images: 'a photo of a cat' and 1 other prompt)":
    lambda: Prompts({image.key: f"a photo of a {'dog' if n == 7 else 'cat'}"
                     for n, image in enumerate(IMAGES)}, {}),
    "Judged(in the features of a ResNet, precision 0.50, recall 0.25, 1 note)":
    lambda: Judged("the features of a ResNet", Neighbours(0.5, 0.25, 1.0, 1.0), notes=["a note"]),
    "Judged(in the features of a ResNet, too few images to measure)":
    lambda: Judged("the features of a ResNet"),
    "Trial(helps, preset fast, no text +3.2 points (+1.1 to +5.3), 1,000 files skipped)":
    lambda: Trial(PLAN, {}, [GAIN], Verdict("helps", "Synthetic images help.", GAIN), 1, MANY),
    "Trial(no verdict, stopped by SIGINT)":
    lambda: Trial(PLAN, signal=2),
    "CocoLabels('instances.json': 1 image, 1,000 problems)":
    lambda: annotations("instances.json", ["a.png"], MANY),
    "BundledImages(100 seeds, 1,000 test images, 10 classes)":
    load_bundled,
}


@pytest.mark.parametrize("text", SHOWN)
def test_repr(text):
    assert repr(SHOWN[text]()) == text
