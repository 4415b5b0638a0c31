"""Every kernel against float64 NumPy, in f32 and bf16 and on every instruction set of this processor.

Tolerances: f32 NMSE (squared error over squared reference) 1e-12, that is about 1e-6 relative; bf16 keeps 8 bits, whose
rounding alone gives 2.7e-6, and attention rounds its weights as well. References take the inputs after rounding to
bf16.
"""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from dreamda import _selftest

BEST = _selftest.best_isa()
ISAS = [pytest.param(i, id=name, marks=() if i <= BEST else pytest.mark.skip(reason="not on this processor"))
        for i, name in enumerate(("avx2", "avx512", "avx512_bf16", "amx"))]
DTYPES = ("f32", "bf16")


def to_bf16(x):
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), (u >> 16).astype(np.uint16) | 0x40, rounded)


def to_f32(x):
    return (x.astype(np.uint32) << 16).view(np.float32) if x.dtype == np.uint16 else x


def cast(x, dtype):
    return to_bf16(x) if dtype == "bf16" else np.ascontiguousarray(x, np.float32)


def normal(rng, *shape, scale=1.0, mean=0.0):
    return (rng.standard_normal(shape) * scale + mean).astype(np.float32)


def nmse(result, reference, size=None):
    """`size`: of the summands of each result, where they may nearly cancel: rounding is relative to them. Default: the
    reference."""
    result, reference = to_f32(result).astype(np.float64), np.asarray(reference, np.float64)
    assert result.shape == reference.shape and np.isfinite(result).all()
    return ((result - reference) ** 2).sum() / max(np.square(reference if size is None else size).sum(), 1e-30)


def bound(dtype, f32=1e-12, bf16=1e-5):
    return bf16 if dtype == "bf16" else f32


# ---- GroupNorm -------------------------------------------------------------------------------------------------------


