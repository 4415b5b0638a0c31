"""A plain PyTorch ResNet with torchvision's names, and what it computes: the reference of train_parity.py.

    PEER/bin/python tests/parity/train_reference.py WORK       # writes WORK/<case>.npz for every case
    python tests/parity/train_parity.py WORK                   # compares the C trainer with them

Each file holds initial weights, images, labels, then of PyTorch: features, all gradients, running statistics after one
pass, evaluation with those, and the losses of ten optimiser steps. The class head is a fixed random matrix, so that
only the backbone is compared. "exact/..." are the gradients in f64, from which the distance of both engines is
measured. Residual branches start small, as in practice; otherwise ten steps of a ResNet-50 on a few images amplify the
last bit of a sum to anything.
"""

import copy
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

CASES = {  # name: depth, stem, batch, size, dtype
    "r18-small-32-f32": (18, "small", 4, 32, "f32"),
    "r34-imagenet-64-f32": (34, "imagenet", 4, 64, "f32"),
    "r50-imagenet-64-f32": (50, "imagenet", 4, 64, "f32"),
    "r18-small-32-bf16": (18, "small", 4, 32, "bf16"),
    "r50-imagenet-64-bf16": (50, "imagenet", 4, 64, "bf16"),
}
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
CLASSES = 10
STEP = dict(lr=0.002, momentum=0.9, weight_decay=1e-4, nesterov=True)


class Block(nn.Module):
    def __init__(self, inside: int, width: int, bottleneck: bool, stride: int) -> None:
        super().__init__()
        out = 4 * width if bottleneck else width
        shapes = [(inside, width, 1, 1), (width, width, 3, stride),
                  (width, out, 1, 1)] if bottleneck else [(inside, width, 3, stride), (width, out, 3, 1)]
        self.count = len(shapes)
        for i, (a, b, kernel, s) in enumerate(shapes, 1):
            setattr(self, f"conv{i}", nn.Conv2d(a, b, kernel, s, kernel // 2, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(b))
        self.downsample = None
        if stride != 1 or inside != out:
            self.downsample = nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x):
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            if i < self.count:
                y = F.relu(y, inplace=True)
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


class ResNet(nn.Module):
    def __init__(self, depth: int, stem: str, width: int = 64) -> None:
        super().__init__()
        small = stem == "small"
        self.conv1 = nn.Conv2d(3, width, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.pool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        inside, bottleneck = width, depth == 50
        for level, blocks in enumerate(BLOCKS[depth]):
            layers = []
            for i in range(blocks):
                layers.append(Block(inside, width << level, bottleneck, 2 if level and not i else 1))
                inside = (width << level) * (4 if bottleneck else 1)
            setattr(self, f"layer{level + 1}", nn.Sequential(*layers))

    def forward(self, x):
        x = self.pool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        for level in range(4):
            x = getattr(self, f"layer{level + 1}")(x)
        return x.mean((2, 3))


def make(depth: int, stem: str) -> ResNet:
    model = ResNet(depth, stem).to(memory_format=torch.channels_last)
    for name, p in model.named_parameters():
        if p.ndim == 4:
            nn.init.kaiming_normal_(p, mode="fan_out", nonlinearity="relu")
        elif name.endswith("weight"):
            last = ".bn3." in name or (depth != 50 and ".bn2." in name)
            nn.init.uniform_(p, *(0.1, 0.3) if last else (0.5, 1.5))
        else:
            p.data = torch.where(torch.rand_like(p) < 0.7, 2.0, -2.0) + 0.1 * torch.randn_like(p)
    return model.train()


def loss_of(model, images, head, labels, bf16):
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        features = model(images)
    features = features.float()
    return features, F.cross_entropy(features @ head, labels)


def reference(depth: int, stem: str, batch: int, size: int, dtype: str) -> dict[str, np.ndarray]:
    torch.manual_seed(depth)
    model = make(depth, stem)
    images = torch.randn(batch, 3, size, size)
    labels = torch.randint(0, CLASSES, (batch,))
    width = 2048 if depth == 50 else 512
    head = torch.randn(width, CLASSES) / (2 * width**0.5)
    out = {f"initial/{k}": v.numpy().copy() for k, v in model.state_dict().items() if not k.endswith("tracked")}
    out |= dict(images=images.numpy(), labels=labels.numpy(), head=head.numpy())
    nhwc = images.to(memory_format=torch.channels_last)
    exact = copy.deepcopy(model).double()
    F.cross_entropy(exact(nhwc.double()) @ head.double(), labels).backward()
    out |= {f"exact/{k}": p.grad.float().numpy().copy() for k, p in exact.named_parameters()}
    features, loss = loss_of(model, nhwc, head, labels, dtype == "bf16")
    loss.backward()
    out |= {f"gradient/{k}": p.grad.numpy().copy() for k, p in model.named_parameters()}
    out |= {f"running/{k}": v.numpy().copy() for k, v in model.named_buffers() if not k.endswith("tracked")}
    out["features"] = features.detach().numpy()
    with torch.no_grad():
        out["evaluated"] = loss_of(model.eval(), nhwc, head, labels, dtype == "bf16")[0].numpy()
    model.train()
    groups = [
        dict(params=[p for p in model.parameters() if p.ndim > 1]),
        dict(params=[p for p in model.parameters() if p.ndim == 1], weight_decay=0)
    ]
    optimizer = torch.optim.SGD(groups, **STEP)
    losses = []
    for _ in range(10):
        losses.append(float(loss.detach()))
        optimizer.step()
        optimizer.zero_grad()
        _, loss = loss_of(model, nhwc, head, labels, dtype == "bf16")
        loss.backward()
    out["losses"] = np.array([*losses, float(loss.detach())])
    return out


if __name__ == "__main__":
    torch.set_num_threads(2)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, case in CASES.items():
        if len(sys.argv) > 2 and name not in sys.argv[2:]:
            continue
        np.savez(folder / f"{name}.npz", **reference(*case))
        print(name, flush=True)
