/* dreamda._selftest: the C internals as plain functions of NumPy arrays, for the tests alone.
 *
 * bfloat16 travels as uint16. `threads` is the size of the OpenMP team for that one call. Each section is a group of
 * functions; a new one needs its wrapper and a line in `methods`. Shapes are checked just enough that a wrong test
 * fails with a sentence instead of a crash.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define NPY_NO_DEPRECATED_API NPY_1_22_API_VERSION
#include <numpy/arrayobject.h>

#include "base/arena.h"
#include "base/planner.h"
#include "base/rng.h"
#include "kernels/kernels.h"
#include "kernels/train.h"

#include <omp.h>

/* ---- arguments ------------------------------------------------------------------------------------------------ */

/* A new reference to a C-contiguous array of exactly that type and rank, or NULL with an exception. */
static PyArrayObject *array_of(PyObject *object, int type, int rank, const char *name)
{
    if (!PyArray_Check(object) || PyArray_TYPE((PyArrayObject *)object) != type) {
        PyErr_Format(PyExc_TypeError, "%s: wrong type of array", name);
        return NULL;
    }
    if (PyArray_NDIM((PyArrayObject *)object) != rank) {
        PyErr_Format(PyExc_ValueError, "%s: expected %d dimensions", name, rank);
        return NULL;
    }
    return (PyArrayObject *)PyArray_FROM_OF(object, NPY_ARRAY_CARRAY_RO);
}

/* Activations: float32 or uint16 (bf16). rank < 0: any. */
static PyArrayObject *activations(PyObject *object, int rank, dd_dtype *dtype, const char *name)
{
    int type = PyArray_Check(object) ? PyArray_TYPE((PyArrayObject *)object) : -1;
    if (type != NPY_FLOAT32 && type != NPY_UINT16) {
        PyErr_Format(PyExc_TypeError, "%s: expected a float32 or a uint16 (bfloat16) array", name);
        return NULL;
    }
    *dtype = type == NPY_UINT16 ? DD_BF16 : DD_F32;
    return array_of(object, type, rank < 0 ? PyArray_NDIM((PyArrayObject *)object) : rank, name);
}

static PyArrayObject *new_activations(dd_dtype dtype, int rank, npy_intp *shape)
{
    return (PyArrayObject *)PyArray_SimpleNew(rank, shape, dtype == DD_BF16 ? NPY_UINT16 : NPY_FLOAT32);
}

static int dim(PyArrayObject *a, int axis) { return (int)PyArray_DIM(a, axis); }

static bool check(bool good, const char *what)
{
    if (!good && !PyErr_Occurred()) {
        PyErr_Format(PyExc_ValueError, "%s", what);
    }
    return good;
}

/* The instruction set asked for, which must be there. */
static bool check_isa(int isa)
{
    return check(isa >= DD_ISA_AVX2 && isa <= (int)dd_best_isa() && dd_cpu_supported(), "isa: this processor lacks it");
}

/* 64-byte aligned, counted scratch; MemoryError when the arena refuses. */
static void *scratch_of(size_t bytes)
{
    void *p = dd_alloc(bytes ? bytes : 1);
    if (!p) {
        PyErr_NoMemory();
    }
    return p;
}

#define WITH_THREADS(threads, call)            \
    do {                                       \
        int before_ = omp_get_max_threads();   \
        omp_set_num_threads((threads));        \
        Py_BEGIN_ALLOW_THREADS;                \
        call;                                  \
        Py_END_ALLOW_THREADS;                  \
        omp_set_num_threads(before_);          \
    } while (0)

/* ---- rng ------------------------------------------------------------------------------------------------------ */

static PyObject *selftest_philox(PyObject *Py_UNUSED(module), PyObject *args)
{
    unsigned int c[4], k[2];
    if (!PyArg_ParseTuple(args, "(IIII)(II)", &c[0], &c[1], &c[2], &c[3], &k[0], &k[1])) {
        return NULL;
    }
    uint32_t out[4];
    dd_philox4x32_10(c, k, out);
    return Py_BuildValue("(IIII)", out[0], out[1], out[2], out[3]);
}

/* The eight words of a noise key, as the core takes them: seed lo, hi, image lo, hi, variant, step, stream, row. */
static dd_noise_key key_of(const uint32_t w[8])
{
    return (dd_noise_key){.seed = w[0] | (uint64_t)w[1] << 32, .image = w[2] | (uint64_t)w[3] << 32,
                          .variant = w[4], .step = w[5], .stream = w[6], .row = w[7]};
}

