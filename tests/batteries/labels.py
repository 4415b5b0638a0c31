"""Labels and what becomes of them. test_classifier.py fits to those of arrays, and test_train_run.py reads those of
folders. One line a case; `refused` is a part of the refusal.
"""
import numpy as np

# For `AMSTClassifier`: three labels that come back from a file as they were, and thirty that are refused.
READ = [
    {"what": "texts", "labels": ["b", "a", "c"]},
    {"what": "whole numbers", "labels": [3, 1, 2]},
    {"what": "floats that are whole numbers", "labels": [2.0, 1.0, 7.0]},
    {"what": "booleans", "labels": [True, False, True]},
    {"what": "texts, of type object", "labels": np.array(["x", "y", "z"], object)},
    {"what": "whole numbers, of type object", "labels": np.array([5, 6, 7], object)},
]
REFUSED = [
    {"what": "bytes", "labels": [b"a", b"b"] * 15, "refused": "y: has labels of type |S1"},
    {"what": "dates", "labels": np.arange(30).astype("datetime64[D]"), "refused": "y: has labels of type datetime64"},
    {"what": "None among texts", "labels": [None, "a"] * 15, "refused": "y: has labels of the types NoneType, str"},
    {"what": "numbers among texts", "labels": np.array([1, "a"] * 15, object), "refused":
     "y: has labels of the types int, str"},
    {"what": "NaN", "labels": [0, 1, np.nan] * 10, "refused": "y: holds NaN or infinity for 10 images"},
    {"what": "fractions", "labels": np.linspace(0, 1, 30), "refused": "Unknown label type: continuous"},
    {"what": "two columns", "labels": np.zeros((30, 2)), "refused": "y: should be a 1d array, got an array of shape"},
    {"what": "no labels", "labels": None, "refused": "requires y to be passed, but the target y is None"},
    {"what": "complex numbers", "labels": [1 + 2j, 1j] * 15, "refused": "y: has labels of type complex128"},
]

# For the data sets TEST, SYNTHETIC and DATA: metadata files ("image label" a line) in a folder with bag/000.png,
# bag/001.png, coat/002.png and coat/003.png, and the labels of these; None: the image is left out and named.
FOLDERS = [
    {"what": "`metadata.jsonl` in the root", "files": {"metadata.jsonl": [
        "bag/000.png coat", "bag/001.png bag", "coat/002.png bag", "coat/003.png coat"]}, "labels":
     ["coat", "bag", "bag", "coat"]},
    {"what": "`metadata.csv` in the root", "files": {"metadata.csv": [
        "bag/000.png coat", "bag/001.png bag", "coat/002.png bag", "coat/003.png coat"]}, "labels":
     ["coat", "bag", "bag", "coat"]},
    {"what": "file names without their folders", "files": {"metadata.csv": [
        "000.png coat", "001.png bag", "002.png bag", "003.png coat"]}, "labels": ["coat", "bag", "bag", "coat"]},
    {"what": "a file in each class folder", "files": {"bag/metadata.jsonl": ["000.png coat", "001.png bag"],
                                                      "coat/metadata.csv": ["002.png bag", "003.png coat"]}, "labels":
     ["coat", "bag", "bag", "coat"]},
    {"what": "a file in one class folder", "files": {"bag/metadata.csv": ["000.png coat", "001.png coat"]}, "labels":
     ["coat", "coat", "coat", "coat"], "result": "read; the other folders are classes"},
    {"what": "lines for some of the images", "files": {"metadata.csv": ["bag/000.png coat", "coat/002.png bag"]},
     "labels": ["coat", None, "bag", None], "result": "read; the other images are left out and named, exit code 1"},
    {"what": "lines for some of the images in a class folder", "files": {"coat/metadata.csv": ["002.png bag"]},
     "labels": ["bag", "bag", "bag", None], "result": "read; the other images of it are left "
                                                      "out and named, exit code 1"},
    {"what": "captions without labels", "files": {"metadata.jsonl": ["bag/000.png", "bag/001.png"]}, "labels":
     ["bag", "bag", "coat", "coat"], "result": "the folders are the classes"},
    {"what": "no metadata file", "files": {}, "labels": ["bag", "bag", "coat", "coat"], "result":
     "the folders are the classes"},
]

# For REAL, whose class folders count: lines of its metadata.csv.
REAL = [
    {"what": "other words for the classes", "lines": ["bag/000.png x", "bag/001.png x", "coat/002.png y"], "result":
     "the folders are the classes"},
    {"what": "two labels in one class folder", "lines": ["bag/000.png bag", "bag/001.png coat"], "refused":
     "line 3 gives 'bag/001.png' the label 'coat', and other images of that class folder 'bag'"},
    {"what": "one label in two class folders", "lines": ["bag/000.png bag", "coat/002.png bag"], "refused":
     "line 3 gives 'coat/002.png' the label 'bag', as it does images of the class folder 'bag'"},
    {"what": "a line for an image that is not there", "lines": ["bag/000.png bag", "bag/009.png coat"], "result":
     "the folders are the classes"},
]

CASES = {"`AMSTClassifier`: read": READ, "`AMSTClassifier`: refused": REFUSED,
         "Labels of TEST, SYNTHETIC and DATA": FOLDERS, "Labels of REAL": REAL}
