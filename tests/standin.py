"""A backbone in plain NumPy with the interface of dreamda._core.Trainer, and toy pictures that it can learn in
seconds."""
import numpy as np

from dreamda import _core


class StandIn:
    """Features tanh(weight mean(x over 4 x 4 blocks) + bias); one flat block of parameters, as in the core."""

    def __init__(self, *, batch=16, height=16, width=16, features=24, slots=2):
        self.batch, self.features, self.shape = batch, features, (3, height, width)
        inputs = 3 * (height // 4) * (width // 4)
        self.blocks = np.zeros((3, features * inputs + features), np.float32)
        self.parameters, self.gradients, self.moments = ({
            "conv1.weight":
            b[:features * inputs].reshape(features, 3, height // 4, width // 4), "bn1.bias":
            b[features * inputs:]
        } for b in self.blocks)
        self.buffers = {"bn1.running_mean": np.zeros(3, np.float32)}
        self.kept = [None] * slots
        self.steps = 0

    def _pool(self, images):
        assert images.dtype == np.float32 and images.shape[1:] == self.shape, (images.dtype, images.shape)
        n, c, h, w = images.shape
        return images.reshape(n, c, h // 4, 4, w // 4, 4).mean(axis=(3, 5)).reshape(n, -1)

    def evaluate(self, images):
        assert 1 <= len(images) <= self.batch
        weight = self.parameters["conv1.weight"].reshape(self.features, -1)
        return np.tanh(_core.linear(self._pool(images), weight, self.parameters["bn1.bias"]))

    def forward(self, images, slot=0):
        assert len(images) == self.batch
        self.buffers["bn1.running_mean"][
            ...] = np.float32(0.9) * self.buffers["bn1.running_mean"] + np.float32(0.1) * images.mean(axis=(0, 2, 3))
        features = self.evaluate(images)
        self.kept[slot] = self._pool(images), features
        return features

    def backward(self, d_features, slot=0):
        pooled, features = self.kept[slot]
        self.kept[slot] = None
        d = (d_features * (1 - features * features)).astype(np.float32)
        weight = self.parameters["conv1.weight"].reshape(self.features, -1)
        _core.linear_backward(pooled, weight, d, self.gradients["conv1.weight"].reshape(self.features, -1),
                              self.gradients["bn1.bias"])

    def zero_grad(self):
        self.blocks[1] = 0

    def gradient_norm(self):
        return float(np.sqrt(np.square(self.blocks[1], dtype=np.float64).sum()))

    def step(self, lr, momentum, weight_decay, nesterov=True, clip_norm=0.0):
        norm = self.gradient_norm()
        scale = clip_norm / norm if 0 < clip_norm < norm else 1.0
        self.steps += 1
        for name, parameter in self.parameters.items():
            decay = weight_decay if parameter.ndim > 1 else 0.0
            _core.sgd_step(parameter, self.gradients[name], self.moments[name], lr, momentum, decay, nesterov, scale)


class FoldedStandIn(StandIn):
    """The same with the interface of dreamda.training.backbone.FoldedBackbone."""

    def __init__(self, name, weights, *, size, batch, **_):
        super().__init__(batch=batch, height=size[0], width=size[1], features=len(weights["conv1.weight"]))
        for tensor, array in {**self.parameters, **self.buffers}.items():
            array[...] = weights[tensor]


def pictures(n, classes=3, seed=0, noise=60, size=16):
    """n pictures of bright bars: class k has its bar in the k-th row of blocks; labels go round."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    images = rng.normal(90, noise, (n, size, size, 3))
    for image, label in zip(images, labels, strict=True):
        image[4 * label: 4 * label + 4] += 20
    return np.clip(images, 0, 255).astype(np.uint8), labels.astype(np.int64)