static PyObject *selftest_normals(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"key", "first", "count", "threads", NULL};
    PyObject *key_object;
    Py_ssize_t first, count;
    int threads = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Onn|i", names, &key_object, &first, &count, &threads)) {
        return NULL;
    }
    PyArrayObject *key = array_of(key_object, NPY_UINT32, 1, "key"), *dst = NULL;
    if (!key || !check(dim(key, 0) == 8, "key: eight words") || !check(first >= 0 && first % 4 == 0, "first") ||
        !check(count >= 0, "count")) {
        goto done;
    }
    dst = (PyArrayObject *)PyArray_SimpleNew(1, &count, NPY_FLOAT32);
    if (dst) {
        dd_noise_key k = key_of(PyArray_DATA(key));
        WITH_THREADS(threads, dd_normals(&k, (size_t)first, (size_t)count, PyArray_DATA(dst)));
    }
done:
    Py_XDECREF(key);
    return (PyObject *)dst;
}

/* ---- kernels -------------------------------------------------------------------------------------------------- */

static PyObject *selftest_group_norm(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"src0", "src1", "row_bias", "gamma", "beta", "groups", "eps", "silu", "in_place", "isa",
                            "threads", "scale_shift", NULL};
    PyObject *o0, *o1, *o_bias, *o_gamma, *o_beta, *o_scales = Py_None;
    int groups, silu, in_place, isa, threads;
    float eps;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOOifppii|O", names, &o0, &o1, &o_bias, &o_gamma, &o_beta,
                                     &groups, &eps, &silu, &in_place, &isa, &threads, &o_scales)) {
        return NULL;
    }
    dd_dtype dtype, dtype1;
    PyArrayObject *src0 = activations(o0, 3, &dtype, "src0"), *src1 = NULL, *bias = NULL, *gamma = NULL, *beta = NULL;
    PyArrayObject *scales = NULL, *dst = NULL;
    if (!src0 || !check_isa(isa) || (o1 != Py_None && !(src1 = activations(o1, 3, &dtype1, "src1"))) ||
        (o_bias != Py_None && !(bias = array_of(o_bias, NPY_FLOAT32, 2, "row_bias"))) ||
        (o_scales != Py_None && !(scales = array_of(o_scales, NPY_FLOAT32, 2, "scale_shift"))) ||
        !(gamma = array_of(o_gamma, NPY_FLOAT32, 1, "gamma")) || !(beta = array_of(o_beta, NPY_FLOAT32, 1, "beta"))) {
        goto done;
    }
    const int n = dim(src0, 0), hw = dim(src0, 1), c0 = dim(src0, 2), c1 = src1 ? dim(src1, 2) : 0, c = c0 + c1;
    if (!check(!src1 || (dtype1 == dtype && dim(src1, 0) == n && dim(src1, 1) == hw), "src1") ||
        !check(!bias || (dim(bias, 0) == n && dim(bias, 1) >= c), "row_bias") ||
        !check(!scales || (dim(scales, 0) == n && dim(scales, 1) >= 2 * c), "scale_shift") ||
        !check(dim(gamma, 0) == c, "gamma") || !check(dim(beta, 0) == c, "beta") ||
        !check(groups > 0 && c % groups == 0, "groups") || !check(!in_place || !src1, "in_place")) {
        goto done;
    }
    void *scratch = scratch_of(dd_group_norm_scratch(n, hw, c));
    if (scratch) {
        dst = in_place ? (PyArrayObject *)PyArray_NewCopy(src0, NPY_CORDER)
                       : new_activations(dtype, 3, (npy_intp[]){n, hw, c});
    }
    if (dst) {
        const dd_group_norm_call call = {.dst = PyArray_DATA(dst),
                                         .src = PyArray_DATA(in_place ? dst : src0),
                                         .beside = src1 ? PyArray_DATA(src1) : NULL,
                                         .row_bias = bias ? PyArray_DATA(bias) : NULL,
                                         .row_bias_ld = bias ? (size_t)dim(bias, 1) : 0,
                                         .scale_shift = scales ? PyArray_DATA(scales) : NULL,
                                         .scale_shift_ld = scales ? (size_t)dim(scales, 1) : 0,
                                         .gamma = PyArray_DATA(gamma),
                                         .beta = PyArray_DATA(beta),
                                         .n = n,
                                         .hw = hw,
                                         .c = c0,
                                         .beside_c = c1,
                                         .groups = groups,
                                         .eps = eps,
                                         .silu = silu,
                                         .scratch = scratch};
        WITH_THREADS(threads, dd_group_norm((dd_isa)isa, dtype, &call));
    }
    dd_free(scratch);
