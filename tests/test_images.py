"""Every kind of image file (batteries/images.py): made here, decoded, and compared with what its numbers mean.

Where tifffile is installed, it confirms that the TIFF files made here hold the numbers that they should.
"""
import io
import struct

import image_files
import numpy as np
import pytest
from batteries.images import CASES
from image_files import chunk
from PIL import Image

from dreamda.data import BrokenImageError, decode_image

HEIGHT, WIDTH = 6, 16
CHANNELS = {
    "rgb": 3, "rgba": 4, "rgba premultiplied": 4, "rgbx": 4, "cmyk": 4, "grey+alpha": 2, "black+alpha": 2, "lab": 3,
    "P3": 3, "P6": 3
}
PHOTOMETRIC = {
    "white": 0, "rgb": 2, "rgba": 2, "rgbx": 2, "rgba premultiplied": 2, "cmyk": 5, "palette": 3, "palette 8": 3, "lab":
    8
}
EXTRA = {"": b"", "exif": chunk(b"eXIf", b"no EXIF at all"), "exif checksum": chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0", 1),
         "text checksum": chunk(b"tEXt", b"Comment\0hello", 1), "short pHYs": chunk(b"pHYs", b"\0"),
         "profile": chunk(b"iCCP", b"x\0\0nothing"), "cut": b""}


def values(top: int, channels: int | None) -> np.ndarray:
    """Numbers from 0 to `top`, shuffled."""
    count = HEIGHT * WIDTH * (channels or 1)
    spread = np.round(np.linspace(0, top, count)).astype(np.uint64)
    np.random.default_rng(0).shuffle(spread)
    return spread.reshape((HEIGHT, WIDTH) if channels is None else (HEIGHT, WIDTH, channels))


def over_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return colours * alpha + 255 * (1 - alpha)


def meaning(numbers: np.ndarray, top: float, colour: str, colour_map: np.ndarray | None = None) -> np.ndarray:
    """What numbers from 0 to `top` show, 0 to 255, as (H, W, 3) or, of greys, (H, W)."""
    if colour_map is not None:
        return colour_map[numbers.astype(int)]
    parts = numbers.astype(float) / max(top, 1)
    if colour == "white":
        return 255 * (1 - parts)
    if colour == "cmyk":
        return 255 * (1 - parts[..., :3]) * (1 - parts[..., 3:])
    if colour in ("grey+alpha", "black+alpha"):
        return over_white(255 * parts[..., 0], parts[..., 1])
    if colour == "rgba":
        return over_white(255 * parts[..., :3], parts[..., 3:])
    if colour == "rgba premultiplied":
        return 255 * parts[..., :3] + 255 * (1 - parts[..., 3:])
    if colour == "lab":  # greys: the lightness of CIE, as sRGB has it
        light = np.where(parts[..., 0] > 0.08, ((parts[..., 0] + 0.16) / 1.16) ** 3, parts[..., 0] / 9.033)
        return 255 * np.where(light > 0.0031308, 1.055 * light ** (1 / 2.4) - 0.055, 12.92 * light)
    return 255 * parts[..., :3] if colour == "rgbx" else 255 * parts


def make_png(bits, colour, top=None, transparent=False, interlaced=False, extra=""):
    full = (1 << bits) - 1
    numbers = values(full if top is None else top, CHANNELS.get(colour))
    colours = np.random.default_rng(1).integers(0, 256, (full + 1, 3)) if colour == "palette" else None
    key = numbers[1, 1]
    hidden = None if not transparent else b"\xff" * int(key) + b"\0" if colour == "palette" else np.atleast_1d(key)
    data = image_files.png(numbers, bits, colour, transparent=hidden, palette=colours, extra=EXTRA[extra],
                           interlaced=interlaced)
    shown = meaning(numbers, full, colour, colours)
    if transparent:
        shown[(numbers == key) if numbers.ndim == 2 else (numbers == key).all(axis=-1)] = 255
    return data[:-200] if extra == "cut" else data, shown


def make_tiff(bits, colour, order="<", top=None, tile=0, planes=False, deflate=False, sample="unsigned", range=None,
              rotated=False):
    kind = ("", "unsigned", "signed", "float").index(sample)
    full = (1 << min(bits, 32)) - 1
    channels = CHANNELS.get(colour)
    numbers = values(full if top is None else top, channels)
    if colour == "lab":
        numbers[..., 1:] = 0
    if colour == "rgba premultiplied":
        numbers[..., :3] = np.minimum(numbers[..., :3], numbers[..., 3:])
    stored = numbers / full if sample == "float" else numbers
    if sample == "signed":
        stored = numbers.astype(np.int64) - (1 << bits - 1)
    photometric = PHOTOMETRIC.get(colour, 1)
    tags = {}
    if colour in ("rgba", "rgbx", "rgba premultiplied", "black+alpha"):
        tags[338] = ("H", ({"rgbx": 0, "rgba premultiplied": 1}.get(colour, 2),))
    if range is not None:
        tags |= {340: ("f", (range[0],)), 341: ("f", (range[1],))}
    if rotated:
        tags[274] = ("H", (6,))
    colours = np.random.default_rng(1).integers(0, 256, (full + 1, 3)) if photometric == 3 else None
    data = image_files.tiff(stored,
                            bits,
                            photometric,
                            order=order,
                            kind=kind,
                            tile=tile,
                            planes=planes,
                            deflate=deflate,
                            tags=tags,
                            colour_map=None if colours is None else colours * (1 if colour == "palette 8" else 257))
    try:
        import tifffile
    except ImportError:
        pass
    else:
        if bits in (8, 16, 32, 64) and not deflate or bits == 1:
            np.testing.assert_allclose(np.squeeze(tifffile.imread(io.BytesIO(data))).astype(float),
                                       (np.moveaxis(stored, -1, 0) if planes else stored).astype(float),
                                       rtol=1e-3,
                                       atol=1e-3)
    shown = meaning(numbers, full if range is None or sample == "float" else range[1], colour, colours)
    return data, np.rot90(shown, -1) if rotated else shown


