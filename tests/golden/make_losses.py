"""Losses, their gradients and five optimiser steps of AMSTHeads' arithmetic, by PyTorch's autograd; run where torch is:
python make_losses.py

test_losses.py compares. The inputs are stored with the answers.
"""
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

rng = np.random.default_rng(0)
n, c, f = 12, 7, 9
made = {
    "strong": 2 * rng.standard_normal((n, c)), "weak": 3 * rng.standard_normal((n, c)), "x": rng.standard_normal(
        (n, f)), "weight": rng.standard_normal((c, f)), "bias": rng.standard_normal(c)
}
made = {k: v.astype(np.float32) for k, v in made.items()}
made["labels"] = rng.integers(0, c, n)


def leaf(name):
    return torch.tensor(made[name], requires_grad=True)


labels = torch.tensor(made["labels"])
logits = leaf("strong")
loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
loss.backward()
made["smoothed_loss"], made["smoothed_gradient"] = loss.item(), logits.grad.numpy()

strong, weak = leaf("strong"), leaf("weak")
probability, target = torch.softmax(weak.detach(), dim=1).max(dim=1)
loss = (F.cross_entropy(strong, target, reduction="none") * (probability >= 0.8)).mean()
loss.backward()
made["consistency_loss"], made["consistency_gradient"], made["consistency_used"] = loss.item(), strong.grad.numpy(
), int((probability >= 0.8).sum())
assert weak.grad is None

x, weight, bias = leaf("x"), leaf("weight"), leaf("bias")
optimiser = torch.optim.SGD([weight, bias], lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
losses = []
for _ in range(5):
    optimiser.zero_grad()
    loss = F.cross_entropy(F.linear(x, weight, bias), labels)
    loss.backward()
    if not losses:
        made["linear_d_x"], made["linear_d_weight"] = x.grad.numpy().copy(), weight.grad.numpy().copy()
    losses.append(loss.item())
    optimiser.step()
made["sgd_losses"], made["sgd_weight"], made["sgd_bias"] = losses, weight.detach().numpy(), bias.detach().numpy()
np.savez_compressed(Path(__file__).with_name("losses.npz"), **made)
