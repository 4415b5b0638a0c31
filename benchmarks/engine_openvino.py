"""compare.py's worker for OpenVINO: the U-Net's IR (benchmarks/make_models.py) at its static shape."""

import numpy as np
import openvino
from worker import serve


def load(job):
    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": job["dtype"], "INFERENCE_NUM_THREADS": job["threads"], "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(f"{job['model']}/openvino/unet.xml", "CPU", options).create_infer_request()
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((job["rows"], 4, 64, 64), dtype=np.float32), np.array(500, np.int64),
              rng.standard_normal((job["rows"], 77, 768), dtype=np.float32)]
    return lambda: request.infer(inputs), f"OpenVINO {openvino.__version__.split('-')[0]}, static shape"


if __name__ == "__main__":
    serve(load)
