"""A timm training script (create_model, create_dataset, create_loader, create_optimizer_v2, CosineLRScheduler), and
DreamDA in it.

    dreamda demo --out demo
    python timm_train.py real    --real demo/real --test demo/test
    python timm_train.py folder  --real demo/real --test demo/test --synthetic demo/synthetic
    python timm_train.py augment --real demo/real --test demo/test --generator fashion-mini
    python timm_train.py amst    --real demo/real --test demo/test --synthetic demo/synthetic

timm's own train.py takes the synthetic folder as it is, for an output of `dreamda generate` is an image folder: merge
both trees, or copy the `ConcatDataset` line below. The loaders have no workers here: the pipeline runs in this process,
and OpenMP does not survive a fork.
"""
import argparse
import tempfile
from pathlib import Path

import dreamda  # before torch and timm: see torch_loop.py
import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_dataset, create_loader, create_transform
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset


def folder(root: Path, classes: list[str], transform=None):
    return create_dataset("",
                          root=str(root),
                          class_map={name: i
                                     for i, name in enumerate(classes)},
                          transform=transform)


def test_loader(root: Path, classes: list[str], options):
    return create_loader(folder(root, classes), (3, options.size, options.size),
                         64,
                         is_training=False,
                         use_prefetcher=False,
                         num_workers=0,
                         crop_pct=1.0,
                         persistent_workers=False)


def regenerate(pipe, real, classes: list[str], seed: int, place: Path) -> Path:
    """New synthetic images of the real ones, as an image folder."""
    for label, name in enumerate(classes):
        pixels = [np.asarray(image.convert("RGB").resize(pipe.size[::-1])) for image, number in real if number == label]
        made = pipe.augment(np.stack(pixels), [f"a photo of a {name.replace('_', ' ')}"] * len(pixels),
                            variants=2,
                            steps=20,
                            seed=seed)
        (place / name).mkdir()
        for i, picture in enumerate(made.reshape(-1, *made.shape[2:])):
            Image.fromarray(picture).save(place / name / f"{i:05d}.png")
    return place


class TwoViews(Dataset):
    """Each image in a weak and in a strong view."""

    def __init__(self, dataset, size: int) -> None:
        self.dataset = dataset
        self.weak = create_transform(size, is_training=True, scale=(0.5, 1.0), color_jitter=None)
        self.strong = create_transform(size,
                                       is_training=True,
                                       scale=(0.5, 1.0),
                                       color_jitter=None,
                                       auto_augment="rand-m9-mstd0.5",
                                       re_prob=1.0)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        image, label = self.dataset[index]
        image = image.convert("RGB")
        return self.weak(image), self.strong(image), label


def endless(dataset, batch: int):
    while True:
        yield from DataLoader(dataset, batch, shuffle=True, drop_last=len(dataset) >= batch)


@torch.no_grad()
def evaluate(predict, batches) -> float:
    right = total = 0
    for images, labels in batches:
        right += int((predict(images).argmax(1) == labels).sum())
        total += len(labels)
    return right / total


def train(options, classes: list[str]) -> float:
    """timm's loop; DreamDA only changes the data set."""
    model = timm.create_model(options.model, num_classes=len(classes))
    optimizer = create_optimizer_v2(model, opt="sgd", lr=options.lr, weight_decay=1e-4, momentum=0.9)
    scheduler = CosineLRScheduler(optimizer, t_initial=options.epochs, warmup_t=1, warmup_lr_init=options.lr / 10)
    transform = create_transform(options.size, is_training=True, scale=(0.5, 1.0), color_jitter=None)
    dataset = real = folder(options.real, classes, transform)
    if options.mode == "folder":                                                # (a)
        dataset = ConcatDataset([real, folder(options.synthetic, classes, transform)])
    pipe = dreamda.Pipeline.load(options.generator) if options.mode == "augment" else None
    with tempfile.TemporaryDirectory() as place:
        for epoch in range(options.epochs):
            if pipe and epoch % 4 == 0:                                         # (b)
                (made := Path(place, str(epoch))).mkdir()
                dataset = ConcatDataset([
                    real,
                    folder(regenerate(pipe, folder(options.real, classes), classes, epoch, made), classes, transform)
                ])
            model.train()
            for images, labels in DataLoader(dataset, options.batch, shuffle=True, drop_last=True):
                loss = F.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            scheduler.step(epoch + 1)
    model.eval()
    return evaluate(model, test_loader(options.test, classes, options))


