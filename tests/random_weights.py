"""Weights that follow from their names: both sides of a comparison make the same ones, and nothing has to be stored."""

import zlib

import numpy as np


def weight(name, shape):
    """Values that depend on the name alone: scaled normals; norms near one."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    values = rng.standard_normal(shape).astype(np.float32)
    if len(shape) > 1:
        return values / np.float32(np.sqrt(np.prod(shape[1:])))
    if name.endswith("running_var"):
        return np.abs(values)
    return (np.float32(1) if "norm" in name and name.endswith("weight") else np.float32(0)) + np.float32(0.1) * values
