"""Plans: state, threads, memory, faults, noise at the bottleneck, and what bad arguments get."""

import gc
import sys
import threading
import time

import numpy as np
import pytest

from networks import CLIP, UNET, VAE, load, unet
from random_weights import weight

from dreamda import UNet, _core, normals
from dreamda.networks.hub import BUNDLED
from dreamda.networks.models import MAX_SHAPES, resolve_dtype

MODEL = BUNDLED / "fashion-mini"
HAS_BF16 = resolve_dtype("auto") == "bf16"
BF16 = pytest.param("bf16",
                    marks=pytest.mark.skipif(not HAS_BF16, reason="this processor has no bfloat16 instructions"))
DTYPES = ["f32", BF16]


def same(a, b):
    return all(np.array_equal(a[k], b[k]) for k in a.keys() | b.keys())


# ------------------------------------------------------------------------------------------------ state


@pytest.mark.parametrize("dtype", DTYPES)
def test_runs_do_not_depend_on_earlier_runs(dtype):
    plan, inputs = unet(dtype=dtype)
    first = plan.run(inputs)
    other = plan.run({k: v * np.float32(1.5) for k, v in inputs.items()})
    assert not np.array_equal(first["sample"], other["sample"])
    assert same(first, plan.run(inputs))


def test_the_context_is_remembered_by_content():
    plan, inputs = unet()
    first = plan.run(inputs)
    plan.run(inputs)
    assert all(r["ms"] == 0 for r in plan.profile() if r["name"].endswith("attn2.to_k")), "keys and values are kept"
    changed = inputs | {"context": inputs["context"] + 1}
    second = plan.run(changed)
    assert not np.array_equal(first["sample"], second["sample"])
    inputs["context"][:] += 1  # the same array object with new contents
    assert same(second, plan.run(inputs))
    assert same(second, unet()[0].run(changed))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [2, 3, 5])
def test_a_row_does_not_depend_on_its_place_or_neighbours(dtype, rows):
    plan, inputs = unet(rows=rows, height=12, width=8, dtype=dtype)
    whole = plan.run(inputs)
    for shift in range(1, rows):
        rolled = plan.run({k: np.roll(v, shift, axis=0) for k, v in inputs.items()})
        assert np.array_equal(np.roll(whole["sample"], shift, axis=0), rolled["sample"])


def test_plans_of_one_model_share_packed_weights():
    model = _core.Model("unet", UNET)
    small = load(model.plan(rows=1, height=8, width=8, tokens=5, dtype="f32", threads=2), model)
    weights = small.memory["weights"]
    large = model.plan(rows=4, height=16, width=16, tokens=5, dtype="f32", threads=2)
    load(large, model)
    assert large.memory["weights"] < 2 * weights
    again = model.plan(rows=1, height=8, width=8, tokens=5, dtype="f32", threads=2)
    assert again.missing() == []


def test_packed_weights_of_a_plan_that_is_gone_are_freed_by_the_next_one():
    model = _core.Model("unet", UNET)

    def made(size):
        return load(model.plan(rows=1, height=size, width=size, tokens=5, dtype="f32", threads=2), model)

    only_large = made(32).memory["weights"]
    small = made(4)
    only_small = small.memory["weights"]
    large = made(32)
    assert max(only_small, only_large) < large.memory["weights"] < only_small + only_large, "both are in use"
    inputs = {
        "sample": np.ones((1, 4, 4, 4), np.float32),
        "timestep": np.ones(1, np.float32),
        "context": np.ones((1, 5, 24), np.float32)
    }
    first = small.run(inputs)
    del small
    assert large.memory["weights"] > only_large, "a plan of the same shape may follow"
    assert model.plan(rows=1, height=4, width=4, tokens=5, dtype="f32", threads=2).missing() == []
    assert made(32).memory["weights"] == only_large
    again = made(4)
    del large
    assert same(again.run(inputs), first)
    assert made(4).memory["weights"] == only_small