done:
    Py_XDECREF(src0);
    Py_XDECREF(src1);
    Py_XDECREF(bias);
    Py_XDECREF(scales);
    Py_XDECREF(gamma);
    Py_XDECREF(beta);
    return (PyObject *)dst;
}

static PyObject *selftest_layer_norm(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"src", "gamma", "beta", "eps", "isa", "threads", NULL};
    PyObject *o_src, *o_gamma, *o_beta;
    float eps;
    int isa, threads;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOfii", names, &o_src, &o_gamma, &o_beta, &eps, &isa, &threads)) {
        return NULL;
    }
    dd_dtype dtype;
    PyArrayObject *src = activations(o_src, 2, &dtype, "src"), *gamma = NULL, *beta = NULL, *dst = NULL;
    if (!src || !check_isa(isa) || !(gamma = array_of(o_gamma, NPY_FLOAT32, 1, "gamma")) ||
        !(beta = array_of(o_beta, NPY_FLOAT32, 1, "beta")) || !check(dim(gamma, 0) == dim(src, 1), "gamma") ||
        !check(dim(beta, 0) == dim(src, 1), "beta")) {
        goto done;
    }
    dst = new_activations(dtype, 2, PyArray_DIMS(src));
    if (dst) {
        WITH_THREADS(threads, dd_layer_norm((dd_isa)isa, dtype, PyArray_DATA(dst), PyArray_DATA(src),
                                            PyArray_DATA(gamma), PyArray_DATA(beta), dim(src, 0), dim(src, 1), eps));
    }
done:
    Py_XDECREF(src);
    Py_XDECREF(gamma);
    Py_XDECREF(beta);
    return (PyObject *)dst;
}

/* A view (n, t, heads * d) with any distance between rows, as a slice of a fused projection is. Borrowed reference. */
static PyArrayObject *rows_view(PyObject *object, int type, int n, int channels, size_t *ld, const char *name)
{
    PyArrayObject *a = (PyArrayObject *)object;
    if (!check(PyArray_Check(object) && PyArray_TYPE(a) == type && PyArray_NDIM(a) == 3, name) ||
        !check(dim(a, 0) == n && dim(a, 1) > 0 && dim(a, 2) == channels, name)) {
        return NULL;
    }
    const npy_intp item = PyArray_ITEMSIZE(a), row = PyArray_STRIDE(a, 1);
    if (!check(channels == 1 || PyArray_STRIDE(a, 2) == item, name) ||
        !check(row >= item * channels && row % item == 0, name) ||
        !check(n == 1 || PyArray_STRIDE(a, 0) == row * dim(a, 1), name)) {
        return NULL;
    }
    *ld = (size_t)(row / item);
    return a;
}

static PyObject *selftest_attention(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"q", "k", "v", "heads", "scale", "causal", "isa", "threads", NULL};
    PyObject *o_q, *o_k, *o_v;
    int heads, causal, isa, threads;
    float scale;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOifpii", names, &o_q, &o_k, &o_v, &heads, &scale, &causal, &isa,
                                     &threads)) {
        return NULL;
    }
    if (!check(PyArray_Check(o_q) && PyArray_NDIM((PyArrayObject *)o_q) == 3, "q: expected (n, tq, heads * d)") ||
        !check_isa(isa)) {
        return NULL;
    }
    PyArrayObject *q = (PyArrayObject *)o_q, *k, *v, *dst = NULL;
    const int type = PyArray_TYPE(q), n = dim(q, 0), tq = dim(q, 1), channels = dim(q, 2);
    size_t q_ld, k_ld, v_ld;
    if (!check(type == NPY_FLOAT32 || type == NPY_UINT16, "q: float32 or uint16 (bfloat16)") ||
        !check(heads > 0 && channels % heads == 0, "heads") || !rows_view(o_q, type, n, channels, &q_ld, "q") ||
        !(k = rows_view(o_k, type, n, channels, &k_ld, "k")) || !(v = rows_view(o_v, type, n, channels, &v_ld, "v")) ||
        !check(dim(k, 1) == dim(v, 1), "v: as many rows as k")) {
        return NULL;
    }
    const dd_dtype dtype = type == NPY_UINT16 ? DD_BF16 : DD_F32;
    const int tk = dim(k, 1), d = channels / heads;
    dd_attention_call call = {.q = PyArray_DATA(q),
                              .k = PyArray_DATA(k),
                              .v = PyArray_DATA(v),
                              .dst_ld = (size_t)channels,
                              .q_ld = q_ld,
                              .k_ld = k_ld,
                              .v_ld = v_ld,
                              .n = n,
                              .heads = heads,
                              .tq = tq,
                              .tk = tk,
                              .d = d,
                              .scale = scale,
                              .causal = causal};
    void *scratch = scratch_of(dd_attention_scratch((dd_isa)isa, dtype, &call, threads));
    if (scratch && (dst = new_activations(dtype, 3, PyArray_DIMS(q)))) {
        call.dst = PyArray_DATA(dst);
        call.scratch = scratch;
        WITH_THREADS(threads, dd_attention((dd_isa)isa, dtype, &call));
    }
    dd_free(scratch);
    return (PyObject *)dst;
}

