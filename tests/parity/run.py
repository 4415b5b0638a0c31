"""Parity with PyTorch, live: both sides in their own process and environment, the same weights from the same files.

    python tests/parity/run.py --reference-python TORCH_ENVIRONMENT/bin/python [--work DIR] [--cases sd15 vae ...]

The environment of --reference-python holds requirements.txt. A table and one line `N passed, N failed`; the exit code
is 1 if anything failed. With --work the networks (6 GB) and PyTorch's outputs are kept there, and used again by the
next run.

The bars. float32: NMSE at most 1e-9, and no element off by more than 1e-3 of the largest. With LoRA: NMSE at most 1e-9.
bfloat16: NMSE against PyTorch in float32 at most 1.5 times that of PyTorch in bfloat16. Final latents of trajectories
and of inpainting: NMSE at most 1e-7. Tokens: equal.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from cases import CASES  # noqa: E402

MODEL = HERE.parents[1] / "python/dreamda/bundled/fashion-mini"
F32_NMSE, F32_LARGEST, BF16_RATIO, TRAJECTORY_NMSE = 1e-9, 1e-3, 1.5, 1e-7


def nmse(x: np.ndarray, reference: np.ndarray) -> float:
    reference = reference.astype(np.float64)
    return float(np.sum((x - reference) ** 2) / np.sum(reference**2))


class Report:
    def __init__(self) -> None:
        self.passed = self.failed = 0

    def line(self, case: str, what: str, verdict: bool, text: str) -> None:
        self.passed += verdict
        self.failed += not verdict
        print(f"{'ok  ' if verdict else 'FAIL'} {case:<12} {what:<34} {text}", flush=True)


def compare_networks(report: Report, name: str, work: Path) -> None:
    """One line for every data type and output, about the worse of the two turns."""
    reference, ours = (np.load(work / name / file) for file in ("reference.npz", "ours.npz"))
    for key in (k for k in ours.files if ".0." in k):
        dtype, _, quantity = key.split(".", 2)
        plain = quantity.removesuffix(" (two decoders)")
        errors, bars, largest = [], [], []
        for turn in (0, 1):
            x, expected = ours[f"{dtype}.{turn}.{quantity}"], reference[f"f32.{turn}.{plain}"]
            if x.shape != expected.shape:
                report.line(name, f"{dtype} {quantity}", False, f"shape {x.shape} instead of {expected.shape}")
                break
            errors.append(nmse(x, expected))
            bars.append(F32_NMSE if dtype == "f32" else BF16_RATIO * nmse(reference[f"bf16.{turn}.{plain}"], expected))
            largest.append(float(np.max(np.abs(x - expected)) / np.max(np.abs(expected))))
        else:
            worse = int(np.argmax(np.divide(errors, bars)))
            passed = errors[worse] <= bars[worse] and (dtype != "f32" or max(largest) <= F32_LARGEST)
            theirs = "" if dtype == "f32" else f"  PyTorch's {bars[worse] / BF16_RATIO:.1e}"
            report.line(name, f"{dtype} {quantity}", passed,
                        f"NMSE {errors[worse]:.1e}  max|diff| {max(largest):.1e} max|ref|{theirs}")
    changed = [k for k in ours.files if ".again." in k and not np.array_equal(ours[k], ours[k.replace("again", "0")])]
    report.line(name, "turn 0 again, bit for bit", not changed, ", ".join(changed))


def compare_arrays(report: Report, place: Path, names: Iterable[str] = (), *, limit: float = TRAJECTORY_NMSE,
                   suffix: str = "") -> None:
    """One line for every array, by its error. Without `names` all that the reference has; ours may end in `suffix`."""
    ours, reference = (np.load(place / f"{side}.npz") for side in ("ours", "reference"))
    for name in names or reference.files:
        error = nmse(ours[name + suffix], reference[name])
        report.line(place.name, name, error <= limit, f"NMSE {error:.1e}")


def compare_sdxl(report: Report, work: Path) -> None:
    """Latents by their error; pixels may differ by one where a value lies between two."""
    ours, reference = (np.load(work / "sdxl-img2img" / f"{side}.npz") for side in ("ours", "reference"))
    for name in reference.files:
        if name.endswith(".pixels"):
            off = np.abs(ours[name].astype(int) - reference[name])
            passed, text = off.max() <= 1 and (off > 0).mean() < 0.01, f"{(off > 0).sum()} of {off.size} differ"
        else:
            error = nmse(ours[name], reference[name])
            passed, text = error <= TRAJECTORY_NMSE, f"NMSE {error:.1e}"
        report.line("sdxl", name, bool(passed), text)


def compare_tokens(report: Report, work: Path) -> None:
    ours, reference = (np.load(work / "tokens" / f"{side}.npz") for side in ("ours", "reference"))
    for name in reference.files:
        same = ours[name].shape == reference[name].shape
        different = np.flatnonzero((ours[name] != reference[name]).any(axis=1)) if same else []
        text = f", different: {list(different[:9])}" if len(
            different) else "" if same else f", shape {ours[name].shape}"
        report.line("tokens", name, same and len(different) == 0, f"{len(reference[name])} texts{text}")


def compare_prompts(report: Report, work: Path) -> None:
    """Against A1111's rule; and against diffusers' long-prompt pipeline, each chunk scaled to the same mean."""
    ours, reference = (np.load(work / "prompts" / f"{side}.npz") for side in ("ours", "reference"))
    for name in ours.files:
        x, a1111, lpw = ours[name], reference[f"a1111.{name}"], reference[f"lpw.{name}"]
        if not x.shape == a1111.shape == lpw.shape:
            report.line("prompts", name, False, f"shape {x.shape} instead of {a1111.shape}")
            continue
        chunks = len(x) // 16
        if chunks > 1:
            lpw = np.concatenate([part * (own.mean() / part.mean()) for part, own in
                                  zip(np.split(lpw, chunks), np.split(a1111, chunks))])
        errors = nmse(x, a1111), nmse(x, lpw)
        report.line("prompts", name, max(errors) <= F32_NMSE, "NMSE {:.1e}, of long prompts {:.1e}".format(*errors))


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare dreamda with PyTorch, diffusers and transformers.")
    parser.add_argument("--reference-python",
                        required=True,
                        help="interpreter with torch, diffusers, transformers, peft (requirements.txt)")
    parser.add_argument("--ours-python", default=sys.executable, help="interpreter with dreamda (default: this one)")
    parser.add_argument("--work", type=Path, help="folder to keep networks and outputs in (default: a temporary one)")
    names = [*CASES, "loras", "lcm-lora", "trajectories", "pixels", "inpaint", "sdxl-img2img", "tokens", "prompts"]
    parser.add_argument("--cases", nargs="+", choices=names, default=names, metavar="CASE", help=", ".join(names))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dreamda-parity-") as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        report = Report()

        def run(python: str, script: str, *arguments: str) -> None:
            subprocess.run([python, str(HERE / script), *arguments], check=True)

        networks = [name for name in options.cases if name in CASES]
        if networks:
            run(options.reference_python, "reference.py", str(work), *networks)
            run(options.ours_python, "ours.py", str(work), *networks)
            for name in networks:
                compare_networks(report, name, work)
        if "loras" in options.cases:
            run(options.reference_python, "lora_reference.py", str(work / "loras"))
            run(options.ours_python, "lora_ours.py", str(work / "loras"))
            compare_arrays(report, work / "loras", limit=F32_NMSE)
        if "lcm-lora" in options.cases:
            run(options.ours_python, "lcm_lora_ours.py", str(work / "lcm-lora"))
            run(options.reference_python, "lcm_lora_reference.py", str(work / "lcm-lora"))
            compare_arrays(report, work / "lcm-lora")
        if "trajectories" in options.cases:
            from trajectory_cases import TRAJECTORIES

            # Ours first: it hands over the noise it has drawn.
            run(options.ours_python, "trajectory_ours.py", str(work / "trajectories"))
            run(options.reference_python, "trajectory_reference.py", str(work / "trajectories"), str(MODEL))
            compare_arrays(report, work / "trajectories", TRAJECTORIES)
        if "pixels" in options.cases:
            run(options.ours_python, "pixel_ours.py", str(work / "pixels"))
            run(options.reference_python, "pixel_reference.py", str(work / "pixels"))
            compare_arrays(report, work / "pixels")
        if "inpaint" in options.cases:
            run(options.ours_python, "inpaint_ours.py", str(work / "inpaint"))
            run(options.reference_python, "inpaint_reference.py", str(work / "inpaint"), str(MODEL))
            compare_arrays(report, work / "inpaint", suffix=".latents")
        if "sdxl-img2img" in options.cases:
            place = str(work / "sdxl-img2img")
            run(options.reference_python, "sdxl_reference.py", place, str(MODEL / "tokenizer"))
            run(options.ours_python, "sdxl_ours.py", place)
            run(options.reference_python, "sdxl_reference.py", place)
            compare_sdxl(report, work)
        if "tokens" in options.cases:
            run(options.ours_python, "token_ours.py", str(work / "tokens"))
            run(options.reference_python, "token_reference.py", str(work / "tokens"))
            compare_tokens(report, work)
        if "prompts" in options.cases:
            run(options.ours_python, "prompt_ours.py", str(work / "prompts"))
            run(options.reference_python, "prompt_reference.py", str(work / "prompts"), str(MODEL))
            compare_prompts(report, work)
        print(f"{report.passed} passed, {report.failed} failed")
        return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