def make_ppm(colour, top):
    numbers = values(top, CHANNELS.get(colour))
    shown = meaning(numbers, top, "white" if colour in ("P1", "P4") else "black")
    head = f"{colour} {WIDTH} {HEIGHT}" + ("" if top == 1 else f" {top}") + "\n"
    if colour in ("P1", "P2", "P3"):
        return (head + " ".join(map(str, numbers.ravel())) + "\n").encode(), shown
    stored = image_files.packed(numbers,
                                1) if colour == "P4" else numbers.astype(">u2" if top > 255 else "u1").tobytes()
    return head.encode() + stored, shown


def make_pillow(kind, colour, save={}, save_as=None):
    smooth = np.dstack(np.broadcast_arrays(np.arange(WIDTH) * 15,
                                           np.arange(HEIGHT)[:, None] * 50, 128)).astype(np.uint8)
    with_alpha = np.dstack([smooth, smooth[..., 0]])
    image = Image.fromarray(with_alpha) if colour == "RGBA" else Image.fromarray(smooth).convert(colour)
    save = dict(save)
    if "append_images" in save:
        save["append_images"] = [Image.new("P", image.size, 7)]
    shown = np.asarray(image.convert("RGB")).astype(float)
    if colour == "RGBA":
        shown = over_white(smooth.astype(float), smooth[..., :1] / 255)
    if "transparency" in save:
        shown[np.asarray(image) == save["transparency"]] = 255
    buffer = io.BytesIO()
    best = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    image.save(buffer, save_as or kind, **save, **best)
    return buffer.getvalue(), shown


MAKERS = {"PNG": make_png, "TIFF": make_tiff, "PPM": make_ppm}
EVERY = [(kind, case) for kind, cases in CASES.items() for case in cases]


def made(kind, case):
    how = {word: value for word, value in case.items() if word not in ("what", "refused")}
    return MAKERS[kind](**how) if kind in MAKERS else make_pillow(kind.upper(), **how)


@pytest.mark.filterwarnings("ignore")  # Pillow's own, about what is damaged
@pytest.mark.parametrize("kind, case", EVERY, ids=[f"{kind} {case['what']}" for kind, case in EVERY])
def test_an_image_file(kind, case):
    data, shown = made(kind, case)
    if "refused" in case:
        with pytest.raises(BrokenImageError, match=case["refused"]):
            decode_image(data)
        return
    found = decode_image(data).astype(float)
    if shown.ndim == 2 and "CIELAB" not in case["what"]:
        assert np.array_equal(found[..., 0], found[..., 1]) and np.array_equal(found[..., 1], found[..., 2])
    shown = shown if shown.ndim == 3 else shown[..., None]
    assert found.shape[:2] == shown.shape[:2]
    inexact = any(word in case["what"] for word in ("alpha", "RGBA", "CMYK", "CIELAB"))
    tolerance = 12 if kind == "JPEG" else 2 if inexact else 1.01
    assert np.abs(found - shown).max() <= tolerance


def test_cases_are_told_apart():
    assert len({(kind, case["what"]) for kind, case in EVERY}) == len(EVERY)


@pytest.mark.parametrize("tags", [
    {258: ("H", (0,))}, {339: ("H", (9,))}, {340: ("f", (np.nan,)), 341: ("f", (1.0,))}, {274: ("H", (77,))},
    {340: ("f", (5.0,)), 341: ("f", (1.0,))}, {341: ("f", (0.0,))}, {277: ("H", (0,))}, {284: ("H", (7,))},
    {262: ("H", (99,))}, {320: ("H", (1, 2, 3, 4))}])
def test_odd_tags_give_pixels_or_a_broken_image(tags):
    for bits in (8, 16):
        try:
            found = decode_image(image_files.tiff(values((1 << bits) - 1, None), bits, 1, tags=tags))
        except BrokenImageError:
            continue
        assert found.shape in ((HEIGHT, WIDTH, 3), (WIDTH, HEIGHT, 3))


def test_a_damaged_file_says_so_and_another_format_is_named():
    with pytest.raises(BrokenImageError, match="a PNG image that is damaged, or of a kind that is not read"):
        decode_image(image_files.SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 5, 7, 0, 0, 0, 0)))
    with pytest.raises(BrokenImageError, match="a HEIC image that is not read; save it as an 8-bit PNG or JPEG"):
        decode_image(b"\0\0\0\x18ftypheic" + bytes(200))
    with pytest.raises(BrokenImageError, match="not an image, or damaged; the formats read are PNG, JPEG"):
        decode_image(b"hello")
