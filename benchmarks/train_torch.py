"""compare.py's worker for training in PyTorch: the same step, or the same labelling pass, channels-last, bf16 by
autocast."""

import sys
from pathlib import Path

import torch
from torch.nn import functional as F
from worker import serve

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/parity"))
from train_reference import ResNet  # noqa: E402

CLASSES = 100


def load(job):
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    features = 2048 if job["depth"] == 50 else 512
    model = torch.nn.Sequential(ResNet(job["depth"], job["stem"]),
                                torch.nn.Linear(features, CLASSES)).to(memory_format=torch.channels_last).train()
    groups = [
        dict(params=[p for p in model.parameters() if p.ndim > 1]),
        dict(params=[p for p in model.parameters() if p.ndim == 1], weight_decay=0)
    ]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=1e-4, nesterov=True)
    images = torch.randn(job["batch"], 3, job["size"], job["size"]).to(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (job["batch"],))
    name = f"PyTorch {torch.__version__} {'autocast' if job['dtype'] == 'bf16' else 'f32'}, channels last"
    if job.get("label"):
        backbone, heads = model.eval()[0], [torch.nn.Linear(features, CLASSES) for _ in range(4)]

        def label():
            for _ in range(job["steps"]):
                with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16,
                                                            enabled=job["dtype"] == "bf16"):
                    h = backbone(images)
                    probabilities = torch.stack([head(h).float().softmax(1) for head in heads])
                    confidence, found = probabilities.max(2)
                    (found == found[0]).all(0) & (confidence >= 0.9).all(0)

        return label, name

    def run():
        for _ in range(job["steps"]):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=job["dtype"] == "bf16"):
                loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()

    return run, name


if __name__ == "__main__":
    serve(load)
