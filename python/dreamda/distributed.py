"""Work on many machines: a picklable callable for Ray Data, Spark and Dask, and `dreamda generate` on a Ray cluster.

    import ray
    from dreamda.distributed import Augmenter

    rows = ray.data.from_numpy(images).add_column("prompt", ...).add_column("key", ...)
    made = rows.map_batches(Augmenter, fn_constructor_args=["fashion-mini"],
                            fn_constructor_kwargs={"variants": 4, "steps": 20},
                            batch_size=16, num_cpus=1, concurrency=2)

    augmenter = Augmenter("fashion-mini", variants=4, steps=20)                                 # Dask: a batch per task
    parts = [dask.delayed(augmenter)(batch) for batch in batches]

An image's noise depends only on its key, so the result does not depend on the worker, the batch or repeated tasks.
"""
from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from . import __version__
from .runs.generate import SECONDS_A_SAVE, EngineError, Piece, images_a_piece
from .runs.inspection import BITS, differences, environment
from .generation.options import GenerationOptions, OptionKeywords
from .generation.pipeline import Pipeline, as_pixels
from .options import accepts, from_keywords

if TYPE_CHECKING:
    from typing_extensions import Unpack

START_SECONDS = 600.0   # the longest wait for the first worker to load the model
LOOK_SECONDS = 1.0      # between two checks of signals and the cluster
RETRIES = 3             # for a piece of work whose worker died