static PyObject *selftest_winograd(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"src",  "weights",  "bias", "residual", "isa", "threads",
                            "relu", "backward", "up",   "in_place", NULL};
    PyObject *o_src, *o_weights, *o_bias, *o_residual;
    int isa, threads, relu = 0, backward = 0, up = 0, in_place = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOii|pppp", names, &o_src, &o_weights, &o_bias, &o_residual, &isa,
                                     &threads, &relu, &backward, &up, &in_place) ||
        !check_isa(isa)) {
        return NULL;
    }
    dd_dtype dtype = DD_F32, residual_dtype = DD_F32;
    PyArrayObject *src = activations(o_src, 4, &dtype, "src"),
                  *weights = src ? array_of(o_weights, NPY_FLOAT32, 4, "weights") : NULL;
    PyArrayObject *bias = NULL, *residual = NULL, *dst = NULL;
    void *packed = NULL, *scratch = NULL;
    if (!weights || (o_bias != Py_None && !(bias = array_of(o_bias, NPY_FLOAT32, 1, "bias"))) ||
        (o_residual != Py_None && !(residual = activations(o_residual, 4, &residual_dtype, "residual")))) {
        goto done;
    }
    const int n = dim(src, 0), h = dim(src, 1), w = dim(src, 2), ic = dim(src, 3), oc = dim(weights, backward ? 1 : 0);
    if (!check(dim(weights, backward ? 0 : 1) == ic && dim(weights, 2) == 3 && dim(weights, 3) == 3,
               "weights: expected (oc, ic, 3, 3)") ||
        !check((isa == DD_ISA_AMX && dtype == DD_BF16) ||
                   (ic % 16 == 0 && oc % dd_winograd_columns((dd_isa)isa) == 0),
               "channels: 16 and the panel's have to divide them") ||
        !check(dtype == DD_F32 || isa >= DD_ISA_AVX512_BF16, "isa: bfloat16 needs AVX512-BF16") ||
        !check(!bias || dim(bias, 0) == oc, "bias: one an output channel") ||
        !check(!(backward && up), "backward, up: one of them") ||
        !check(!in_place || (!up && h % 2 == 0 && 2 * oc <= ic),
               "in_place: an even height, and at most half as many channels") ||
        !check(!residual ||
                   (residual_dtype == dtype && PyArray_SIZE(residual) == (npy_intp)n * h * w * oc * (up ? 4 : 1)),
               "residual: like the result")) {
        goto done;
    }
    const dd_winograd_kind kind = backward ? DD_WINOGRAD_BACKWARD : up ? DD_WINOGRAD_UP : DD_WINOGRAD_FORWARD;
    packed = scratch_of(dd_winograd_pack_bytes(dtype, ic, oc, kind));
    scratch = packed ? scratch_of(dd_winograd_scratch((dd_isa)isa, dtype, ic, threads, in_place ? w : 0)) : NULL;
    if (scratch && (dst = new_activations(dtype, 4, (npy_intp[]){n, up ? 2 * h : h, up ? 2 * w : w, oc}))) {
        dd_winograd_pack((dd_isa)isa, dtype, packed, PyArray_DATA(weights), backward ? oc : ic,
                         backward ? ic : oc, kind);
        void *to = in_place ? PyArray_DATA(src) : PyArray_DATA(dst);
        const dd_winograd_call call = {.dst = to,
                                       .src = PyArray_DATA(src),
                                       .weights = packed,
                                       .bias = bias ? PyArray_DATA(bias) : NULL,
                                       .residual = residual ? PyArray_DATA(residual) : NULL,
                                       .relu = relu,
                                       .up = up,
                                       .n = n,
                                       .h = h,
                                       .w = w,
                                       .ic = ic,
                                       .oc = oc,
                                       .scratch = scratch};
        WITH_THREADS(threads, dd_winograd((dd_isa)isa, dtype, &call));
        if (in_place) {
            memcpy(PyArray_DATA(dst), to, (size_t)PyArray_NBYTES(dst));
        }
    }
