"""Image files written by hand, byte by byte: what the libraries that read them are measured by."""
import struct
import zlib

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOUR_TYPES = {"grey": 0, "rgb": 2, "palette": 3, "grey+alpha": 4, "rgba": 6}
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    """A PNG chunk, with another checksum than the right one if asked for."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I",
                                                                    zlib.crc32(kind + data) if crc is None else crc)


def packed(samples: np.ndarray, bits: int, order: str = ">") -> bytes:
    """Rows of unsigned samples (H, N) of 1 to 32 bits, each row padded to whole bytes; 16 and 32 bits in this byte
    order."""
    if bits in (16, 32):
        return samples.astype(f"{order}u{bits // 8}").tobytes()
    ones = (samples.astype(np.uint64)[..., None] >> np.arange(bits - 1, -1, -1, dtype=np.uint64) & 1).astype(np.uint8)
    return b"".join(np.packbits(row.ravel()).tobytes() for row in ones)


def png(samples: np.ndarray, bits: int, colour: str, *, transparent=None, palette=None, extra: bytes = b"",
        interlaced: bool = False) -> bytes:
    """A PNG of samples (H, W) or (H, W, C)."""
    height, width = samples.shape[:2]
    parts = [(0, 0, 1, 1)] if not interlaced else ADAM7
    raw = b""
    for left, top, across, down in parts:
        part = samples[top::down, left::across]
        if part.size:
            raw += b"".join(b"\0" + packed(row.reshape(1, -1), bits) for row in part)
    header = struct.pack(">IIBBBBB", width, height, bits, COLOUR_TYPES[colour], 0, 0, int(interlaced))
    out = SIGNATURE + chunk(b"IHDR", header) + extra
    if palette is not None:
        out += chunk(b"PLTE", palette.astype(np.uint8).tobytes())
    if transparent is not None:
        out += chunk(b"tRNS",
                     bytes(transparent) if isinstance(transparent, bytes) else np.asarray(transparent, ">u2").tobytes())
    return out + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def tiff(samples: np.ndarray, bits: int, photometric: int, *, order: str = "<", kind: int = 1, tile: int = 0,
         planes: bool = False, deflate: bool = False, colour_map: np.ndarray | None = None,
         tags: dict[int, tuple[str, tuple]] = {}) -> bytes:
    """A TIFF of samples (H, W) or (H, W, C); `kind` is SampleFormat: 1 unsigned, 2 signed, 3 float."""
    height, width = samples.shape[:2]
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    whole = samples.reshape(height, width, channels)
    layers = [whole[..., c: c + 1] for c in range(channels)] if planes else [whole]

    def encoded(part: np.ndarray) -> bytes:
        rows = part.reshape(len(part), -1)
        code = f"{order}{'uif'[kind - 1]}{bits // 8}"
        raw = rows.astype(code).tobytes() if kind > 1 else packed(rows, bits, order)
        return zlib.compress(raw) if deflate else raw

    if tile:
        full = [np.pad(layer, ((0, -height % tile), (0, -width % tile), (0, 0))) for layer in layers]
        strips = [encoded(layer[y: y + tile, x: x + tile])
                  for layer in full for y in range(0, height, tile) for x in range(0, width, tile)]
    else:
        strips = [encoded(layer) for layer in layers]
    entries: dict[int, tuple[str, tuple]] = {
        256: ("I", (width,)), 257: ("I", (height,)), 258: ("H", (bits,) * channels), 259: ("H", (8 if deflate else 1,)),
        262: ("H", (photometric,)), 277: ("H", (channels,)), 284: ("H", (2 if planes else 1,))}
    if kind > 1:
        entries[339] = ("H", (kind,) * channels)
    if colour_map is not None:
        entries[320] = ("H", tuple(int(v) for v in colour_map.T.ravel()))
    entries |= tags
    offsets, counts = (324, 325) if tile else (273, 279)
    entries |= {offsets: ("I", (0,) * len(strips)), counts: ("I", tuple(map(len, strips)))}
    entries |= {322: ("I", (tile,)), 323: ("I", (tile,))} if tile else {278: ("I", (height,))}
    types = {"H": 3, "I": 4, "f": 11, "d": 12, "h": 8}
    size = {"H": 2, "I": 4, "f": 4, "d": 8, "h": 2}
    at = 8 + 2 + 12 * len(entries) + 4
    place, where = {}, at
    for tag, (code, values) in sorted(entries.items()):
        if size[code] * len(values) > 4:
            place[tag] = where
            where += size[code] * len(values) + where % 2
    starts = []
    for strip in strips:
        starts.append(where)
        where += len(strip)
    entries[offsets] = ("I", tuple(starts))
    out = bytearray(where)
    struct.pack_into(f"{order}2sHI", out, 0, b"II" if order == "<" else b"MM", 42, 8)
    struct.pack_into(f"{order}H", out, 8, len(entries))
    for number, (tag, (code, values)) in enumerate(sorted(entries.items())):
        spot = 10 + 12 * number
        struct.pack_into(f"{order}HHI", out, spot, tag, types[code], len(values))
        if tag in place:
            struct.pack_into(f"{order}I", out, spot + 8, place[tag])
        struct.pack_into(f"{order}{len(values)}{code}", out, place.get(tag, spot + 8), *values)
    for start, strip in zip(starts, strips):
        out[start: start + len(strip)] = strip
    return bytes(out)
