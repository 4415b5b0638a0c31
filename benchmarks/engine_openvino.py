"""compare.py's worker for OpenVINO: the U-Net's IR (benchmarks/make_models.py) at its static shape."""

import numpy as np
import openvino
from worker import serve


def load(job):
    label = f"OpenVINO {openvino.__version__.split('-')[0]}, static shape"
    options = {
        "INFERENCE_PRECISION_HINT": job["dtype"], "INFERENCE_NUM_THREADS": job["threads"], "PERFORMANCE_HINT": "LATENCY"
    }
    request = openvino.Core().compile_model(job["network"], "CPU", options).create_infer_request()
    rng = np.random.default_rng(0)
    if job["task"] == "unet":
        inputs = [rng.standard_normal((job["rows"], 4, 64, 64), dtype=np.float32), np.array(500, np.int64),
                  rng.standard_normal((job["rows"], 77, 768), dtype=np.float32)]
        return lambda: request.infer(inputs), label
    if job["task"] == "generate":
        return authors(job, request, rng), f"{label}; PyTorch for all but the U-Net"
    raise ValueError(f"unknown task {job['task']!r}")


def authors(job, request, rng):
    """The authors' recursion with their U-Net in OpenVINO."""
    import engine_torch
    import torch

    torch.set_num_threads(job["threads"])
    torch.set_grad_enabled(False)
    noise = np.zeros(list(request.model_inputs[3].shape), np.float32)

    def predict(x, t, context):
        noise[1::2] = 3 * rng.standard_normal(noise[1::2].shape, dtype=np.float32)
        outputs = request.infer([x.numpy(), np.array(t, np.int64), context.float().numpy(), noise])
        return torch.from_numpy(outputs[0].copy())

    return engine_torch.authors(job, predict)


if __name__ == "__main__":
    serve(load)
