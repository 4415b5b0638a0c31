"""What the two recipes for photographs share: reading them, and the words of their classes.

DATA holds a folder of images for each class, and perhaps classes.json, an object of folder names and lists of names:
{"n01443537": ["goldfish", "Carassius auratus"], ...}. Without it a folder's name is the class's.
"""
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 64
TEMPLATES = [
    "a photo of a {}", "a picture of a {}", "an image of a {}", "a close-up photo of a {}", "a photo of the {}",
    "a cropped photo of a {}", "a photo of a {}, a type of object", "{}", "a {}"
]


def centre(path):
    """The centre square of an image file, uint8 (3, 64, 64)."""
    image = Image.open(path).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side)).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return np.asarray(square).transpose(2, 0, 1)


def read(data):
    """Images uint8 (N, 3, 64, 64), labels (N,), and for every class its names."""
    folders = sorted(path for path in Path(data).iterdir() if path.is_dir())
    words = Path(data) / "classes.json"
    given = json.loads(words.read_text()) if words.exists() else {}
    names = [[name.lower() for name in given.get(path.name, [path.name.replace("_", " ")])] for path in folders]
    files = [(path, label) for label, folder in enumerate(folders) for path in sorted(folder.rglob("*.*"))
             if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")]
    with ThreadPoolExecutor(16) as pool:
        images = list(pool.map(lambda file: centre(file[0]), files))
    return np.stack(images), np.array([label for _, label in files]), names


def contact_sheet(x, columns, path):
    """Write images in [-1, 1] as one picture."""
    x = ((x.float().clamp(-1, 1) + 1) * 127.5).byte().permute(0, 2, 3, 1).cpu().numpy()
    rows = len(x) // columns
    sheet = x.reshape(rows, columns, SIZE, SIZE, 3).transpose(0, 2, 1, 3, 4).reshape(rows * SIZE, columns * SIZE, 3)
    Image.fromarray(sheet).save(path)