done:
    dd_free(packed);
    dd_free(scratch);
    Py_XDECREF(src);
    Py_XDECREF(weights);
    Py_XDECREF(bias);
    Py_XDECREF(residual);
    return (PyObject *)dst;
}

static PyObject *selftest_weight_gradient(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"src", "d_dst", "kernel", "stride", "pad", "isa", "threads", NULL};
    PyObject *o_src, *o_d_dst;
    int kernel, stride, pad, isa, threads;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOiiiii", names, &o_src, &o_d_dst, &kernel, &stride, &pad, &isa,
                                     &threads) ||
        !check_isa(isa) ||
        !check(kernel > 0 && kernel * kernel <= DD_WEIGHT_GRADIENT_TAPS && stride > 0 && pad >= 0 && pad < kernel,
               "window")) {
        return NULL;
    }
    dd_dtype dtype = DD_F32, d_dtype = DD_F32;
    PyArrayObject *src = activations(o_src, 4, &dtype, "src"),
                  *d_dst = src ? activations(o_d_dst, 4, &d_dtype, "d_dst") : NULL;
    PyArrayObject *gradient = NULL;
    void *scratch = NULL;
    if (!d_dst) {
        goto done;
    }
    const int n = dim(src, 0), h = dim(src, 1), w = dim(src, 2), ic = dim(src, 3), oh = dim(d_dst, 1),
              ow = dim(d_dst, 2), oc = dim(d_dst, 3);
    if (!check(d_dtype == dtype && dim(d_dst, 0) == n && oh == (h + 2 * pad - kernel) / stride + 1 &&
                   ow == (w + 2 * pad - kernel) / stride + 1,
               "d_dst: like the convolution's result") ||
        !check((isa == DD_ISA_AMX && dtype == DD_BF16) ||
                   (ic % 16 == 0 && oc % dd_winograd_columns((dd_isa)isa) == 0),
               "channels: 16 and the panel's have to divide them") ||
        !check(dtype == DD_F32 || isa >= DD_ISA_AVX512_BF16, "isa: bfloat16 needs AVX512-BF16")) {
        goto done;
    }
    const dd_window window = {
        .n = n, .h = h, .w = w, .ic = ic, .oh = oh, .ow = ow, .oc = oc, .kernel = kernel, .stride = stride, .pad = pad};
    if ((scratch = scratch_of(dd_weight_gradient_scratch((dd_isa)isa, dtype, &window, threads))) &&
        (gradient = new_activations(DD_F32, 4, (npy_intp[]){oc, ic, kernel, kernel}))) {
        memset(PyArray_DATA(gradient), 0, (size_t)PyArray_NBYTES(gradient));
        WITH_THREADS(threads, dd_weight_gradient((dd_isa)isa, dtype, PyArray_DATA(gradient), PyArray_DATA(src),
                                                 PyArray_DATA(d_dst), &window, scratch));
    }
done:
    dd_free(scratch);
    Py_XDECREF(src);
    Py_XDECREF(d_dst);
    return (PyObject *)gradient;
}

static PyObject *selftest_timestep_embedding(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"t", "dim", "flip_sin_to_cos", "freq_shift", "bf16", NULL};
    PyObject *o_t;
    int size, flip, bf16 = 0;
    float shift;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Oipf|p", names, &o_t, &size, &flip, &shift, &bf16)) {
        return NULL;
    }
    PyArrayObject *t = array_of(o_t, NPY_FLOAT32, 1, "t"), *dst = NULL;
    const dd_dtype dtype = bf16 ? DD_BF16 : DD_F32;
    if (t && (dst = new_activations(dtype, 2, (npy_intp[]){dim(t, 0), size}))) {
        dd_timestep_embedding(dtype, PyArray_DATA(dst), PyArray_DATA(t), dim(t, 0), size, flip, shift);
    }
    Py_XDECREF(t);
    return (PyObject *)dst;
}

