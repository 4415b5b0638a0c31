"""AMSTHeads inside PyTorch, in one process: run by an interpreter that has torch and can import dreamda.

    python tests/parity/heads_torch.py [--train]

The losses of the heads, and the gradients that reach a PyTorch network through them, against PyTorch's autograd on its
own cross-entropies with the same weights: relative error at most 1e-5. With --train also the loop of
python/examples/torch_loop.py on the bundled images: trained with AMST it must get more of them right than it did
untrained, by 20 points or more. One line a check; the exit code is 1 if any failed.
"""
import sys
from pathlib import Path

import dreamda  # before torch, as the example says
import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python/examples"))
import torch_loop  # noqa: E402

BAR = 1e-5
WEIGHT, SMOOTHING = 0.7, 0.1


def error(got: np.ndarray, expected: torch.Tensor) -> float:
    expected = expected.detach().numpy().astype(np.float64)
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


class Case:
    """A network, and heads whose weights PyTorch has too."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.backbone = torch_loop.Backbone(32).eval()  # fixed statistics: both sides must see the same features
        self.heads = dreamda.AMSTHeads(32, 7, random_state=seed)
        self.weights = {k: torch.from_numpy(v.copy()).requires_grad_() for k, v in self.heads.parameters.items()}
        self.images = torch.randn(4, 12, 3, 32, 32)
        self.labels = torch.randint(0, 7, (12,))

    def logits(self, head: str, features: torch.Tensor) -> torch.Tensor:
        return F.linear(features, self.weights[f"{head}.weight"], self.weights[f"{head}.bias"])

    def network_gradients(self) -> dict[str, torch.Tensor]:
        found = {k: p.grad.clone() for k, p in self.backbone.named_parameters()}
        self.backbone.zero_grad()
        return found

    def compare(self, loss: float, expected: torch.Tensor) -> dict[str, float]:
        """Errors of the loss, of the heads' gradients and of the network's; ours were taken before."""
        ours = self.network_gradients()
        expected.backward()
        theirs = self.network_gradients()
        heads = max(error(self.heads.gradients[k], w.grad) for k, w in self.weights.items() if w.grad is not None)
        network = max(error(ours[k].numpy(), theirs[k]) for k in ours)
        return {"loss": abs(loss - expected.item()) / abs(expected.item()), "heads": heads, "network": network}


def pretrain() -> dict[str, float]:
    case = Case(0)
    weak, strong = case.backbone(case.images[0]), case.backbone(case.images[1])
    loss, d_weak, d_strong = case.heads.pretrain_loss(weak.detach().numpy(),
                                                      strong.detach().numpy(), case.labels.numpy())
    torch.autograd.backward([weak, strong], [torch.from_numpy(d_weak), torch.from_numpy(d_strong)])
    weak, strong = case.backbone(case.images[0]), case.backbone(case.images[1])
    return case.compare(
        loss,
        sum(
            F.cross_entropy(case.logits(h, f), case.labels)
            for h, f in (("f1_w", weak), ("f2_w", weak), ("f1_s", strong), ("f2_s", strong))))


def training() -> dict[str, float]:
    case = Case(1)
    labelled, weak, strong = (case.backbone(x) for x in case.images[:3])
    # between the 6th and the 7th row
    threshold = float(np.median(case.heads.predict_proba(weak.detach().numpy()).max(1)))
    result = case.heads.train_loss(labelled.detach().numpy(),
                                   case.labels.numpy(),
                                   weak.detach().numpy(),
                                   strong.detach().numpy(),
                                   WEIGHT,
                                   threshold,
                                   smoothing=SMOOTHING)
    assert result.used == 6, "half of the rows are confident"
    torch.autograd.backward(
        [labelled, strong],
        [torch.from_numpy(result.d_features), torch.from_numpy(result.d_strong)])
    labelled, weak, strong = (case.backbone(x) for x in case.images[:3])
    confidence, target = case.logits("f5", weak.detach()).softmax(1).max(1)
    kept = (confidence >= threshold).float()
    consistency = (F.cross_entropy(case.logits("f5", strong), target, reduction="none") * kept).mean()
    return case.compare(
        result.total,
        F.cross_entropy(case.logits("f5", labelled), case.labels, label_smoothing=SMOOTHING) + WEIGHT * consistency)


def trained() -> bool:
    bundled = dreamda.load_bundled("fashion-mini")
    # Two new images of every real one, by the pipeline, in the same process as PyTorch.
    prompts = [f"a photo of a {bundled.class_names[label]}" for label in bundled.seed_labels]
    made = dreamda.Pipeline.load("fashion-mini", dtype="f32").augment(bundled.seeds, prompts, variants=2, steps=8)
    tensor = lambda pixels: torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))  # noqa: E731
    real, test = (tensor(bundled.seeds), torch.from_numpy(bundled.seed_labels)), (tensor(bundled.test),
                                                                                  torch.from_numpy(bundled.test_labels))
    synthetic = tensor(made.reshape(-1, *made.shape[2:])), real[1].repeat_interleave(2)
    accuracies = [
        torch_loop.train_amst(real, test, synthetic, classes=list(bundled.class_names), steps=steps)
        for steps in (6, 150)
    ]
    good = accuracies[1] >= accuracies[0] + 0.2
    print(
        f"{'ok  ' if good else 'FAIL'} the example's loop: {accuracies[0]:.1%} right after 6 steps, "
        f"{accuracies[1]:.1%} after 150")
    return good


def main() -> int:
    failed = 0
    for name, check in (("pretrain_loss", pretrain), ("train_loss", training)):
        errors = check()
        good = max(errors.values()) <= BAR
        failed += not good
        print(f"{'ok  ' if good else 'FAIL'} {name}: relative errors against autograd: "
              + ", ".join(f"{k} {v:.1e}" for k, v in errors.items()))
    if "--train" in sys.argv[1:]:
        failed += not trained()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
