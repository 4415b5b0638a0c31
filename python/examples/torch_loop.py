"""A plain PyTorch training loop, and the lines that DreamDA adds to it.

    dreamda demo --out demo                                # makes demo/real, demo/synthetic and demo/test
    python torch_loop.py real     --real demo/real --test demo/test
    python torch_loop.py folder   --real demo/real --test demo/test --synthetic demo/synthetic
    python torch_loop.py augment  --real demo/real --test demo/test --model fashion-mini
    python torch_loop.py amst     --real demo/real --test demo/test --synthetic demo/synthetic

real      the loop as it was
folder    the synthetic images with the labels of their manifest are more training data
augment   every few epochs the real images are re-generated, in memory; nothing is written
amst      AMST: five NumPy heads on the features of this network, whose gradients PyTorch propagates

What to expect, with the 100 bundled real images and `dreamda generate --variants 4 --steps 20 --model fashion-mini`, %
right on 1,000 test images (seeds 0 and 1): real 69.1, 68.4; folder 71.3, 69.3; amst 68.2, 68.1. So AMST does not help
in these 300 steps: a third of them see the real images alone, and the labels of the synthetic images are mostly right.
With a tenth instead of a third it had 69.4, 69.6.

Import dreamda before torch: they share one GNU OpenMP library, and the first to load it sets how long idle threads
spin. The other order gives the same numbers, only slower on a machine that is busy. Call the pipeline from the main
process, not from a DataLoader's worker: OpenMP does not survive a fork.
"""
import argparse
import json
from pathlib import Path

import dreamda  # first, see above
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn


def read(path: Path, size: int) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB").resize((size, size)), copy=True)).permute(2, 0, 1)