def denoised(unet, size):
    return unet(np.full((1, 4, size, size), 0.5, np.float32), 500, np.ones((1, 5, unet.config["context_dim"])))


def test_evicted_shapes_free_their_packed_weights():
    evicted, *kept = 64, 4, 8, 12, 20
    assert len(kept) == MAX_SHAPES
    unet, other = (UNet.load(MODEL / "unet", dtype="f32", threads=2) for _ in range(2))
    first = denoised(unet, evicted)
    for size in kept[:-1]:
        denoised(unet, size)
    live = _core.info()["live_bytes"]
    denoised(unet, kept[-1])
    assert _core.info()["live_bytes"] < live - (4 << 20)
    for size in kept:
        denoised(other, size)
    shape = dict(rows=1, height=kept[-1], width=kept[-1], tokens=5)
    assert unet.plan(**shape).memory["weights"] == other.plan(**shape).memory["weights"]
    assert np.array_equal(denoised(unet, evicted), first), "read from the file again"


# ------------------------------------------------------------------------------------------------ noise at the
# bottleneck


@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_reaches_only_the_rows_asked_for(dtype):
    plan, inputs = unet(rows=3, dtype=dtype)
    clean = plan.run(inputs)
    _, c, h, w = plan.inputs["noise"][1]
    noise = np.random.default_rng(0).standard_normal((3, c, h, w)).astype(np.float32)
    noisy = plan.run(inputs | {"noise": noise, "noise_scale": np.array([0, 3, 0], np.float32)})
    assert np.array_equal(clean["bottleneck"], noisy["bottleneck"]), "the bottleneck that is returned is the clean one"
    for row, touched in enumerate([False, True, False]):
        assert np.array_equal(clean["sample"][row], noisy["sample"][row]) is not touched


@pytest.mark.parametrize("dtype", DTYPES)
def test_keyed_noise_is_the_published_noise(dtype):
    plan, inputs = unet(rows=2, dtype=dtype)
    shape = plan.inputs["noise"][1][1:]
    seed, image = 2**40 + 5, 2**63 + 11
    noise = np.stack([normals(seed, image, variant, 9, 3, row, shape) for row, variant in enumerate((4, 0))])
    words = [seed & 0xFFFFFFFF, seed >> 32, image & 0xFFFFFFFF, image >> 32]
    keys = np.array([[*words, 4, 9, 3, 0], [*words, 0, 9, 3, 1]], np.uint32)
    scale = np.array([3, 1.5], np.float32)
    given = plan.run(inputs | {"noise": noise, "noise_scale": scale})
    keyed = plan.run(inputs | {"noise_key": keys, "noise_scale": scale})
    assert same(given, keyed)


def test_two_decoders_agree_with_one():
    one, inputs = unet(rows=2)
    two, _ = unet(rows=2, decoders=2)
    noise = np.ones(one.inputs["noise"][1], np.float32)
    noisy = inputs | {"noise": noise, "noise_scale": np.full(2, 2, np.float32)}
    both = two.run(noisy)
    assert np.array_equal(both["sample"], one.run(inputs)["sample"])
    assert np.array_equal(both["perturbed"], one.run(noisy)["sample"])
    assert np.array_equal(both["bottleneck"], one.run(inputs)["bottleneck"])


# ------------------------------------------------------------------------------------------------ threads


def test_many_threads_share_plans():
    plan_a, inputs = unet()
    plan_b, _ = unet(threads=1)
    expected = {id(p): p.run(inputs) for p in (plan_a, plan_b)}
    failures = []

    def work(plan):
        for _ in range(10):
            if not same(plan.run(inputs), expected[id(plan)]):
                failures.append("different bits")

    threads = [threading.Thread(target=work, args=(p,)) for p in (plan_a, plan_b) * 4]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


def test_many_threads_may_evict_each_others_shapes():
    unet, sizes = UNet.load(MODEL / "unet", dtype="f32", threads=1), (4, 6, 8, 12, 16, 32)
    expected, failures = {size: denoised(unet, size) for size in sizes}, []

    def work(first):
        for turn in range(6):
            size = sizes[(first + turn) % len(sizes)]
            if not np.array_equal(denoised(unet, size), expected[size]):
                failures.append(size)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