@accepts(GenerationOptions)
class Augmenter:
    """`Pipeline.augment` as a function of a batch of columns, for use in other processes.

    The pickle contains only the arguments; each process loads the model at the first use.

    Parameters
    ----------
    model, dtype, threads, size, vae, loras, scheduler, embeddings
        As for `Pipeline.load`. `threads` defaults to OMP_NUM_THREADS, which Ray sets to a worker's CPUs.
    image, prompt, key : str
        The names of the columns read.
    explode : bool
        Return one row per new image (K for each row of the batch). False: one row per row of the batch, for engines
        that require the same number of rows as in the batch (Spark's ``predict_batch_udf``).
    GenerationOptions
        Its fields, by keyword.

    Raises
    ------
    ValueError, FileNotFoundError
        As for `GenerationOptions` and `Pipeline.load`.
    """

    def __init__(self,
                 model: str,
                 *,
                 dtype: str = "auto",
                 threads: int | None = None,
                 size: tuple[int, int] | None = None,
                 vae: str | None = None,
                 loras: Sequence[tuple[str, float]] = (),
                 scheduler: str | None = None,
                 embeddings: Sequence[str | tuple[str, str | None]] = (),
                 image: str = "image",
                 prompt: str = "prompt",
                 key: str = "key",
                 explode: bool = True,
                 **options: Unpack[OptionKeywords]) -> None:
        self.settings = from_keywords(GenerationOptions, Augmenter, options)
        self.model = str(model)
        self._options: dict[str, Any] = dict(dtype=dtype, threads=threads, size=size, vae=vae, loras=loras,
                                             scheduler=scheduler, embeddings=embeddings)
        self.image, self.prompt, self.key, self.explode = image, prompt, key, explode
        self.pipeline  # refuse a wrong model now

    @cached_property
    def pipeline(self) -> Pipeline:
        """The model, loaded in this process at the first use."""
        return Pipeline.load(self.model, **self._options)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "pipeline"}

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Make the variants of a batch of images.

        Parameters
        ----------
        batch : mapping of str to array
            The image column is uint8 (N, H, W, 3), or N such images of any sizes; the prompt column N texts, or N lists
            with a text for each variant; the key column N texts or whole numbers, a different one for each image of the
            data set. Arrays may be read-only.

        Returns
        -------
        dict of str to array
            With `explode`, N * K rows: the image column is uint8 (N * K, height, width, 3), the others are repeated,
            and ``"variant"``, int64, numbers the images of each row from 0. Without `explode`, N rows with an image
            column of uint8 (N, K, height, width, 3).

        Raises
        ------
        ValueError
            A column is missing or has the wrong form.
        """
        for name, what in ((self.image, "image"), (self.prompt, "prompt"), (self.key, "key")):
            if name not in batch:
                raise ValueError(
                    f"the batch has no column {name!r} (it has {', '.join(sorted(batch))}); "
                    f"name the right one with {what}=")
        column = batch[self.image]
        images, _ = as_pixels(list(column) if getattr(column, "dtype", None) == object else column)
        keys = [key.item() if isinstance(key, np.generic) else key for key in batch[self.key]]
        prompts = [str(each) if isinstance(each, str) else [str(text) for text in each] for each in batch[self.prompt]]
        made = self.pipeline._augment(images, prompts, keys, self.settings)
        if not self.explode:
            return {**batch, self.image: made}
        variants = made.shape[1]
        others = {
            name: np.repeat(np.asarray(column), variants, axis=0)
            for name, column in batch.items() if name != self.image
        }
        if not all(isinstance(each, str) for each in prompts):
            of_rows = [[each] * variants if isinstance(each, str) else each for each in prompts]
            others[self.prompt] = np.array([text for texts in of_rows for text in texts], object)
        return {
            **others, self.image: made.reshape(-1, *made.shape[2:]), "variant": np.tile(np.arange(variants), len(made))
        }


class RayWorkers:
    """The workers of a Ray cluster, for `generate_dataset`.

    The workers compute; this process reads and writes all images, so only the model has to be on every machine.

        with RayWorkers("fashion-mini", address="auto") as workers:
            generate_dataset(folder, "synthetic", workers, settings, engine=workers.stream)

    If a worker dies, another one repeats its piece of work, with bitwise identical results.

    Parameters
    ----------
    model : str
        As for `Pipeline.load`; a folder must exist on every machine.
    address : str, optional
        The address of the cluster, as for ``ray.init``. Default: RAY_ADDRESS, else a new cluster on this machine.
    threads : int, optional
        The threads of each worker. Default: the CPUs of the smallest node, so each node has at least one worker.
    dtype, size, vae, loras, scheduler, embeddings
        As for `Pipeline.load`.

    Attributes
    ----------
    size, dtype, fingerprint, threads_matter, conditioning, folder, vae_folder, loras, embeddings
        As in `Pipeline`, from the first worker.
    threads : int
    count : int
        The number of workers when all have started.
    environment : dict
        The first worker's `dreamda.runs.inspection.environment`.
    notes : list of str
        Notes for the user.

    Raises
    ------
    ImportError
        Ray is not installed.
    ValueError
        There is no cluster at the address, no node has enough CPUs, or a worker failed to load the model.
    EngineError
        No worker could start, because the cluster is in use.
    """

    def __init__(self, model: str, *, address: str | None = None, threads: int | None = None, dtype: str = "auto",
                 size: tuple[int, int] | None = None, vae: str | None = None,
                 loras: Sequence[tuple[str, float]] = (), scheduler: str | None = None,
                 embeddings: Sequence[str | tuple[str, str | None]] = ()) -> None:
        try:
            import ray
        except ImportError:
            raise ImportError('--engine ray needs Ray: pip install "dreamda-c[ray]"') from None
        self._ray = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            try:
                _knock(address or "")
                ray.init(address=address,
                         include_dashboard=None if address else False,
                         log_to_driver=False,
                         logging_level=logging.ERROR)
            except (OSError, ValueError, RuntimeError) as error:
                raise ValueError(
                    f"--address {address}: there is no Ray cluster to be reached ({str(error).splitlines()[0][:200]}); "
                    "start one with: ray start --head") from None
        self.notes: list[str] = []
        self._starting: dict[Any, Any] = {}
        try:
            self.threads = threads or min((cpus for cpus in self._cpus() if cpus), default=1)
            self.count = self._capacity()
            if not self.count:
                raise ValueError(
                    f"--threads {self.threads}: no node of the Ray cluster has so many CPUs, the largest has "
                    f"{max(self._cpus(), default=0)}; give fewer, or start nodes with more")
            worker: Any = ray.remote(_Worker).options(num_cpus=self.threads,
                                                      max_restarts=-1,
                                                      max_task_retries=RETRIES,
                                                      scheduling_strategy="SPREAD")
            for _ in range(self.count):
                actor = worker.remote(model, dict(dtype=dtype, threads=self.threads, size=size, vae=vae, loras=loras,
                                                  scheduler=scheduler, embeddings=embeddings))
                self._starting[actor.about.remote()] = actor
            self._idle = [self._first()]
        except BaseException:
            self.close()
            raise

    def _cpus(self) -> list[int]:
        """The CPUs of every live node."""
        return [int(node["Resources"].get("CPU", 0)) for node in self._ray.nodes() if node["Alive"]]

    def _capacity(self) -> int:
        """The number of workers that the cluster can run now."""
        return sum(n // self.threads for n in self._cpus())

    def _first(self) -> Any:
        """Wait for a worker that has loaded the model."""
        until = time.monotonic() + START_SECONDS
        while not (ready := self._ray.wait(list(self._starting), timeout=LOOK_SECONDS)[0]):
            if time.monotonic() > until:
                free = self._ray.available_resources().get("CPU", 0)
                raise EngineError(
                    f"no worker of {self.threads} CPUs has started within {START_SECONDS:.0f} s ({free:.0f} CPUs are "
                    "free); wait until others have finished, or give fewer --threads")
        self._about = about = self._get(ready[0])
        self.size, self.dtype, self.fingerprint = about["size"], about["dtype"], about["fingerprint"]
        self.threads_matter, self.environment = about["threads_matter"], about["environment"]
        self.folder, self.vae_folder, self.loras = about["folder"], about["vae_folder"], about["loras"]
        self.embeddings, self.conditioning = about["embeddings"], about["conditioning"]
        self.notes += [text for lora in self.loras for text in lora.warnings()]
        if about["dreamda"] != __version__:
            raise ValueError(
                f"the machine {about['host']} has dreamda {about['dreamda']}, this one {__version__}; make them equal")
        return self._starting.pop(ready[0])

    def _get(self, reference: Any) -> Any:
        """The result of a worker; raises the worker's own exception."""
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            raise EngineError(
                f"a worker died {RETRIES + 1} times over one piece of work ({str(error).splitlines()[0][:200]}); "
                "perhaps its machine lacks memory: give more --threads, so that fewer workers share it. "
                "Finished images stay; run the same command again to resume") from None

    def _welcome(self, reference: Any) -> None:
        """Accept a worker that has loaded the model, unless it would make different images."""
        about, actor = self._get(reference), self._starting.pop(reference)
        here = self._about
        for name, of in (("dreamda", "version of dreamda"), ("fingerprint", "model"), ("dtype", "dtype")):
            if about[name] != here[name]:
                raise ValueError(
                    f"the machine {about['host']} has another {of} than {here['host']} ({about[name]} instead of "
                    f"{here[name]}); make them equal")
        if differing := differences(self.environment, about["environment"], BITS):
            self.notes.append(
                f"the machine {about['host']} differs from {here['host']}, {differing}: "
                "the last bits of its images may differ")
        self._idle.append(actor)

    def _augment(self, images: np.ndarray, prompts: Sequence[str | Sequence[str]], keys: Sequence[str],
                 settings: GenerationOptions) -> np.ndarray:
        """`Pipeline._augment` on one worker."""
        return self._get(self._idle[0].augment.remote(images, list(prompts), list(keys), settings))

    def stream(self, take: Callable[[int], Piece | None], settings: GenerationOptions, stop: Callable[[], bool],
               within: Callable[[float], None]) -> Iterator[tuple[Piece, np.ndarray]]:
        """A `dreamda.runs.generate.Engine` that yields pieces as the workers finish them."""
        batch, busy = 1, {}
        while True:
            while self._idle and not stop() and (piece := take(batch)):
                actor = self._idle.pop()
                reference = actor.make.remote(piece.images, piece.prompts, piece.keys, piece.first,
                                              piece.options(settings), piece.around)
                busy[reference] = actor, piece
            if not busy:
                return
            done, _ = self._ray.wait([*busy, *self._starting], timeout=LOOK_SECONDS)
            if not done and not self._capacity():
                raise EngineError(
                    f"the Ray cluster has no node with {self.threads} CPUs left; what is finished stays: start one, "
                    "then run the same command again to resume")
            for reference in done:
                if reference in self._starting:
                    self._welcome(reference)
                    continue
                made, seconds = self._get(reference)
                actor, piece = busy.pop(reference)
                self._idle.append(actor)
                batch = images_a_piece(made, seconds)
                yield piece, made

    def close(self) -> None:
        """Stop the workers and leave the cluster."""
        if self._ours:
            self._ray.shutdown()
        else:
            for actor in (*self._starting.values(), *getattr(self, "_idle", ())):
                self._ray.kill(actor)

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def _knock(address: str) -> None:
    """Raise OSError if nothing listens at HOST:PORT; Ray itself would retry for minutes without a message."""
    host, colon, port = address.rpartition("//")[2].rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=START_SECONDS / 60).close()


