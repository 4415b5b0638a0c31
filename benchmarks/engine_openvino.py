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
    if job["task"] == "generate" and job.get("img2img"):
        return img2img(job, request), f"{label}; diffusers' LCM img2img on PyTorch for all but the U-Net"
    if job["task"] == "generate":
        return authors(job, request, rng), f"{label}; PyTorch for all but the U-Net"
    raise ValueError(f"unknown task {job['task']!r}")


def img2img(job, request):
    """diffusers' img2img of a latent consistency model with its U-Net in OpenVINO."""
    import engine_torch
    import torch
    from diffusers import UNet2DConditionModel
    from diffusers.configuration_utils import FrozenDict

    torch.set_num_threads(job["threads"])
    torch.set_grad_enabled(False)

    class Network(torch.nn.Module):
        config = FrozenDict(UNet2DConditionModel.load_config(f"{job['model']}/unet"))
        dtype, device = engine_torch.DTYPES[job["dtype"]], torch.device("cpu")

        def forward(self, sample, timestep, timestep_cond, encoder_hidden_states, **_):
            inputs = [sample, timestep, encoder_hidden_states, timestep_cond]
            outputs = request.infer([x.float().numpy() if x.is_floating_point() else x.numpy() for x in inputs])
            return [torch.from_numpy(outputs[0].copy()).to(self.dtype)]

    return engine_torch.img2img(job, Network())


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