def test_the_gil_is_released_during_a_run():
    plan, inputs = unet(rows=8, height=64, width=64)
    plan.run(inputs)
    ticks, stop = [], threading.Event()

    def count():
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0)

    counter = threading.Thread(target=count)
    counter.start()
    start = time.perf_counter()
    plan.run(inputs)
    end = time.perf_counter()
    stop.set()
    counter.join()
    inside = [t for t in ticks if start + 0.1 * (end - start) < t < end - 0.1 * (end - start)]
    assert inside, "another thread has to get a turn while the plan runs"


@pytest.mark.parametrize("dtype", DTYPES)
def test_thread_counts_agree_closely(dtype):
    results = [unet(threads=threads, dtype=dtype)[0].run(unet()[1])["sample"] for threads in (1, 2)]
    error = np.mean((results[0] - results[1]) ** 2) / np.mean(results[0] ** 2)
    assert error < (1e-12 if dtype == "f32" else 1e-4)


# ------------------------------------------------------------------------------------------------ memory and faults


def test_every_failed_allocation_is_a_memory_error_and_leaks_nothing():
    gc.collect()
    before = _core.info()["live_bytes"]
    inputs = unet()[1]
    for n in range(100000):
        _core._alloc_fail_after(n)
        try:
            model = _core.Model("unet", UNET)
            plan = load(model.plan(rows=2, height=8, width=8, tokens=5, dtype="f32", threads=2), model)
            result = plan.run(inputs)
        except MemoryError:
            continue
        finally:
            _core._alloc_fail_after(-1)
            model = plan = None
            assert _core.info()["live_bytes"] == before
        break
    assert n > 100, "the loop has to have met the allocations"
    assert np.isfinite(result["sample"]).all()


def test_a_failed_load_can_be_tried_again():
    model = _core.Model("clip_text", CLIP)
    plan = model.plan(rows=1, tokens=6, dtype="f32", threads=1)
    shapes = dict(model.parameters())
    tokens = {"tokens": np.arange(6, dtype=np.int32)[None]}
    for name in plan.missing():
        for n in range(20):
            _core._alloc_fail_after(n)
            try:
                plan.load(name, weight(name, shapes[name]))
                break
            except MemoryError:
                with pytest.raises(ValueError, match="not loaded"):
                    plan.run(tokens)
            finally:
                _core._alloc_fail_after(-1)
    fresh = load(_core.Model("clip_text", CLIP).plan(rows=1, tokens=6, dtype="f32", threads=1), model)
    assert same(plan.run(tokens), fresh.run(tokens))


def test_references_and_memory_stay_level():
    plan, inputs = unet(rows=1)
    plan.run(inputs)
    before = [sys.getrefcount(v) for v in inputs.values()]
    live = _core.info()["live_bytes"]
    for _ in range(200):
        plan.run(inputs)
        plan.profile(), plan.missing(), plan.inputs, plan.outputs, plan.memory
    assert [sys.getrefcount(v) for v in inputs.values()] == before
    assert _core.info()["live_bytes"] == live


# ------------------------------------------------------------------------------------------------ arrays


def test_inputs_are_taken_as_they_come_and_never_written():
    plan, inputs = unet()
    expected = plan.run(inputs)
    for array in inputs.values():
        array.flags.writeable = False
    assert same(plan.run(inputs), expected)
    strided = {k: np.repeat(v, 2, axis=-1)[..., ::2] for k, v in inputs.items()}
    swapped = {k: v.astype(">f4") for k, v in inputs.items()}
    doubles = {k: v.astype(np.float64) for k, v in inputs.items()}
    lists = {k: v.tolist() for k, v in inputs.items()}
    for form in (strided, swapped, doubles, lists):
        assert same(plan.run(form), expected)


