"""Procedural images for the audit: natural-like and X-ray-like ones, and what may be done to a copy."""
import io

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps


def natural(number, side=64):
    """A picture with the spectrum of a photograph (1 / f), objects, and colours."""
    rng = np.random.default_rng([1, number])
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.rfftfreq(side), indexing="ij"))
    frequency[0, 0] = 1
    noise = rng.normal(size=(2, *frequency.shape)) / frequency
    field = np.fft.irfft2(noise[0] + 1j * noise[1], (side, side))
    field = (field - field.mean()) / field.std()
    colours = rng.uniform(0, 255, (2, 3))
    image = Image.fromarray(np.clip(
        (colours[0] + (colours[1] - colours[0]) * (0.5 + 0.25 * field[..., None])), 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(5, 12)):
        x, y, w, h = rng.uniform(0, 0.8, 4) * side
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x, y, x + w / 3 + 3, y + h / 3 + 3), fill=tuple(int(c) for c in rng.uniform(0, 255, 3)))
    return image.filter(ImageFilter.GaussianBlur(side / 160))


def xray(number, side=64):
    """A chest: two lungs, ribs, a heart and a spine, in the proportions of one patient, with that patient's shadows."""
    rng = np.random.default_rng([2, number])
    scale = 2
    image = Image.new("L", (side * scale, side * scale), int(rng.uniform(10, 40)))
    draw = ImageDraw.Draw(image)
    u = side * scale
    jitter = lambda value, by=0.04: (value + rng.uniform(-by, by)) * u  # noqa: E731
    draw.ellipse((jitter(0.04), jitter(0.1), jitter(0.96), jitter(1.2)), fill=int(rng.uniform(120, 170)))
    for left, right in ((0.16, 0.45), (0.55, 0.84)):
        draw.ellipse((jitter(left), jitter(0.16), jitter(right), jitter(0.82)), fill=int(rng.uniform(40, 80)))
    image = image.filter(ImageFilter.GaussianBlur(u / 60))
    draw = ImageDraw.Draw(image, "L")
    ribs = Image.new("L", image.size, 0)
    ribs_draw, gap, tilt = ImageDraw.Draw(ribs), rng.uniform(0.07, 0.1), rng.uniform(0.1, 0.25)
    for row in range(9):
        for side_x, sign in ((0.46, -1), (0.54, 1)):
            y = (0.14 + row * gap + rng.uniform(-0.01, 0.01)) * u
            end = side_x + sign * 0.36
            ribs_draw.line((side_x * u, y, (side_x + end) / 2 * u, y - tilt * u / 5, end * u, y + tilt * u),
                           fill=int(rng.uniform(40, 80)), width=max(1, int(u * rng.uniform(0.012, 0.025))))
    image = Image.fromarray(np.clip(np.asarray(image, np.int32) + np.asarray(ribs), 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.rectangle((jitter(0.46, 0.01), 0, jitter(0.54, 0.01), u), fill=int(rng.uniform(150, 200)))
    draw.ellipse((jitter(0.38), jitter(0.45), jitter(0.72), jitter(0.85)), fill=int(rng.uniform(150, 210)))
    for _ in range(rng.integers(2, 8)):
        x, y, r = rng.uniform(0.15, 0.85) * u, rng.uniform(0.15, 0.8) * u, rng.uniform(0.01, 0.08) * u
        shadow = Image.new("L", image.size, 0)
        ImageDraw.Draw(shadow).ellipse((x - r, y - r * rng.uniform(0.5, 1.5), x + r, y + r),
                                       fill=int(rng.uniform(20, 90)))
        image = Image.fromarray(np.clip(np.asarray(image, np.int32) + np.asarray(shadow.filter(
            ImageFilter.GaussianBlur(r / 2))), 0, 255).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(u / 200)).resize((side, side), Image.Resampling.LANCZOS)
    noisy = np.asarray(image, np.float32) + rng.normal(0, 3, (side, side))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).convert("RGB")


def _jpeg(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def _blurred(image, share):
    return image.filter(ImageFilter.GaussianBlur(max(0.5, image.width * share)))


def _cropped(image, share, rng):
    width, height = (round(side * (1 - share)) for side in image.size)
    x, y = rng.integers(0, image.width - width + 1), rng.integers(0, image.height - height + 1)
    return image.crop((x, y, x + width, y + height)).resize(image.size, Image.Resampling.BICUBIC)


def _shifted(image, share, rng):
    down, right = (int(side * share) * int(rng.choice((-1, 1))) for side in (image.height, image.width))
    pad = max(abs(down), abs(right))
    padded = np.pad(np.asarray(image), ((pad, pad), (pad, pad), (0, 0)), "edge")
    return Image.fromarray(padded[pad + down: pad + down + image.height, pad + right: pad + right + image.width])


def _bordered(image, share, rng):
    colour = tuple(int(c) for c in rng.integers(0, 256, 3))
    return ImageOps.expand(image, (int(image.width * share), int(image.height * share)),
                           colour).resize(image.size, Image.Resampling.BICUBIC)


def _lettered(image, share, rng):
    image = image.copy()
    draw = ImageDraw.Draw(image)
    for line in range(2 if share < 0.15 else 4):
        draw.text((image.width * 0.05, image.height * (0.1 + 0.22 * line)), "SYNTHETIC 4711",
                  fill=tuple(int(c) for c in rng.integers(0, 256, 3)), font_size=max(6, int(image.height * share)))
    return image


def _resized(image, factor):
    return image.resize((image.width // factor, image.height // factor), Image.Resampling.BICUBIC)


# name -> what is done; every kind at two strengths, then mixtures
CHANGES = {
    "exact": lambda im, rng: im,
    "JPEG, quality 50": lambda im, rng: _jpeg(im, 50),
    "JPEG, quality 15": lambda im, rng: _jpeg(im, 15),
    "blur, 1 % of the side": lambda im, rng: _blurred(im, 0.01),
    "blur, 3 % of the side": lambda im, rng: _blurred(im, 0.03),
    "crop of 7 %": lambda im, rng: _cropped(im, 0.07, rng),
    "crop of 15 %": lambda im, rng: _cropped(im, 0.15, rng),
    "shift by 5 %": lambda im, rng: _shifted(im, 0.05, rng),
    "shift by 12 %": lambda im, rng: _shifted(im, 0.12, rng),
    "mirrored": lambda im, rng: ImageOps.mirror(im),
    "upside down": lambda im, rng: ImageOps.flip(im),
    "brightness x 1.3": lambda im, rng: ImageEnhance.Brightness(im).enhance(1.3),
    "brightness x 0.5": lambda im, rng: ImageEnhance.Brightness(im).enhance(0.5),
    "contrast x 1.5": lambda im, rng: ImageEnhance.Contrast(im).enhance(1.5),
    "contrast x 0.5": lambda im, rng: ImageEnhance.Contrast(im).enhance(0.5),
    "inverted": lambda im, rng: ImageOps.invert(im),
    "inverted and mirrored": lambda im, rng: ImageOps.mirror(ImageOps.invert(im)),
    "half the size": lambda im, rng: _resized(im, 2),
    "a third of the size": lambda im, rng: _resized(im, 3),
    "border of 5 %": lambda im, rng: _bordered(im, 0.05, rng),
    "border of 10 %": lambda im, rng: _bordered(im, 0.10, rng),
    "two lines of text": lambda im, rng: _lettered(im, 0.10, rng),
    "four lines of large text": lambda im, rng: _lettered(im, 0.18, rng),
    "mirrored, crop of 7 %, brightness x 0.8, JPEG 30": lambda im, rng: _jpeg(
        ImageEnhance.Brightness(_cropped(ImageOps.mirror(im), 0.07, rng)).enhance(0.8), 30),
    "mirrored, crop of 15 %, contrast x 1.3, JPEG 30, blur": lambda im, rng: _blurred(_jpeg(
        ImageEnhance.Contrast(_cropped(ImageOps.mirror(im), 0.15, rng)).enhance(1.3), 30), 0.015),
}
