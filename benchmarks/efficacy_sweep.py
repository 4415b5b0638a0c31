"""What `efficacy.py sweep` tries: group -> (kind of synthetic images, training recipe). Every one is published with its
accuracy."""

PLAIN = dict(method="plain")


def img2img(**changed):
    return dict(method="sdedit", steps=10, strength=0.8, guidance_scale=2.0, share_start=False) | changed


def text(**changed):
    return dict(method="sdedit", steps=10, strength=1.0, guidance_scale=2.0, share_start=False,
                from_noise=True) | changed


def dreamda(**changed):
    return dict(method="cycle", steps=10, strength=1.0, guidance_scale=2.0, noise_scale=3.0,
                share_start=False) | changed


def free(**changed):
    """Plain img2img with DreamDA's perturbation: the bottleneck noise without the tie to the seed's own trajectory."""
    return img2img(strength=1.0, noise_scale=3.0) | changed


RANDAUGMENT = PLAIN | dict(view="randaugment")
AMST = dict(method="amst", hint="keep", view="randaugment")

MIXED = RANDAUGMENT | dict(mix="cutmix", real_share=0.25)
KEEP = AMST | dict(real_share=0.25, pretrain_epochs=2, relabel=3, threshold=0.7)
MORE = dict(epochs=25)
DISTRUST = dict(method="amst", hint="keep", pretrain_epochs=2, relabel=3, threshold=0.7) | MORE

SWEEP = {
    "real": [(None, dict(method="real-only")), (None, dict(method="real-only", view="randaugment")),
             (None, dict(method="real-only", mix="mixup")), (None, dict(method="real-only", mix="cutmix"))], "text":
    [(text(), PLAIN), (text(guidance_scale=1.0), PLAIN), (text(guidance_scale=4.0), PLAIN),
     (text(noise_scale=3.0), PLAIN)], "free": [(free(), PLAIN), (free(guidance_scale=1.0), PLAIN),
                                               (free(strength=0.8), PLAIN), (free(noise_scale=6.0), PLAIN)],
    "amst": [(free(guidance_scale=1.0), AMST), (free(), AMST | dict(view="weak")), (free(), AMST),
             (free(guidance_scale=1.0), RANDAUGMENT), (free(), AMST | dict(hint="ignore")),
             (free(guidance_scale=1.0), AMST | dict(real_share=0.25)),
             (free(guidance_scale=1.0), AMST | dict(mix="cutmix")),
             (free(guidance_scale=1.0), AMST | dict(threshold=0.7))], "amst 2": [
                 (free(guidance_scale=1.0), MIXED), (free(guidance_scale=1.0), KEEP),
                 (free(guidance_scale=1.0), KEEP | dict(threshold=0.5)),
                 (free(guidance_scale=1.0), MIXED | dict(method="amst", hint="keep", pretrain_epochs=2)),
                 (text(guidance_scale=1.0), MIXED), (free(guidance_scale=1.0), MIXED | dict(epochs=50)),
                 (None, dict(method="real-only", view="randaugment", epochs=50)),
                 (free(guidance_scale=1.0), KEEP | dict(epochs=50, pretrain_epochs=5))
             ], "amst 3": [(free(guidance_scale=1.0), PLAIN | MORE), (free(guidance_scale=1.0), RANDAUGMENT | MORE),
                           (text(guidance_scale=1.0), PLAIN | MORE), (free(guidance_scale=1.0), DISTRUST),
                           (free(guidance_scale=1.0), DISTRUST | dict(threshold=0.5)),
                           (free(guidance_scale=1.0), DISTRUST | dict(hint="agree", threshold=0.5)),
                           (free(guidance_scale=1.0), DISTRUST | dict(hint="ignore", pretrain_epochs=5)),
                           (free(guidance_scale=1.0), DISTRUST | dict(view="randaugment"))], "amst 4":
    [(text(guidance_scale=1.0), PLAIN | MORE), (free(guidance_scale=1.5, noise_scale=1.0), PLAIN | MORE),
     (free(guidance_scale=1.5, noise_scale=1.0), DISTRUST | dict(consistency_weight=0.0)),
     (free(guidance_scale=1.5, noise_scale=1.0), DISTRUST),
     (free(guidance_scale=1.5, noise_scale=1.0), DISTRUST | dict(relabel=0, threshold=0.9)),
     (text(guidance_scale=1.0), DISTRUST | dict(consistency_weight=0.0)),
     (free(guidance_scale=1.0, noise_scale=1.0), PLAIN | MORE),
     (free(guidance_scale=1.0, noise_scale=1.0), DISTRUST | dict(consistency_weight=0.0))], "amst 5": [
         (free(guidance_scale=1.5, noise_scale=1.0), DISTRUST | dict(consistency_on="all")),
         (free(guidance_scale=1.5, noise_scale=1.0), DISTRUST | dict(consistency_on="all", threshold=0.9)),
         (free(guidance_scale=1.0, noise_scale=1.0), DISTRUST | dict(consistency_on="all")),
         (free(guidance_scale=1.5, noise_scale=1.0), DISTRUST | dict(consistency_on="all", pretrain_epochs=8))
     ], "training": [(free(), RANDAUGMENT), (free(), PLAIN | dict(view="strong")), (free(), PLAIN | dict(mix="cutmix")),
                     (free(), RANDAUGMENT | dict(real_share=0.25))], "dreamda": [(dreamda(), PLAIN),
                                                                                 (dreamda(noise_scale=0.0), PLAIN),
                                                                                 (dreamda(guidance_scale=4.0), PLAIN),
                                                                                 (dreamda(method="asymmetric"), PLAIN),
                                                                                 (dreamda(strength=0.8,
                                                                                          guidance_scale=7.5,
                                                                                          share_start=True), PLAIN)],
    "img2img": [(img2img(), PLAIN | MORE), (img2img(guidance_scale=7.5), PLAIN | MORE),
                (img2img(strength=0.5), PLAIN | MORE)],
    "views": [(free(guidance_scale=1.5, noise_scale=1.0),
               DISTRUST | dict(consistency_on="all", view=view, epochs=epochs))
              for epochs in (25, 60) for view in ("weak", "randaugment")],
}
