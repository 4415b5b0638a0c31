"""What `efficacy.py sweep` tries: group -> (kind of synthetic images, training recipe). Every one is published with its accuracy."""

PLAIN = dict(method="plain")


def img2img(**changed):
    return dict(step="sdedit", steps=10, strength=0.8, guidance_scale=2.0, share_start=False) | changed


def text(**changed):
    return dict(step="sdedit", steps=10, strength=1.0, guidance_scale=2.0, share_start=False, from_noise=True) | changed


def dreamda(**changed):
    return dict(step="cycle", steps=10, strength=1.0, guidance_scale=2.0, noise_scale=3.0, share_start=False) | changed


def free(**changed):
    """Plain img2img with DreamDA's perturbation: the bottleneck noise without the tie to the seed's own trajectory."""
    return img2img(strength=1.0, noise_scale=3.0) | changed


RANDAUGMENT = PLAIN | dict(view="randaugment")
AMST = dict(method="amst", hint="keep", view="randaugment")

SWEEP = {
    "real": [(None, dict(method="real-only")), (None, dict(method="real-only", view="randaugment")),
             (None, dict(method="real-only", mix="mixup")), (None, dict(method="real-only", mix="cutmix"))],
    "text": [(text(), PLAIN), (text(guidance_scale=1.0), PLAIN), (text(guidance_scale=4.0), PLAIN), (text(noise_scale=3.0), PLAIN)],
    "free": [(free(), PLAIN), (free(guidance_scale=1.0), PLAIN), (free(strength=0.8), PLAIN), (free(noise_scale=6.0), PLAIN)],
    "amst": [(free(guidance_scale=1.0), AMST), (free(), AMST | dict(view="weak")), (free(), AMST), (free(guidance_scale=1.0), RANDAUGMENT),
             (free(), AMST | dict(hint="ignore")), (free(guidance_scale=1.0), AMST | dict(real_share=0.25)),
             (free(guidance_scale=1.0), AMST | dict(mix="cutmix")), (free(guidance_scale=1.0), AMST | dict(threshold=0.7))],
    "training": [(free(), RANDAUGMENT), (free(), PLAIN | dict(view="strong")), (free(), PLAIN | dict(mix="cutmix")),
                 (free(), RANDAUGMENT | dict(real_share=0.25))],
    "dreamda": [(dreamda(), PLAIN), (dreamda(noise_scale=0.0), PLAIN), (dreamda(guidance_scale=4.0), PLAIN),
                (dreamda(step="asymmetric"), PLAIN), (dreamda(strength=0.8, guidance_scale=7.5, share_start=True), PLAIN)],
    "img2img": [(img2img(), PLAIN), (img2img(guidance_scale=7.5), PLAIN), (img2img(strength=0.5), PLAIN)],
}