static PyObject *selftest_upsample_nearest(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *o_src;
    int oh, ow;
    if (!PyArg_ParseTuple(args, "Oii", &o_src, &oh, &ow)) {
        return NULL;
    }
    dd_dtype dtype;
    PyArrayObject *src = activations(o_src, 4, &dtype, "src"), *dst = NULL;
    if (src && (dst = new_activations(dtype, 4, (npy_intp[]){dim(src, 0), oh, ow, dim(src, 3)}))) {
        dd_upsample_nearest(dtype, PyArray_DATA(dst), PyArray_DATA(src), dim(src, 0), dim(src, 1), dim(src, 2),
                            dim(src, 3), oh, ow);
    }
    Py_XDECREF(src);
    return (PyObject *)dst;
}

static PyObject *selftest_from_nchw(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *o_src;
    int bf16;
    if (!PyArg_ParseTuple(args, "Op", &o_src, &bf16)) {
        return NULL;
    }
    const dd_dtype dtype = bf16 ? DD_BF16 : DD_F32;
    PyArrayObject *src = array_of(o_src, NPY_FLOAT32, 3, "src"), *dst = NULL;
    if (src && (dst = new_activations(dtype, 3, (npy_intp[]){dim(src, 0), dim(src, 2), dim(src, 1)}))) {
        dd_from_nchw(dtype, PyArray_DATA(dst), PyArray_DATA(src), dim(src, 0), dim(src, 1), dim(src, 2));
    }
    Py_XDECREF(src);
    return (PyObject *)dst;
}

static PyObject *selftest_to_nchw(PyObject *Py_UNUSED(module), PyObject *o_src)
{
    dd_dtype dtype;
    PyArrayObject *src = activations(o_src, 3, &dtype, "src"), *dst = NULL;
    if (src && (dst = new_activations(DD_F32, 3, (npy_intp[]){dim(src, 0), dim(src, 2), dim(src, 1)}))) {
        dd_to_nchw(dtype, PyArray_DATA(dst), PyArray_DATA(src), dim(src, 0), dim(src, 2), dim(src, 1));
    }
    Py_XDECREF(src);
    return (PyObject *)dst;
}

static PyObject *selftest_add_noise(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"src", "scale", "given", "keys", "threads", NULL};
    PyObject *o_src, *o_scale, *o_given, *o_keys;
    int threads;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOi", names, &o_src, &o_scale, &o_given, &o_keys, &threads)) {
        return NULL;
    }
    dd_dtype dtype;
    PyArrayObject *src = activations(o_src, 3, &dtype, "src"), *scale = NULL, *given = NULL, *words = NULL, *dst = NULL;
    dd_noise_key *keys = NULL;
    void *scratch = NULL;
    if (!src || !(scale = array_of(o_scale, NPY_FLOAT32, 1, "scale"))) {
        goto done;
    }
    const int n = dim(src, 0), hw = dim(src, 1), c = dim(src, 2);
    if (o_given != Py_None) {
        if (!(given = array_of(o_given, NPY_FLOAT32, 3, "given")) ||
            !check(dim(given, 0) == n && dim(given, 1) == c && dim(given, 2) == hw, "given: (n, c, hw)")) {
            goto done;
        }
    } else {
        if (!(words = array_of(o_keys, NPY_UINT32, 2, "keys")) ||
            !check(dim(words, 0) == n && dim(words, 1) == 8, "keys: (n, 8)") ||
            !(keys = scratch_of((size_t)n * sizeof *keys))) {
            goto done;
        }
        for (int i = 0; i < n; i++) {
            keys[i] = key_of((const uint32_t *)PyArray_DATA(words) + 8 * i);
        }
    }
    if (!check(dim(scale, 0) == n, "scale") || !(scratch = scratch_of(dd_add_noise_scratch(n, c, hw))) ||
        !(dst = new_activations(dtype, 3, PyArray_DIMS(src)))) {
        goto done;
    }
    WITH_THREADS(threads, dd_add_noise(dtype, PyArray_DATA(dst), PyArray_DATA(src), PyArray_DATA(scale),
                                       given ? PyArray_DATA(given) : NULL, keys, n, c, hw, scratch));