def group_norm_reference(x, row_bias, gamma, beta, groups, eps, silu, scale_shift=None):
    x = np.asarray(x, np.float64)
    if row_bias is not None:
        x = x + row_bias[:, None, :x.shape[2]]
    n, hw, c = x.shape
    y = x.reshape(n, hw, groups, c // groups)
    mean = y.mean((1, 3), keepdims=True)
    y = (y - mean) / np.sqrt(((y - mean) ** 2).mean((1, 3), keepdims=True) + eps)
    y = y.reshape(n, hw, c) * gamma + beta
    if scale_shift is not None:
        y = y * (1 + scale_shift[:, None, :c]) + scale_shift[:, None, c : 2 * c]
    return y / (1 + np.exp(-y)) if silu else y


def group_norm(src0, src1, row_bias, gamma, beta, groups, isa, silu=True, eps=1e-5, in_place=False, threads=2,
               scale_shift=None):
    return _selftest.group_norm(src0, src1, row_bias, gamma, beta, groups, eps, silu, in_place, isa, threads,
                                scale_shift)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(("n", "hw", "c0", "c1", "groups"), [(2, 64, 320, 0, 32), (1, 1, 8, 0, 2), (2, 17, 21, 9, 6),
                                                             (3, 1000, 40, 0, 4), (1, 300, 64, 32, 8),
                                                             (2, 37, 1280, 640, 32), (1, 9, 1, 0, 1),
                                                             (2, 520, 5, 11, 1), ])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_group_norm(isa, dtype, n, hw, c0, c1, groups, silu):
    rng = np.random.default_rng(1)
    src0 = cast(normal(rng, n, hw, c0, scale=2, mean=3), dtype)
    src1 = cast(normal(rng, n, hw, c1, scale=0.5, mean=-1), dtype) if c1 else None
    gamma, beta, bias = normal(rng, c0 + c1), normal(rng, c0 + c1), normal(rng, n, c0 + c1 + 5)
    whole = to_f32(src0) if src1 is None else np.concatenate([to_f32(src0), to_f32(src1)], 2)
    scales = normal(rng, n, 2 * (c0 + c1) + 3)
    for row_bias, scale_shift in ((None, None), (bias, None), (None, scales), (bias, scales)):
        result = group_norm(src0, src1, row_bias, gamma, beta, groups, isa, silu, scale_shift=scale_shift)
        reference = group_norm_reference(whole, row_bias, gamma, beta, groups, 1e-5, silu, scale_shift)
        # A lone value per group is exactly beta: eps hides the rounding of its mean only on the scale of sqrt(eps).
        assert nmse(result, reference) <= bound(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_group_norm_in_place(isa, dtype):
    rng = np.random.default_rng(2)
    src, gamma, beta = cast(normal(rng, 2, 700, 48), dtype), normal(rng, 48), normal(rng, 48)
    result = group_norm(src, None, None, gamma, beta, 4, isa, in_place=True)
    assert np.array_equal(result, group_norm(src, None, None, gamma, beta, 4, isa))


@pytest.mark.parametrize("isa", ISAS)
def test_group_norm_with_a_mean_far_from_zero(isa):
    """Sums of squares would lose every digit here; deviations from the mean lose none but the input's own."""
    rng = np.random.default_rng(3)
    src = normal(rng, 1, 900, 32, mean=1000)
    src[0, 0] = -5000  # the first position is an outlier, in case someone shifts by it
    ones = np.ones(32, np.float32)
    result = group_norm(src, None, None, ones, 0 * ones, 4, isa, silu=False)
    assert nmse(result, group_norm_reference(src, None, ones, 0 * ones, 4, 1e-5, False)) <= 1e-12


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_silu_at_both_ends(isa, dtype):
    """gamma 0 leaves SiLU of beta: from the deepest underflow to values that pass through."""
    y = np.concatenate([-np.logspace(4, -6, 60), [0.0], np.logspace(-6, 4, 60), [-87.5, 88.0, 89.0]]).astype(np.float32)
    src = cast(np.random.default_rng(4).standard_normal((1, 3, y.size)), dtype)
    result = to_f32(group_norm(src, None, None, 0 * y, y, 1, isa))[0, 0].astype(np.float64)
    with np.errstate(over="ignore"):
        reference = y.astype(np.float64) / (1 + np.exp(-y.astype(np.float64)))
    np.testing.assert_allclose(result, reference, rtol=5e-3 if dtype == "bf16" else 1e-6, atol=1e-33)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_group_norm_rows_do_not_see_each_other(isa, dtype):
    rng = np.random.default_rng(5)
    n, hw, c0, c1 = 3, 1500, 40, 24
    src0, src1 = cast(normal(rng, n, hw, c0), dtype), cast(normal(rng, n, hw, c1), dtype)
    gamma, beta, bias = normal(rng, c0 + c1), normal(rng, c0 + c1), normal(rng, n, c0 + c1)
    for scales in (None, normal(rng, n, 2 * (c0 + c1))):
        whole = group_norm(src0, src1, bias, gamma, beta, 8, isa, threads=2, scale_shift=scales)
        assert np.array_equal(whole, group_norm(src0, src1, bias, gamma, beta, 8, isa, threads=1, scale_shift=scales))
        for i in range(n):
            one = slice(i, i + 1)
            alone = group_norm(src0[one], src1[one], bias[one], gamma, beta, 8, isa,
                               scale_shift=None if scales is None else scales[one])
            assert np.array_equal(whole[one], alone)


# ---- LayerNorm -------------------------------------------------------------------------------------------------------


def layer_norm_reference(x, gamma, beta, eps):
    x = np.asarray(x, np.float64)
    return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + eps) * gamma + beta


@pytest.mark.parametrize(("rows", "c"), [(5, 320), (1, 1), (3, 7), (2, 1280), (9, 77), (4, 64), (2, 131)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_layer_norm(isa, dtype, rows, c):
    rng = np.random.default_rng(6)
    src, gamma, beta = cast(normal(rng, rows, c, scale=2, mean=5), dtype), normal(rng, c), normal(rng, c)
    result = _selftest.layer_norm(src, gamma, beta, 1e-5, isa, 2)
    assert nmse(result, layer_norm_reference(to_f32(src), gamma, beta, 1e-5)) <= bound(dtype, bf16=2e-5)
    assert np.array_equal(result, _selftest.layer_norm(src, gamma, beta, 1e-5, isa, 1))
    assert np.array_equal(result[-1:], _selftest.layer_norm(src[-1:], gamma, beta, 1e-5, isa, 2))


# ---- attention -------------------------------------------------------------------------------------------------------


def attention_reference(q, k, v, heads, scale, causal):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    n, tq, channels = q.shape
    q, k, v = (x.reshape(n, -1, heads, channels // heads).transpose(0, 2, 1, 3) for x in (q, k, v))
    scores = q @ k.transpose(0, 1, 3, 2) * scale
    if causal:
        scores = np.where(np.arange(k.shape[2]) <= np.arange(tq)[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return (weights @ v).transpose(0, 2, 1, 3).reshape(n, tq, channels)


def attention_case(isa, dtype, n, heads, tq, tk, d, causal=False, seed=0, spread=1.0):
    """The result, its reference, and the size of each result's summands: the weighted sum of |v|."""
    rng = np.random.default_rng(seed)
    q, k, v = (cast(normal(rng, n, t, heads * d, scale=spread), dtype) for t in (tq, tk, tk))
    scale = float(np.float32(d**-0.5))
    result = _selftest.attention(q, k, v, heads, scale, causal, isa, 2)
    q, k, v = to_f32(q), to_f32(k), to_f32(v)
    return result, attention_reference(q, k, v, heads, scale,
                                       causal), attention_reference(q, k, np.abs(v), heads, scale, causal)


@pytest.mark.parametrize(("n", "heads", "tq", "tk", "d", "causal"), [
    (2, 2, 64, 64, 40, False),    # SD 1.5, all its head sizes
    (1, 2, 256, 256, 80, False),
    (2, 1, 64, 64, 160, False),
    (2, 8, 100, 77, 40, False),   # cross-attention
    (1, 5, 70, 300, 64, False),   # SD 2.1
    (1, 1, 65, 300, 512, False),  # the VAE's single head
    (1, 3, 77, 77, 64, True),     # CLIP
    (1, 2, 600, 600, 24, True),   # more than two blocks of keys, whole ones above the diagonal
    (1, 2, 130, 259, 17, True),   # masks with tq != tk, both ways
    (1, 1, 259, 130, 5, True),
    (1, 1, 40, 1027, 8, False),
    (2, 1, 1, 1, 1, False),
    (1, 2, 7, 5, 3, False),
    (1, 2, 33, 2, 1, True),
])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_attention(isa, dtype, n, heads, tq, tk, d, causal):
    result, reference, _ = attention_case(isa, dtype, n, heads, tq, tk, d, causal)
    assert nmse(result, reference) <= bound(dtype)


@settings(max_examples=60, deadline=None)
@given(isa=st.integers(0, BEST),
       dtype=st.sampled_from(DTYPES),
       n=st.integers(1, 2),
       heads=st.integers(1, 3),
       tq=st.integers(1, 150),
       tk=st.integers(1, 600),
       d=st.integers(1, 70),
       causal=st.booleans(),
       seed=st.integers(0, 1000))
def test_attention_of_any_shape(isa, dtype, n, heads, tq, tk, d, causal, seed):
    """A small case may have one result alone, so that no mean hides its rounding; a sum that nearly cancels is no
    fault. In bf16 each rounding is off by 2^-8 at most: that of the result, and where weights are bf16 (`dot`) that of
    each and, through it, that of their sum."""
    result, reference, size = attention_case(isa, dtype, n, heads, tq, tk, d, causal, seed)
    if dtype == "f32":
        assert nmse(result, reference, size) <= 2e-12
    else:
        roundings = 3 if isa >= 2 else 1
        # 2^x itself is off by 8.6e-5
        assert (np.abs(to_f32(result) - reference) <= size * (roundings * 2**-8 + 2e-4)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_attention_with_a_rising_maximum(isa, dtype):
    """Scores grow by hundreds from block to block: each block rescales all that came before, down to nothing."""
    rng = np.random.default_rng(7)
    tk, d = 1200, 16
    k = normal(rng, 1, tk, d) + np.linspace(-60, 60, tk, dtype=np.float32)[None, :, None]
    q, v = np.abs(normal(rng, 1, 50, d)), normal(rng, 1, tk, d)
    q, k, v = (cast(x, dtype) for x in (q, k, v))
    for order in (slice(None), slice(None, None, -1)):
        keys, values = np.ascontiguousarray(k[:, order]), np.ascontiguousarray(v[:, order])
        result = _selftest.attention(q, keys, values, 1, 1.0, False, isa, 2)
        reference = attention_reference(to_f32(q), to_f32(keys), to_f32(values), 1, 1.0, False)
        assert nmse(result, reference) <= bound(dtype, f32=1e-9)  # scores up to 1100: their own rounding shows


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_attention_weights_add_up_to_one(isa, dtype):
    """Equal values everywhere must come out as they went in, whatever the weights were rounded to."""
    rng = np.random.default_rng(8)
    q, k = (cast(normal(rng, 1, 333, 40, scale=2), dtype) for _ in range(2))
    v = cast(np.full((1, 333, 40), 2.0), dtype)
    result = to_f32(_selftest.attention(q, k, v, 2, 0.2, False, isa, 2))
    np.testing.assert_allclose(result, 2.0, rtol=0 if dtype == "bf16" else 2e-7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_attention_reads_slices_of_a_fused_projection(isa, dtype):
    rng = np.random.default_rng(9)
    n, t, heads, d = 2, 90, 3, 20
    fused = cast(normal(rng, n, t, 3 * heads * d), dtype)
    q, k, v = (fused[:, :, i * heads * d:(i + 1) * heads * d] for i in range(3))
    result = _selftest.attention(q, k, v, heads, 0.25, False, isa, 2)
    apart = _selftest.attention(*(np.ascontiguousarray(x) for x in (q, k, v)), heads, 0.25, False, isa, 2)
    assert np.array_equal(result, apart)
    assert nmse(result, attention_reference(*(to_f32(x) for x in (q, k, v)), heads, 0.25, False)) <= bound(dtype)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_attention_rows_do_not_see_each_other(isa, dtype, causal):
    rng = np.random.default_rng(10)
    q, k, v = (cast(normal(rng, 3, t, 48), dtype) for t in (140, 310, 310))
    whole = _selftest.attention(q, k, v, 4, 0.3, causal, isa, 2)
    assert np.array_equal(whole, _selftest.attention(q, k, v, 4, 0.3, causal, isa, 1))
    for i in range(3):
        one = slice(i, i + 1)
        assert np.array_equal(whole[one], _selftest.attention(q[one], k[one], v[one], 4, 0.3, causal, isa, 2))


def test_the_same_bits_with_either_width_of_widened_bf16():
    """AVX2 and AVX-512 differ in tile shapes only, never in the order in which one element's terms are added."""
    if BEST < 1:
        pytest.skip("needs AVX-512")
    rng = np.random.default_rng(11)
    for dtype in DTYPES:
        q, k, v = (cast(normal(rng, 1, t, 40), dtype) for t in (100, 300, 300))
        assert np.array_equal(*(_selftest.attention(q, k, v, 2, 0.2, False, isa, 2) for isa in (0, 1)))


def convolution_reference(x, weights, bias, residual):
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    h, w = x.shape[1:3]
    result = sum(padded[:, i:i + h, j:j + w] @ weights[:, :, i, j].T.astype(np.float64) for i in range(3)
                 for j in range(3))
    return result + (0 if bias is None else bias) + (0 if residual is None else to_f32(residual))


WINOGRAD_DTYPES = [(isa, "f32") for isa in range(BEST + 1)] + [(isa, "bf16") for isa in range(2, BEST + 1)]


def winograd_case(isa, dtype, n, h, w, ic, oc, bias=True, residual=True, seed=0):
    rng = np.random.default_rng(seed)
    x = cast(normal(rng, n, h, w, ic, mean=0.5), dtype)
    weights = normal(rng, oc, ic, 3, 3, scale=1 / np.sqrt(9 * ic))
    bias = normal(rng, oc) if bias else None
    residual = cast(normal(rng, n, h, w, oc), dtype) if residual else None
    result = _selftest.winograd(x, weights, bias, residual, isa, 2)
    return nmse(result, convolution_reference(to_f32(x), weights, bias, residual))


@pytest.mark.parametrize(("n", "h", "w", "ic", "oc"), [(2, 8, 8, 32, 64), (1, 9, 7, 16, 32), (1, 1, 1, 16, 32),
                                                       (1, 2, 31, 48, 32), (3, 33, 20, 64, 96)])
@pytest.mark.parametrize(("isa", "dtype"), WINOGRAD_DTYPES)
def test_winograd(isa, dtype, n, h, w, ic, oc):
    """bf16: products of rounded V and U, each error about 1.6 times that of a rounded weight or activation."""
    for bias, residual in ((True, True), (False, False)):
        assert winograd_case(isa, dtype, n, h, w, ic, oc, bias, residual) <= (1e-12 if dtype == "f32" else 3e-5)


@pytest.mark.parametrize(("isa", "dtype"), WINOGRAD_DTYPES)
def test_winograd_backward_and_relu(isa, dtype):
    """The gradient of the source: a convolution with every filter turned by half, and inputs for outputs."""
    rng = np.random.default_rng(14)
    d_dst, weights = cast(normal(rng, 2, 10, 9, 32), dtype), normal(rng, 32, 64, 3, 3, scale=0.06)
    turned = weights[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
    expected = convolution_reference(to_f32(d_dst), turned, None, None)
    bar = 1e-12 if dtype == "f32" else 3e-5
    assert nmse(_selftest.winograd(d_dst, weights, None, None, isa, 2, backward=True), expected) <= bar
    assert nmse(_selftest.winograd(d_dst, weights, None, None, isa, 2, True, True), np.maximum(expected, 0)) <= bar


@settings(max_examples=30, deadline=None)
@given(which=st.sampled_from(WINOGRAD_DTYPES),
       n=st.integers(1, 2),
       h=st.integers(1, 23),
       w=st.integers(1, 23),
       ic=st.integers(1, 4),
       oc=st.integers(1, 3),
       seed=st.integers(0, 1000))
def test_winograd_of_any_shape(which, n, h, w, ic, oc, seed):
    assert winograd_case(*which, n, h, w, 16 * ic, 32 * oc, seed=seed) <= (1e-11 if which[1] == "f32" else 1e-4)


@pytest.mark.parametrize(("n", "h", "w", "ic", "oc"), [(2, 4, 4, 32, 64), (1, 5, 3, 16, 32), (1, 1, 1, 16, 32),
                                                       (2, 17, 10, 48, 64)])
@pytest.mark.parametrize(("isa", "dtype"), WINOGRAD_DTYPES)
def test_winograd_behind_an_upsampling_is_that_of_the_upsampled(isa, dtype, n, h, w, ic, oc):
    """To the bit: it leaves out products with zero."""
    rng = np.random.default_rng(15)
    x, weights, bias = cast(normal(rng, n, h, w, ic), dtype), normal(rng, oc, ic, 3, 3,
                                                                     scale=1 / np.sqrt(9 * ic)), normal(rng, oc)
    residual = cast(normal(rng, n, 2 * h, 2 * w, oc), dtype)
    large = _selftest.upsample_nearest(x, 2 * h, 2 * w)
    for some in (residual, None):
        assert np.array_equal(_selftest.winograd(x, weights, bias, some, isa, 2, up=True),
                              _selftest.winograd(large, weights, bias, some, isa, 2))


@pytest.mark.parametrize(("isa", "dtype"), WINOGRAD_DTYPES)
def test_winograd_rows_do_not_see_each_other(isa, dtype):
    rng = np.random.default_rng(12)
    x, weights, bias = cast(normal(rng, 3, 18, 22, 32), dtype), normal(rng, 32, 32, 3, 3), normal(rng, 32)
    whole = _selftest.winograd(x, weights, bias, None, isa, 2)
    assert np.array_equal(whole, _selftest.winograd(x, weights, bias, None, isa, 1))
    for i in range(3):
        assert np.array_equal(whole[i : i + 1], _selftest.winograd(x[i : i + 1], weights, bias, None, isa, 2))


@settings(max_examples=30, deadline=None)
@given(which=st.sampled_from(WINOGRAD_DTYPES),
       n=st.integers(1, 3),
       h=st.integers(1, 20),
       w=st.integers(1, 40),
       ic=st.integers(2, 5),
       residual=st.booleans(),
       threads=st.integers(1, 2),
       seed=st.integers(0, 1000))
def test_winograd_in_place(which, n, h, w, ic, residual, threads, seed):
    """Written over its own source, with any number of tasks and threads: the same bits."""
    isa, dtype = which
    oc = 32
    rng = np.random.default_rng(seed)
    x, weights, bias = cast(normal(rng, n, 2 * h, w, 2 * 16 * ic, mean=0.5), dtype), normal(rng, oc, 2 * 16 * ic, 3,
                                                                                            3), normal(rng, oc)
    some = cast(normal(rng, n, 2 * h, w, oc), dtype) if residual else None
    apart = _selftest.winograd(x, weights, bias, some, isa, 1)
    assert np.array_equal(apart, _selftest.winograd(x.copy(), weights, bias, some, isa, threads, in_place=True))


def weight_gradient_reference(x, d_dst, kernel, stride, pad):
    """In float64, one place of the window after another."""
    h, w, (oh, ow) = x.shape[1], x.shape[2], d_dst.shape[1:3]
    padded = np.zeros((len(x), h + 2 * pad, w + 2 * pad, x.shape[3]))
    padded[:, pad : pad + h, pad : pad + w] = x
    d = d_dst.astype(np.float64).reshape(-1, d_dst.shape[3])
    gradient = np.empty((d.shape[1], x.shape[3], kernel, kernel))
    for i in range(kernel):
        for j in range(kernel):
            seen = padded[:, i : i + stride * (oh - 1) + 1 : stride, j : j + stride * (ow - 1) + 1 : stride]
            gradient[:, :, i, j] = d.T @ seen.reshape(-1, x.shape[3])
    return gradient


def weight_gradient_case(isa, dtype, n, h, w, ic, oc, kernel, stride, pad, seed=0):
    rng = np.random.default_rng(seed)
    x = cast(normal(rng, n, h, w, ic, mean=0.5), dtype)
    d_dst = cast(normal(rng, n, (h + 2 * pad - kernel) // stride + 1, (w + 2 * pad - kernel) // stride + 1, oc), dtype)
    result = _selftest.weight_gradient(x, d_dst, kernel, stride, pad, isa, 2)
    assert np.array_equal(result, _selftest.weight_gradient(x, d_dst, kernel, stride, pad, isa, 1))
    return nmse(result, weight_gradient_reference(to_f32(x), to_f32(d_dst), kernel, stride, pad))


@pytest.mark.parametrize(("n", "h", "w", "ic", "oc", "kernel", "stride", "pad"), [(2, 8, 8, 32, 64, 3, 1, 1),
                                                                                  (3, 9, 7, 16, 32, 3, 2, 1),
                                                                                  (5, 1, 1, 64, 96, 3, 1, 1),
                                                                                  (3, 2, 2, 128, 128, 3, 2, 1),
                                                                                  (2, 5, 4, 48, 32, 1, 2, 0),
                                                                                  (1, 12, 12, 16, 32, 7, 2, 3),
                                                                                  (1, 70, 60, 64, 32, 3, 1, 1),
                                                                                  (1, 40, 33, 16, 2048, 1, 1, 0)])
@pytest.mark.parametrize(("isa", "dtype"), WINOGRAD_DTYPES)
def test_weight_gradient(isa, dtype, n, h, w, ic, oc, kernel, stride, pad):
    """Products of bf16 are exact in f32, so one bar holds for both. The last two shapes take several stretches of
    rows."""
    assert weight_gradient_case(isa, dtype, n, h, w, ic, oc, kernel, stride, pad) <= 1e-11


@pytest.mark.skipif(BEST < 3, reason="needs AMX")
@pytest.mark.parametrize(("n", "h", "w", "ic", "oc", "kernel", "stride", "pad"), [(64, 6, 5, 3, 10, 3, 1, 1),
                                                                                  (33, 4, 4, 33, 31, 3, 2, 1),
                                                                                  (7, 9, 9, 3, 64, 7, 2, 3),
                                                                                  (16, 64, 64, 20, 64, 3, 1, 1),
                                                                                  (1, 1, 1, 1, 1, 1, 1, 0)])
def test_weight_gradient_on_tiles(n, h, w, ic, oc, kernel, stride, pad):
    """Any number of channels and images. The third shape has five segments of two rows, the last of one; the fourth
    takes several stretches of rows."""
    assert weight_gradient_case(3, "bf16", n, h, w, ic, oc, kernel, stride, pad) <= 1e-11


@settings(max_examples=30, deadline=None)
@given(which=st.sampled_from(WINOGRAD_DTYPES),
       n=st.integers(1, 3),
       h=st.integers(1, 12),
       w=st.integers(1, 12),
       ic=st.integers(1, 5),
       oc=st.integers(1, 3),
       kernel=st.sampled_from([1, 2, 3, 7]),
       stride=st.integers(1, 3),
       seed=st.integers(0, 1000))
def test_weight_gradient_of_any_shape(which, n, h, w, ic, oc, kernel, stride, seed):
    pad = kernel // 2
    if min(h, w) + 2 * pad >= kernel:
        assert weight_gradient_case(*which, n, h, w, 16 * ic, 32 * oc, kernel, stride, pad, seed) <= 1e-11


def test_winograd_has_the_same_bits_with_either_width():
    if BEST < 1:
        pytest.skip("needs AVX-512")
    rng = np.random.default_rng(13)
    x, weights = normal(rng, 1, 15, 16, 48), normal(rng, 64, 48, 3, 3)
    assert np.array_equal(*(_selftest.winograd(x, weights, None, None, isa, 2) for isa in (0, 1)))


def test_attention_without_memory():
    """The scratch comes from the arena: its failure is a MemoryError, and nothing stays behind."""
    q = np.ones((1, 4, 8), np.float32)
    before = _selftest.live_bytes()
    _selftest.alloc_fail_after(0)
    with pytest.raises(MemoryError):
        _selftest.attention(q, q, q, 1, 1.0, False, 0, 1)
    _selftest.attention(q, q, q, 1, 1.0, False, 0, 1)
    assert _selftest.live_bytes() == before


# ---- the small ones --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dim", "flip", "shift"), [(320, True, 0.0), (320, False, 1.0), (33, True, 0.0),
                                                    (2, False, 0.0)])
def test_timestep_embedding(dim, flip, shift):
    t = np.array([0, 1, 2.5, 501, 999], np.float32)
    half = dim // 2
    exponent = np.float32(-np.log(10000)) * np.arange(half, dtype=np.float32) / np.float32(half - shift)
    # diffusers rounds frequency and angle to float32; from there on float64.
    angle = (t[:, None] * np.exp(exponent.astype(np.float64)).astype(np.float32)).astype(np.float64)
    parts = [np.cos(angle), np.sin(angle)] if flip else [np.sin(angle), np.cos(angle)]
    reference = np.concatenate([*parts, np.zeros((t.size, dim % 2))], 1)
    result = _selftest.timestep_embedding(t, dim, flip, shift)
    np.testing.assert_allclose(result, reference, rtol=1e-7, atol=1e-9)
    assert np.array_equal(_selftest.timestep_embedding(t, dim, flip, shift, bf16=True), to_bf16(result))


@pytest.mark.parametrize(("h", "w", "oh", "ow"), [(4, 4, 8, 8), (3, 5, 7, 9), (1, 1, 3, 2), (6, 4, 3, 4)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_upsample_nearest(dtype, h, w, oh, ow):
    src = cast(normal(np.random.default_rng(12), 2, h, w, 5), dtype)
    expected = src[:, np.arange(oh) * h // oh][:, :, np.arange(ow) * w // ow]
    assert np.array_equal(_selftest.upsample_nearest(src, oh, ow), expected)


@pytest.mark.parametrize(("n", "c", "hw"), [(2, 4, 64), (1, 3, 101), (3, 65, 33), (1, 1, 1)])
def test_channel_order(n, c, hw):
    src = normal(np.random.default_rng(13), n, c, hw)
    last = np.ascontiguousarray(src.transpose(0, 2, 1))
    assert np.array_equal(_selftest.from_nchw(src, False), last)
    assert np.array_equal(_selftest.from_nchw(src, True), to_bf16(last))
    assert np.array_equal(_selftest.to_nchw(last), src)
    assert np.array_equal(_selftest.to_nchw(to_bf16(last)), to_f32(to_bf16(src)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_noise(dtype):
    rng = np.random.default_rng(14)
    n, hw, c = 4, 70, 96
    src = cast(normal(rng, n, hw, c), dtype)
    src[1, 0, :2] = 0x7FC1 if dtype == "bf16" else np.nan  # scale 0: copied whatever it is
    scale = np.array([3, 0, 0.5, 1], np.float32)
    keys = rng.integers(0, 2**32, (n, 8), dtype=np.uint32)
    given = np.stack([_selftest.normals(k, 0, c * hw).reshape(c, hw) for k in keys])
    drawn = _selftest.add_noise(src, scale, None, keys, 2)
    as_bits = (lambda x: x) if dtype == "bf16" else (lambda x: x.view(np.uint32))
    assert np.array_equal(as_bits(drawn), as_bits(_selftest.add_noise(src, scale, given, None, 1)))
    assert np.array_equal(as_bits(drawn[1]), as_bits(src[1]))
    alone = _selftest.add_noise(src[2:3], scale[2:3], None, keys[2:3], 2)
    assert np.array_equal(drawn[2:3], alone)
    expected = to_f32(src) + scale[:, None, None] * given.transpose(0, 2, 1)
    rows = [0, 2, 3]
    assert np.array_equal(drawn[rows], cast(expected[rows], dtype))


def test_embed():
    rng = np.random.default_rng(15)
    tokens, positions = normal(rng, 50, 24), normal(rng, 9, 24)
    ids = rng.integers(0, 50, (3, 7)).astype(np.int32)
    expected = tokens[ids] + positions[:7]
    assert np.array_equal(_selftest.embed(ids, tokens, positions, False), expected)
    assert np.array_equal(_selftest.embed(ids, tokens, positions, True), to_bf16(expected))


def test_convert():
    every = np.arange(65536, dtype=np.uint16)
    halves = every.view(np.float16)
    wide = halves.astype(np.float32)
    number = ~np.isnan(wide)
    result = _selftest.convert(halves, False)
    assert np.array_equal(result.view(np.uint32)[number],
                          wide.view(np.uint32)[number]) and np.isnan(result[~number]).all()
    assert np.array_equal(_selftest.convert(halves, True)[number], to_bf16(wide)[number])
    assert np.array_equal(_selftest.convert(every, False).view(np.uint32), every.astype(np.uint32) << 16)
    rng = np.random.default_rng(16)
    floats = rng.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    assert np.array_equal(_selftest.convert(floats, True), to_bf16(floats))
    assert np.array_equal(_selftest.convert(floats, False).view(np.uint32), floats.view(np.uint32))
    assert np.array_equal(_selftest.convert(every, True), every)


@pytest.mark.parametrize("isa", ISAS)
def test_vector_rounding_to_bf16(isa):
    """Ties, NaN and infinity through the kernels' own stores: gamma 0 hands beta to the output. Subnormals are left
    out: the AVX512-BF16 instruction flushes them, the integer version does not."""
    rng = np.random.default_rng(17)
    beta = rng.integers(0, 2**32, 4096, dtype=np.uint32)
    beta[:512] = (beta[:512] & 0xFFFF0000) | 0x8000
    beta = beta.view(np.float32)
    beta[:3] = np.inf, -np.inf, np.nan
    beta[(np.abs(beta) < 2e-38)] = 1
    src = to_bf16(normal(rng, 1, beta.size))
    result = to_f32(_selftest.layer_norm(src, np.zeros_like(beta), beta, 1e-5, isa, 1))[0]
    np.testing.assert_array_equal(result, to_f32(to_bf16(beta)))


def test_wrong_arguments_are_refused():
    x = np.ones((1, 2, 4), np.float32)
    with pytest.raises(TypeError, match="src0"):
        group_norm(x.astype(np.float64), None, None, x[0, 0], x[0, 0], 2, 0)
    with pytest.raises(ValueError, match="isa"):
        group_norm(x, None, None, x[0, 0], x[0, 0], 2, 9)
    with pytest.raises(ValueError, match="heads"):
        _selftest.attention(x, x, x, 3, 1.0, False, 0, 1)
    with pytest.raises(ValueError, match="v: as many"):
        _selftest.attention(x, x, x[:, :1], 1, 1.0, False, 0, 1)