@pytest.mark.parametrize(
    "change, message", [({"sample": np.zeros(
        (2, 4, 8, 9), np.float32)}, r"sample: expected an array of shape \(2, 4, 8, 8\), got \(2, 4, 8, 9\)"),
                        ({"sample": np.zeros((2, 4, 8), np.float32)}, "sample: expected an array of shape"),
                        ({"timestep": np.array(["a", "b"])}, "timestep: expected an array of float32"),
                        ({"timestep": np.array([1j, 2])}, "timestep: expected an array of float32"),
                        ({"sample": None}, "input 'sample' is missing"),
                        ({"extra": np.zeros(3)}, "this plan has no input of one of the given names"),
                        ({"noise_scale": np.ones(2)}, "neither noise nor noise_key"),
                        ({"noise_key": np.zeros((2, 8))}, "noise_key: expected an array of integers"), ],
)
def test_bad_inputs(change, message):
    plan, inputs = unet()
    with pytest.raises(ValueError, match=message):
        plan.run(inputs | change)
    assert np.isfinite(plan.run(inputs)["sample"]).all(), "and the plan still works"


def test_bad_tokens():
    model = _core.Model("clip_text", CLIP)
    plan = load(model.plan(rows=1, tokens=4, dtype="f32", threads=1), model)
    for bad in (-1, CLIP["vocab_size"]):
        with pytest.raises(ValueError, match="outside the vocabulary"):
            plan.run({"tokens": np.array([[1, 2, bad, 3]], np.int32)})


def test_bad_parameters():
    model = _core.Model("vae_decoder", VAE)
    plan = model.plan(rows=1, height=8, width=8, dtype="f32", threads=1)
    name, shape = next((n, s) for n, s in model.parameters() if len(s) == 4)
    with pytest.raises(ValueError, match="no parameter 'nonsense'"):
        plan.load("nonsense", np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="another shape"):
        plan.load(name, np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="expected float32, float16 or uint16"):
        plan.load(name, np.zeros(shape, np.float64))
    for bad in (np.nan, np.inf, -np.inf):
        values = np.zeros(shape, np.float32)
        values.flat[values.size // 2] = bad
        with pytest.raises(ValueError, match=f"'{name}' holds NaN or infinite values"):
            plan.load(name, values)
    with pytest.raises(ValueError, match="not loaded yet"):
        plan.run({"latent": np.zeros((1, 4, 4, 4), np.float32)})


def test_the_vae_decoder_holds_little_more_than_three_images_of_its_last_level():
    """The first block there gets twice the channels: its norms, its first convolution and its sum are made in place."""
    config = VAE | dict(block_out_channels=(128, 256, 512, 512), layers_per_block=2, norm_num_groups=32)
    plan = _core.Model("vae_decoder", config).plan(rows=1, height=512, width=512, dtype="f32", threads=2)
    assert plan.memory["arena"] < 3.3 * 4 * 128 * 512 * 512


def test_long_rows_that_are_whole_pages_apart():
    """Before AVX-512 a linear layer of 3072 inputs reads a padded copy of them: it agrees with one of more inputs, the
    others zero."""
    tokens, results = {"tokens": np.arange(4, dtype=np.int32)[None]}, []
    for inputs in (3072, 3088):
        model = _core.Model("clip_text", CLIP | {"intermediate_size": inputs})
        plan = model.plan(rows=1, tokens=4, dtype="f32", threads=2)
        for name, shape in model.parameters():
            values = np.zeros(shape, np.float32)
            values[tuple(slice(3072 if size == 3088 else size)
                         for size in shape)] = weight(name, tuple(3072 if size == 3088 else size for size in shape))
            plan.load(name, values)
        results.append(plan.run(tokens))
    for name, first in results[0].items():
        assert np.abs(first - results[1][name]).max() <= 1e-5 * np.abs(first).max()


@pytest.mark.parametrize("kind", [np.float16, np.uint16])
def test_half_precision_files(kind):
    model, reference = _core.Model("clip_text", CLIP), _core.Model("clip_text", CLIP)
    plan = model.plan(rows=1, tokens=4, dtype="f32", threads=1)
    other = reference.plan(rows=1, tokens=4, dtype="f32", threads=1)
    for name, shape in model.parameters():
        values = weight(name, shape)
        if kind is np.float16:
            half = values.astype(np.float16)
            full = half.astype(np.float32)
        else:
            half = (values.view(np.uint32) >> 16).astype(np.uint16)
            full = (half.astype(np.uint32) << 16).view(np.float32)
        plan.load(name, half)
        other.load(name, full)
    tokens = {"tokens": np.arange(4, dtype=np.int32)[None]}
    assert same(plan.run(tokens), other.run(tokens))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(norm_num_groups=7), "norm_num_groups 7 does not divide 16 channels"),
        (dict(heads=[3, 4]), "3 heads do not divide 16 channels"),
        (dict(block_out_channels=[]), "'block_out_channels' has 0 entries"),
        (dict(block_out_channels=[16] * 9), "'block_out_channels' has 9 entries"),
        (dict(layers_per_block=[1]), "'layers_per_block' has 1 entries, but 2 are possible"),
        (dict(layers_per_block=[1, 200000]), "skip connections|operations"),
        (dict(transformer_layers=[1000000, 1]), "operations"),
        (dict(context_dim=0), "'context_dim' is 0, but there is cross-attention"),
        (dict(down_attention=[3, 0]), "'down_attention' has 3, but only 0 to 2 are possible"),
        (dict(mid_resnets=3), "'mid_resnets' is 3, but only 0 to 2 are possible"),
        (dict(mid_attention=2, mid_attention_groups=5), "norm_num_groups 5 does not divide 32 channels"),
        (dict(class_embedding=1), "'num_class_embeds' is 0, but there is a table of classes"),
        (dict(class_embedding=4), "'class_embedding' is 4, but only 0 to 3 are possible"),
        (dict(context_dim=2**40), "'context_dim'"),
        (dict(context_dim="many"), "'context_dim' has to be a whole number"),
        (dict(norm_eps=float("nan")), "'norm_eps' has to be a number"),
        (dict(in_channels=-4), "'in_channels' is -4"),
    ],
)
def test_bad_configs(change, message):
    with pytest.raises(ValueError, match=message):
        model = _core.Model("unet", UNET | change)
        model.plan(rows=1, height=8, width=8, tokens=4, dtype="f32", threads=1)