done:
    dd_free(scratch);
    dd_free(keys);
    Py_XDECREF(words);
    Py_XDECREF(given);
    Py_XDECREF(scale);
    Py_XDECREF(src);
    return (PyObject *)dst;
}

static PyObject *selftest_embed(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *o_ids, *o_tokens, *o_positions;
    int bf16;
    if (!PyArg_ParseTuple(args, "OOOp", &o_ids, &o_tokens, &o_positions, &bf16)) {
        return NULL;
    }
    const dd_dtype dtype = bf16 ? DD_BF16 : DD_F32;
    PyArrayObject *ids = array_of(o_ids, NPY_INT32, 2, "ids"), *tokens = NULL, *positions = NULL, *dst = NULL;
    if (!ids || !(tokens = array_of(o_tokens, NPY_FLOAT32, 2, "tokens")) ||
        !(positions = array_of(o_positions, NPY_FLOAT32, 2, "positions"))) {
        goto done;
    }
    const int n = dim(ids, 0), t = dim(ids, 1), c = dim(tokens, 1);
    if (!check(dim(positions, 0) >= t && dim(positions, 1) == c, "positions")) {
        goto done;
    }
    for (npy_intp i = 0; i < PyArray_SIZE(ids); i++) {
        const int32_t id = ((const int32_t *)PyArray_DATA(ids))[i];
        if (!check(id >= 0 && id < dim(tokens, 0), "ids")) {
            goto done;
        }
    }
    if ((dst = new_activations(dtype, 3, (npy_intp[]){n, t, c}))) {
        dd_embed(dtype, PyArray_DATA(dst), PyArray_DATA(ids), PyArray_DATA(tokens), PyArray_DATA(positions), n, t, c);
    }
done:
    Py_XDECREF(ids);
    Py_XDECREF(tokens);
    Py_XDECREF(positions);
    return (PyObject *)dst;
}

static PyObject *selftest_convert(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *o_src;
    int bf16;
    if (!PyArg_ParseTuple(args, "Op", &o_src, &bf16)) {
        return NULL;
    }
    PyArrayObject *src, *dst;
    dd_dtype from;
    if (PyArray_Check(o_src) && PyArray_TYPE((PyArrayObject *)o_src) == NPY_FLOAT16) {
        from = DD_F16;
        src = array_of(o_src, NPY_FLOAT16, 1, "src");
    } else {
        src = activations(o_src, 1, &from, "src");
    }
    if (!src) {
        return NULL;
    }
    const dd_dtype to = bf16 ? DD_BF16 : DD_F32;
    if ((dst = new_activations(to, 1, PyArray_DIMS(src)))) {
        dd_convert(to, PyArray_DATA(dst), from, PyArray_DATA(src), (size_t)PyArray_SIZE(src));
    }
    Py_DECREF(src);
    return (PyObject *)dst;
}

static PyObject *selftest_best_isa(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    if (!dd_cpu_supported()) {
        return PyLong_FromLong(-1);
    }
    return PyLong_FromLong(dd_best_isa());
}

/* ---- arena ---------------------------------------------------------------------------------------------------- */

static PyObject *selftest_live_bytes(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromLongLong(dd_live_bytes());
}

static PyObject *selftest_alloc_fail_after(PyObject *Py_UNUSED(module), PyObject *o_n)
{
    const long long n = PyLong_AsLongLong(o_n);
    if (n == -1 && PyErr_Occurred()) {
        return NULL;
    }
    dd_alloc_fail_after(n);
    Py_RETURN_NONE;
}

/* ---- planner --------------------------------------------------------------------------------------------------- */