def train_amst(options, classes: list[str]) -> float:
    """(c) The classifier of the model is taken off, and dreamda's heads sit on its features."""
    model = timm.create_model(options.model, num_classes=0)                     # features (N, model.num_features)
    heads = dreamda.AMSTHeads(model.num_features, len(classes))
    optimizer = create_optimizer_v2(model, opt="sgd", lr=options.lr, weight_decay=1e-4, momentum=0.9)
    real, synthetic = folder(options.real, classes), folder(options.synthetic, classes)
    per_epoch = max(1, (len(real) + len(synthetic)) // options.batch)
    first = max(1, options.epochs // 3)
    scheduler = CosineLRScheduler(optimizer, t_initial=options.epochs, warmup_t=1, warmup_lr_init=options.lr / 10)

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()
        heads.step(optimizer.param_groups[0]["lr"])

    views = endless(TwoViews(real, options.size), options.batch)
    for epoch in range(first):
        for _ in range(per_epoch):
            weak, strong, labels = next(views)
            h_strong, h_weak = model(strong), model(weak)
            _, d_weak, d_strong = heads.pretrain_loss(h_weak.detach().numpy(),
                                                      h_strong.detach().numpy(), labels.numpy())
            torch.autograd.backward([h_weak, h_strong], [torch.from_numpy(d_weak), torch.from_numpy(d_strong)])
            update()
        scheduler.step(epoch + 1)

    model.eval()
    with torch.no_grad():
        features = torch.cat([model(images) for images, _ in test_loader(options.synthetic, classes, options)])
    found, accepted, _ = heads.label(features.numpy(), options.threshold)
    seeds = np.array([label for _, label in synthetic.reader.samples])
    # the label of its seed stands unless all four labelling heads are sure of another one
    kept = ~(accepted & (found != seeds))
    print(f"kept {kept.sum()} of {len(kept)} synthetic images with the labels of their seeds")
    model.train()

    grown = Subset(TwoViews(synthetic, options.size), np.flatnonzero(kept).tolist())
    half = options.batch // 2
    reals = endless(TwoViews(real, options.size), half)
    growns = endless(grown, half) if len(grown) else None
    unlabelled = endless(TwoViews(synthetic, options.size), options.batch)  # consistency: over all of them
    for epoch in range(first, options.epochs):
        for _ in range(per_epoch):
            parts = [next(reals), *([next(growns)] if growns else [])]
            labels = torch.cat([label for _, _, label in parts])
            weak, strong, _ = next(unlabelled)
            with torch.no_grad():
                u_weak = model(weak).numpy()
            h_strong = model(strong)
            u_strong = h_strong.detach().numpy()
            # last: the running statistics of its batch norms are for images like these
            h = model(torch.cat([weak for weak, _, _ in parts]))
            result = heads.train_loss(h.detach().numpy(), labels.numpy(), u_weak, u_strong, threshold=options.threshold)
            torch.autograd.backward(h, torch.from_numpy(result.d_features))
            if result.used:
                torch.autograd.backward(h_strong, torch.from_numpy(result.d_strong))
            update()
        scheduler.step(epoch + 1)
    model.eval()
    return evaluate(lambda images: torch.from_numpy(heads.predict_proba(model(images).numpy())),
                    test_loader(options.test, classes, options))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=("real", "folder", "augment", "amst"))
    parser.add_argument("--real", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--synthetic", type=Path, help="the output of dreamda generate")
    parser.add_argument("--generator", default="fashion-mini", help="diffusion model for augment")
    parser.add_argument("--model", default="resnet10t")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--threshold", type=float, default=0.9)
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.mode in ("folder", "amst") and options.synthetic is None:
        parser.error(f"{options.mode} needs --synthetic")
    classes = sorted(path.name for path in options.real.iterdir() if path.is_dir())
    found = (train_amst if options.mode == "amst" else train)(options, classes)
    print(f"{options.mode}: {found:.1%} of the test images are right")


if __name__ == "__main__":
    main()
