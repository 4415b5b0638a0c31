"""compare.py's worker for ONNX Runtime's CPU provider: the U-Net's ONNX file (benchmarks/make_models.py) at its static
shape, float32."""

import numpy as np
import onnxruntime
from worker import serve


def load(job):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job["threads"]
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(job["network"], options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    inputs = dict(sample=rng.standard_normal((job["rows"], 4, 64, 64), dtype=np.float32),
                  timestep=np.array(500, np.int64),
                  context=rng.standard_normal((job["rows"], 77, 768), dtype=np.float32))
    for _ in range(2):  # its first two runs are slower than all that follow
        session.run(None, inputs)
    return lambda: session.run(None, inputs), f"ONNX Runtime {onnxruntime.__version__}, static shape"


if __name__ == "__main__":
    serve(load)
