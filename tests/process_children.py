"""What the children of tests/test_process.py run; multiprocessing imports it in them."""

from networks import unet


def work(_=None):
    """The bytes of a small U-Net's output."""
    plan, inputs = unet(threads=2)
    return plan.run(inputs)["sample"].tobytes()