@pytest.mark.parametrize("key", sorted(UNET))
def test_a_missing_key_is_named(key):
    with pytest.raises(ValueError, match=f"'{key}' is missing"):
        _core.Model("unet", {k: v for k, v in UNET.items() if k != key})


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(rows=0), "0 rows"),
        (dict(dtype="f16"), "dtype: 'f16' is unknown: use f32 or bf16"),
        (dict(threads=0), "threads: 0 is not possible"),
        (dict(height=1 << 20, width=1 << 20), "not possible"),
        (dict(height=1 << 15, width=(1 << 15) + 8), "not possible"),
        (dict(decoders=3), "3 decoders"),
    ],
)
def test_bad_plans(change, message):
    model = _core.Model("unet", UNET)
    shape = dict(rows=1, height=8, width=8, tokens=4, dtype="f32", threads=1)
    with pytest.raises(ValueError, match=message):
        model.plan(**shape | change)


@pytest.mark.skipif(HAS_BF16, reason="this processor has bfloat16 instructions")
def test_bf16_is_refused_where_it_would_be_emulated():
    with pytest.raises(ValueError, match="dtype bf16 needs a processor with AVX512-BF16 or AMX .*: use f32"):
        unet(dtype="bf16")


@pytest.mark.parametrize(("height", "folded"), [(8, True), (7, False)])
def test_an_upsampling_that_doubles_is_folded_into_its_convolution(height, folded):
    plan, inputs = unet(height=height, width=8)
    plan.run(inputs)
    rows = plan.profile()
    assert ("upsample" not in {r["op"] for r in rows}) == folded
    assert any(r["name"] == "up_blocks.0.upsamplers.0.conv" and ("winograd" in r["implementation"]) == folded
               for r in rows)