static PyObject *selftest_plan_memory(PyObject *Py_UNUSED(module), PyObject *o_buffers)
{
    PyObject *list = PySequence_Fast(o_buffers, "expected a list of (bytes, first, last)"), *offsets = NULL;
    if (!list) {
        return NULL;
    }
    const Py_ssize_t count = PySequence_Fast_GET_SIZE(list);
    dd_buffer *buffers = PyMem_Calloc((size_t)count + 1, sizeof *buffers);
    size_t arena = 0;
    bool ok = buffers != NULL;
    for (Py_ssize_t i = 0; ok && i < count; i++) {
        Py_ssize_t bytes;
        ok = PyArg_ParseTuple(PySequence_Fast_GET_ITEM(list, i), "nii", &bytes, &buffers[i].first, &buffers[i].last);
        buffers[i].bytes = (size_t)bytes;
    }
    if (ok && dd_planner_assign(buffers, (int)count, &arena) != DD_OK) {
        PyErr_SetString(PyExc_ValueError, dd_message());
        ok = false;
    }
    offsets = ok ? PyList_New(count) : NULL;
    for (Py_ssize_t i = 0; offsets && i < count; i++) {
        PyList_SET_ITEM(offsets, i, PyLong_FromSize_t(buffers[i].offset));
    }
    PyMem_Free(buffers);
    Py_DECREF(list);
    return offsets ? Py_BuildValue("Nn", offsets, (Py_ssize_t)arena) : NULL;
}

/* ---- module --------------------------------------------------------------------------------------------------- */

#define KEYWORDS(f) (PyCFunction)(void (*)(void))(f), METH_VARARGS | METH_KEYWORDS

static PyMethodDef methods[] = {
    {"philox", selftest_philox, METH_VARARGS, "philox(counter, key) -> four words; tuples of 4 and 2 words"},
    {"normals", KEYWORDS(selftest_normals), "normals(key, first, count, threads=1); key: (8,) uint32"},
    {"group_norm", KEYWORDS(selftest_group_norm),
     "group_norm(src0, src1, row_bias, gamma, beta, groups, eps, silu, in_place, isa, threads, scale_shift=None); "
     "src (n, hw, c)"},
    {"layer_norm", KEYWORDS(selftest_layer_norm), "layer_norm(src, gamma, beta, eps, isa, threads); src (rows, c)"},
    {"weight_gradient", KEYWORDS(selftest_weight_gradient),
     "weight_gradient(src, d_dst, kernel, stride, pad, isa, threads); (n, h, w, ic), (n, oh, ow, oc) -> "
     "(oc, ic, kernel, kernel)"},
    {"winograd", KEYWORDS(selftest_winograd),
     "winograd(src, weights, bias, residual, isa, threads, relu=False, backward=False, up=False, "
     "in_place=False); (n, h, w, ic), (oc, ic, 3, 3); in place: writes over src"},
    {"attention", KEYWORDS(selftest_attention),
     "attention(q, k, v, heads, scale, causal, isa, threads); (n, t, heads * d), rows may be apart"},
    {"timestep_embedding", KEYWORDS(selftest_timestep_embedding),
     "timestep_embedding(t, dim, flip_sin_to_cos, freq_shift, bf16=False)"},
    {"upsample_nearest", selftest_upsample_nearest, METH_VARARGS, "upsample_nearest(src, oh, ow); src (n, h, w, c)"},
    {"from_nchw", selftest_from_nchw, METH_VARARGS, "from_nchw(src, bf16); src (n, c, hw) -> (n, hw, c)"},
    {"to_nchw", selftest_to_nchw, METH_O, "to_nchw(src); src (n, hw, c) -> (n, c, hw) float32"},
    {"add_noise", KEYWORDS(selftest_add_noise), "add_noise(src, scale, given, keys, threads); src (n, hw, c)"},
    {"embed", selftest_embed, METH_VARARGS, "embed(ids, tokens, positions, bf16)"},
    {"convert", selftest_convert, METH_VARARGS,
     "convert(src, bf16); a vector of float32, uint16 (bfloat16) or float16"},
    {"plan_memory", selftest_plan_memory, METH_O, "plan_memory([(bytes, first, last), ...]) -> (offsets, arena bytes)"},
    {"best_isa", selftest_best_isa, METH_NOARGS, "0 AVX2, 1 AVX-512, 2 AVX512-BF16, 3 AMX, -1 none of them"},
    {"live_bytes", selftest_live_bytes, METH_NOARGS, "bytes that the arena has handed out"},
    {"alloc_fail_after", selftest_alloc_fail_after, METH_O, "the (n+1)th allocation from now fails, once; -1: off"},
    {NULL, NULL, 0, NULL},
};

static int selftest_exec(PyObject *Py_UNUSED(module))
{
    import_array1(-1);
    return 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)selftest_exec},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "dreamda._selftest",
    .m_doc = "C internals for the tests",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__selftest(void)
{
    return PyModuleDef_Init(&definition);
}