class _Worker:
    """The part that runs in the cluster: a pipeline.

    `about` loads it, so that a loading error is returned and does not end the worker.
    """

    def __init__(self, model: str, options: dict[str, Any]) -> None:
        self._load = partial(Pipeline.load, model, **options)

    @cached_property
    def _pipeline(self) -> Pipeline:
        return self._load()

    def about(self) -> dict[str, Any]:
        pipe = self._pipeline
        return {
            "size": pipe.size, "dtype": pipe.dtype, "fingerprint": pipe.fingerprint, "threads_matter":
            pipe.threads_matter, "folder": pipe.folder.resolve(),
            "vae_folder": pipe.vae_folder and pipe.vae_folder.resolve(), "conditioning": pipe.conditioning,
            "loras": pipe.loras, "embeddings": pipe.embeddings, "dreamda":
            __version__, "environment": environment(), "host": socket.gethostname()
        }

    def augment(self, images: np.ndarray, prompts: list[str | Sequence[str]], keys: list[str],
                settings: GenerationOptions) -> np.ndarray:
        return self._pipeline._augment(images, prompts, keys, settings)

    def make(self, images: np.ndarray, prompts: list[str | Sequence[str]], keys: list[str], first: int,
             options: GenerationOptions, around: dict[str, Any]) -> tuple[np.ndarray, float]:
        """The variants, and the seconds they took; for a single real image, as many as SECONDS_A_SAVE allows."""
        begun = time.monotonic()
        enough = (lambda: time.monotonic() > begun + SECONDS_A_SAVE) if len(images) == 1 else None
        made = self._pipeline._augment(images, prompts, keys, options, first=first, stop=enough, **around)
        return made, time.monotonic() - begun