def test_a_profile_names_every_op():
    plan, inputs = unet()
    plan.run(inputs)
    rows = plan.profile()
    assert {"conv", "linear", "attention", "group_norm", "layer_norm", "add_noise"} <= {r["op"] for r in rows}
    assert any(r["name"] == "down_blocks.0.resnets.0.conv1" and r["gflops"] > 0 and r["ms"] > 0 for r in rows)
    assert not any(r["implementation"].startswith("ref") for r in rows), "a reference implementation is a bug"


# ------------------------------------------------------------------------------------------------ weights, part by part

# 376 channels end between two blocks of any layout and take several parts, as GEGLU's rows do; up, the shortcut is
# split by columns. Of the text encoders' stacked queries, keys and values, 1088 rows fill their blocks and 1032 do not.
WIDE = {
    "unet": ("unet", UNET | dict(block_out_channels=[376],
                                 layers_per_block=[1],
                                 down_attention=[True],
                                 up_attention=[True],
                                 transformer_layers=[1],
                                 up_transformer_layers=[1, 1],
                                 heads=[4]), dict(rows=1, height=4, width=4, tokens=5)),
    **{
        f"text, {size}": ("clip_text", CLIP | dict(hidden_size=size, num_hidden_layers=1, num_attention_heads=8),
                          dict(rows=1, tokens=6))
        for size in (1088, 1032)
    },
}
SEVERAL_PARTS = {
    "unet": "mid_block.resnets.1.conv2.weight", "text, 1088": "text_model.encoder.layers.0.self_attn.v_proj.weight",
    "text, 1032": "text_model.encoder.layers.0.self_attn.v_proj.weight"
}


def wide(case, dtype="f32"):
    """A plan without weights, and what to run it with."""
    family, config, shape = WIDE[case]
    plan = _core.Model(family, config).plan(dtype=dtype, threads=2, **shape)
    rng = np.random.default_rng(3)
    inputs = {n: (rng.standard_normal(s) * 2).astype(kind) if kind == "float32" else np.ones(s, kind)
              for n, (kind, s) in plan.inputs.items() if n in ("sample", "timestep", "context", "tokens")}
    return plan, inputs


@pytest.fixture(scope="module")
def wide_weights():
    """By case: every parameter, made once."""
    return {
        case: {n: weight(n, s)
               for n, s in _core.Model(family, config).parameters()}
        for case, (family, config, _) in WIDE.items()
    }


def stored(file, weights, kind="float32"):
    """Writes the tensors one after another, not aligned to anything; what `read` takes of each, and the arrays that it
    should be like."""
    places, arrays, offset = {}, {}, 3
    with open(file, "wb") as stream:
        stream.write(bytes(offset))
        for name, values in weights.items():
            arrays[name] = (values.view(np.uint32) >> 16).astype(np.uint16) if kind == "uint16" else values.astype(kind)
            places[name] = (file, kind, offset)
            offset += stream.write(arrays[name].tobytes())
    return places, arrays


@pytest.mark.parametrize("kind", ["float32", "float16", "uint16"])
@pytest.mark.parametrize("case", WIDE)
def test_reading_is_loading(case, kind, wide_weights, tmp_path):
    read, inputs = wide(case)
    loaded, _ = wide(case)
    places, arrays = stored(tmp_path / "weights", wide_weights[case], kind)
    for name in reversed(places):
        read.read(name, *places[name])
    for name, array in arrays.items():
        loaded.load(name, array)
    assert read.missing() == loaded.missing() == []
    result = read.run(inputs)
    assert same(result, loaded.run(inputs)) and all(np.isfinite(v).all() for v in result.values())


def rolled(weights, names, step):
    """The network with a layer's channels in another order: a roll of the first names' rows and of the second names'
    columns."""
    rows, cols = names
    changed = {n: np.roll(weights[n], step, axis=0)
               for n in rows} | {n: np.roll(weights[n], step, axis=1)
                                 for n in cols}
    return weights | changed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", WIDE)