def load_folder(root: Path, classes: list[str], size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """root/<class>/<image> as uint8 (N, 3, size, size) and labels (N,)."""
    files = [(path, classes.index(path.parent.name)) for path in sorted(root.glob("*/*"))
             if path.suffix in (".png", ".jpg")]
    return torch.stack([read(path, size) for path, _ in files]), torch.tensor([label for _, label in files])


def load_synthetic(root: Path, classes: list[str], size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The output of `dreamda generate`: what an image shows stands in its manifest, not in its file name."""
    rows = [json.loads(line) for line in (root / "metadata.jsonl").read_text().splitlines()]
    return torch.stack([read(root / row["file_name"], size)
                        for row in rows]), torch.tensor([classes.index(row["label"]) for row in rows])


class Backbone(nn.Module):
    """A small residual network: float images to `width` features."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()

        def block(inputs: int, outputs: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
                                 nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())

        self.layers = nn.Sequential(block(3, width // 4), block(width // 4, width // 2), block(width // 2, width),
                                    nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


def weak(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """uint8 to float, with a random flip and a shift of up to 2 pixels for the batch."""
    images = images.float() / 127.5 - 1
    flipped = torch.where(torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5, images.flip(3), images)
    dy, dx = torch.randint(-2, 3, (2,), generator=generator).tolist()
    return flipped.roll((dy, dx), (2, 3))


def strong(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """weak, then another brightness and contrast for each image, and a square cut out."""
    images = weak(images, generator)
    contrast, brightness = torch.rand(2, len(images), 1, 1, 1, generator=generator)
    images = images * (0.5 + contrast) + (brightness - 0.5) * 0.6
    side = images.shape[2] // 3
    y, x = torch.randint(0, images.shape[2] - side, (2,), generator=generator).tolist()
    images[:, :, y: y + side, x: x + side] = 0
    return images


@torch.no_grad()
def accuracy(predict, images: torch.Tensor, labels: torch.Tensor) -> float:
    right = sum(
        int((predict(x.float() / 127.5 - 1).argmax(1) == y).sum())
        for x, y in zip(images.split(256), labels.split(256)))
    return right / len(labels)


def train(mode: str,
          real,
          test,
          synthetic=None,
          *,
          classes: list[str],
          pipe=None,
          steps: int = 300,
          batch: int = 32,
          lr: float = 0.05,
          seed: int = 0) -> float:
    """Train on (images, labels) and return the accuracy on `test`."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    backbone, head = Backbone(), nn.Linear(128, len(classes))
    optimizer = torch.optim.SGD([*backbone.parameters(), *head.parameters()],
                                lr,
                                momentum=0.9,
                                weight_decay=1e-4,
                                nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    images, labels = real
    # (a) the synthetic folder: more data
    if mode == "folder":
        images, labels = torch.cat([real[0], synthetic[0]]), torch.cat([real[1], synthetic[1]])
    for step in range(steps):
        if mode == "augment" and step % 100 == 0:                                   # (b) new images every 100 steps
            prompts = [f"a photo of a {classes[label].replace('_', ' ')}" for label in real[1]]
            pixels = real[0].permute(0, 2, 3, 1).contiguous().numpy()
            made = pipe.augment(pixels, prompts, variants=2, steps=20, seed=step)   # uint8 (N, 2, H, W, 3)
            images = torch.cat([real[0], torch.from_numpy(made).flatten(0, 1).permute(0, 3, 1, 2)])
            labels = torch.cat([real[1], real[1].repeat_interleave(2)])
        chosen = torch.randint(0, len(images), (batch,), generator=generator)
        loss = F.cross_entropy(head(backbone(weak(images[chosen], generator))), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    backbone.eval()
    return accuracy(lambda x: head(backbone(x)), *test)


def train_amst(real,
               test,
               synthetic,
               *,
               classes: list[str],
               steps: int = 300,
               batch: int = 32,
               lr: float = 0.05,
               threshold: float = 0.9,
               seed: int = 0) -> float:
    """(c) The same loop with AMST: the heads are dreamda's, the network and its optimiser stay PyTorch's."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    backbone, heads = Backbone(), dreamda.AMSTHeads(128, len(classes), random_state=seed)

    def stage(count: int):
        optimizer = torch.optim.SGD(backbone.parameters(), lr, momentum=0.9, weight_decay=1e-4, nesterov=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=count)
        for _ in range(count):
            optimizer.zero_grad()
            yield
            optimizer.step()                                # the gradients have come through the features
            heads.step(optimizer.param_groups[0]["lr"])     # theirs are applied by themselves
            schedule.step()

    def draw(n: int) -> torch.Tensor:
        return torch.randint(0, n, (batch,), generator=generator)

    images, labels = real
    for _ in stage(steps // 3):                                                                        # 1. pretraining
        chosen = draw(len(images))
        h_strong, h_weak = backbone(strong(images[chosen], generator)), backbone(weak(images[chosen], generator))
        _, d_weak, d_strong = heads.pretrain_loss(h_weak.detach().numpy(),
                                                  h_strong.detach().numpy(), labels[chosen].numpy())
        torch.autograd.backward([h_weak, h_strong], [torch.from_numpy(d_weak), torch.from_numpy(d_strong)])

    backbone.eval()                                                                                    # 2. labelling
    with torch.no_grad():
        features = torch.cat([backbone(x.float() / 127.5 - 1) for x in synthetic[0].split(256)])
    found, accepted, _ = heads.label(features.numpy(), threshold)
    # The label of its seed stands unless all four labelling heads are sure of another one.
    kept = torch.from_numpy(~(accepted & (found != synthetic[1].numpy())))
    grown, grown_labels = synthetic[0][kept], synthetic[1][kept]
    print(f"kept {len(grown)} of {len(kept)} synthetic images with the labels of their seeds")
    backbone.train()

    for _ in stage(steps - steps // 3):                                                                # 3. training
        # half real, half synthetic
        half = batch // 2 if len(grown) else batch
        a, b = draw(len(images))[:half], draw(max(len(grown), 1))[: batch - half]
        # consistency: over all of them
        chosen = draw(len(synthetic[0]))
        with torch.no_grad():
            u_weak = backbone(weak(synthetic[0][chosen], generator)).numpy()
        h_strong = backbone(strong(synthetic[0][chosen], generator))
        u_strong = h_strong.detach().numpy()
        # last, so that the running statistics are mostly those of plain images
        h = backbone(weak(torch.cat([images[a], grown[b]]), generator))
        result = heads.train_loss(h.detach().numpy(),
                                  torch.cat([labels[a], grown_labels[b]]).numpy(),
                                  u_weak,
                                  u_strong,
                                  threshold=threshold)
        torch.autograd.backward(h, torch.from_numpy(result.d_features))
        if result.used:
            torch.autograd.backward(h_strong, torch.from_numpy(result.d_strong))
    backbone.eval()
    return accuracy(lambda x: torch.from_numpy(heads.predict_proba(backbone(x).numpy())), *test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=("real", "folder", "augment", "amst"))
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--synthetic", type=Path, help="the output of dreamda generate")
    parser.add_argument("--model", default="fashion-mini", help="for augment")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    classes = sorted(path.name for path in options.real.iterdir() if path.is_dir())
    real, test = (load_folder(root, classes, options.size) for root in (options.real, options.test))
    if options.mode in ("folder", "amst") and options.synthetic is None:
        parser.error(f"{options.mode} needs --synthetic")
    synthetic = load_synthetic(options.synthetic, classes, options.size) if options.synthetic else None
    common = dict(classes=classes, steps=options.steps, seed=options.seed)
    if options.mode == "amst":
        found = train_amst(real, test, synthetic, **common)
    else:
        pipe = dreamda.Pipeline.load(options.model, size=(options.size,
                                                          options.size)) if options.mode == "augment" else None
        found = train(options.mode, real, test, synthetic, pipe=pipe, **common)
    print(f"{options.mode}: {found:.1%} of {len(test[1])} test images are right")


if __name__ == "__main__":
    main()