def test_no_row_depends_on_its_part(case, dtype, wide_weights):
    """Channels within a layer may stand in any order: rows of the last part, at a layout's border, change places with
    others."""
    weights = wide_weights[case]
    turned = weights
    if case == "unet":
        for block in (n.removesuffix(".conv1.weight") for n in weights if n.endswith("conv1.weight")):
            rows = [f"{block}.{n}.{e}" for n in ("conv1", "time_emb_proj", "norm2") for e in ("weight", "bias")]
            turned = rolled(turned, (rows, [f"{block}.conv2.weight"]), 188)  # by half of the groups of channels
        for name in (n for n in weights if n.endswith("ff.net.0.proj.weight")):
            out = name.replace("0.proj", "2")
            for part in (name, name.replace("weight", "bias")):
                turned = turned | {
                    part: np.concatenate([np.roll(half, 500, axis=0) for half in np.split(weights[part], 2)])
                }
            turned = rolled(turned, ([], [out]), 500)
    else:
        layer, head = "text_model.encoder.layers.0.self_attn", weights["text_model.final_layer_norm.weight"].size // 8
        rows = [f"{layer}.{n}_proj.{e}" for n in "qkv" for e in ("weight", "bias")]
        turned = rolled(turned, (rows, [f"{layer}.out_proj.weight"]), 3 * head)
    results = []
    for which in (weights, turned):
        plan, inputs = wide(case, dtype)
        for name, values in which.items():
            plan.load(name, values)
        results.append(plan.run(inputs))
    for key, value in results[0].items():
        error = np.sum((results[1][key] - value.astype(np.float64)) ** 2) / np.sum(value.astype(np.float64) ** 2)
        assert error <= (1e-10 if dtype == "f32" else 2e-3), (key, error)


@pytest.mark.parametrize("damage", ["cut", "nan", "gone"])
@pytest.mark.parametrize("case", WIDE)
def test_damage_in_a_late_part_is_named_and_can_be_mended(case, damage, wide_weights, tmp_path):
    file, weights, name = tmp_path / "weights", wide_weights[case], SEVERAL_PARTS[case]
    places, _ = stored(file, weights)
    whole, inputs = wide(case)
    plan, _ = wide(case)
    for other in weights:
        whole.read(other, *places[other])
        if other != name:
            plan.read(other, *places[other])
    content, end = file.read_bytes(), places[name][2] + weights[name].nbytes
    if damage == "gone":
        file.unlink()
        message = f"{file}: it cannot be opened .No such file or directory.; weights are read when a plan is made"
    else:
        file.write_bytes(content[:end - 1] if damage == "cut" else content[:end - 4] + np.float32(np.nan).tobytes()
                         + content[end:])
        message = f"{file}: tensor '{name}' ends early"
        if damage != "cut":
            message = f"parameter '{name}' holds NaN or infinite values"
    with pytest.raises(ValueError, match=message):
        plan.read(name, *places[name])
    assert plan.missing() == [name]
    file.write_bytes(content)
    plan.read(name, *places[name])
    assert same(plan.run(inputs), whole.run(inputs))


@pytest.mark.parametrize(("arguments", "error"),
                         [(("nothing", "/dev/null", "float32", 0), "the model has no parameter 'nothing'"),
                          (("conv_in.bias", "/dev/null", "float64", 0), "expected float32, float16 or uint16"),
                          (("conv_in.bias", "/dev/null", "float32", 0), "ends early"),
                          (("conv_in.bias", "/dev/null", "float32", -1), "ends early"),
                          (("conv_in.bias", "/dev/null", "float32", 2**63 - 1), "ends early"),
                          (("conv_in.bias", "/", "float32", 0), "ends early")])
def test_what_cannot_be_read(arguments, error):
    plan = _core.Model("unet", UNET).plan(rows=1, height=8, width=8, tokens=5, dtype="f32", threads=1)
    with pytest.raises(ValueError, match=error):
        plan.read(*arguments)
