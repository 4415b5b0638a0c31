/* The functions of dreamda._core for heads and losses: check what comes, release the GIL, call losses.c. */
#include "bindings/core.h"

#include "base/arena.h"
#include "kernels/losses.h"
#include "kernels/train.h"

/* A float32 matrix of any size above 0; *n and *c are set. */
static PyArrayObject *matrix_in(PyObject *object, const char *name, npy_intp *n, npy_intp *c)
{
    PyArrayObject *array = dd_array_in(object, NPY_FLOAT32, 0, NULL, name);
    if (array && (PyArray_NDIM(array) != 2 || PyArray_SIZE(array) == 0)) {
        PyErr_Format(PyExc_ValueError,
                     "%s: expected a matrix with at least one row and one column, got %d dimensions and %zd elements",
                     name, PyArray_NDIM(array), (Py_ssize_t)PyArray_SIZE(array));
        Py_CLEAR(array);
    }
    if (array) {
        *n = PyArray_DIM(array, 0);
        *c = PyArray_DIM(array, 1);
    }
    return array;
}

static PyArrayObject *labels_in(PyObject *object, npy_intp n, npy_intp classes)
{
    PyArrayObject *array = dd_array_in(object, NPY_INT64, 1, &n, "labels");
    const int64_t *labels = array ? PyArray_DATA(array) : NULL;
    for (npy_intp i = 0; array && i < n; i++) {
        if (labels[i] < 0 || labels[i] >= classes) {
            PyErr_Format(PyExc_ValueError, "labels: number %zd is %lld, but with %zd classes labels go from 0 to %zd",
                         (Py_ssize_t)i, (long long)labels[i], (Py_ssize_t)classes, (Py_ssize_t)(classes - 1));
            Py_CLEAR(array);
        }
    }
    return array;
}

/* An array that is written in place: it has to be exactly what the C code wants. */
static PyArrayObject *writable(PyObject *object, int ndim, const npy_intp *dims, const char *name)
{
    if (!PyArray_Check(object) || PyArray_TYPE((PyArrayObject *)object) != NPY_FLOAT32 ||
        !PyArray_ISCARRAY((PyArrayObject *)object)) {
        PyErr_Format(PyExc_ValueError,
                     "%s: is written in place, so it has to be a writable, C-contiguous float32 array", name);
        return NULL;
    }
    return dd_array_in(object, NPY_FLOAT32, ndim, dims, name);
}

static bool is_fraction(double x, const char *name)
{
    if (!(x >= 0 && x <= 1)) {
        char text[32]; /* PyErr_Format knows no %g */
        PyOS_snprintf(text, sizeof text, "%g", x);
        PyErr_Format(PyExc_ValueError, "%s: has to be from 0 to 1, got %s", name, text);
        return false;
    }
    return true;
}

static PyArrayObject *new_array(int ndim, const npy_intp *dims, int type)
{
    return (PyArrayObject *)PyArray_SimpleNew(ndim, (npy_intp *)dims, type);
}

static PyObject *core_linear(PyObject *module, PyObject *args)
{
    PyObject *objects[3];
    if (!dd_may_compute(PyModule_GetState(module)) ||
        !PyArg_ParseTuple(args, "OOO:linear", &objects[0], &objects[1], &objects[2])) {
        return NULL;
    }
    npy_intp n, f, wide, dims[2];
    PyArrayObject *x = matrix_in(objects[0], "x", &n, &f), *w = NULL, *b = NULL, *y = NULL;
    if (!x || !(w = matrix_in(objects[1], "weight", &dims[1], &wide))) {
        goto done;
    }
    dims[0] = n;
    if (wide != f) {
        PyErr_Format(PyExc_ValueError, "x: has %zd features a row, but the weights are for %zd", (Py_ssize_t)f,
                     (Py_ssize_t)wide);
        goto done;
    }
    if ((b = dd_array_in(objects[2], NPY_FLOAT32, 1, &dims[1], "bias")) && (y = new_array(2, dims, NPY_FLOAT32))) {
        DD_BEGIN_COMPUTING
        dd_affine(PyArray_DATA(y), PyArray_DATA(x), PyArray_DATA(w), PyArray_DATA(b), (size_t)n, (size_t)f,
                  (size_t)dims[1]);
        DD_END_COMPUTING
    }
done:
    Py_XDECREF(x);
    Py_XDECREF(w);
    Py_XDECREF(b);
    return (PyObject *)y;
}

static PyObject *core_linear_backward(PyObject *module, PyObject *args)
{
    PyObject *objects[5];
    if (!dd_may_compute(PyModule_GetState(module)) ||
        !PyArg_ParseTuple(args, "OOOOO:linear_backward", &objects[0], &objects[1], &objects[2], &objects[3],
                          &objects[4])) {
        return NULL;
    }
    npy_intp n, f, c, wide;
    PyArrayObject *x = matrix_in(objects[0], "x", &n, &f), *w = NULL, *dy = NULL, *dw = NULL, *db = NULL, *dx = NULL;
    if (!x || !(w = matrix_in(objects[1], "weight", &c, &wide))) {
        goto done;
    }
    if (wide != f) {
        PyErr_Format(PyExc_ValueError, "x: has %zd features a row, but the weights are for %zd", (Py_ssize_t)f,
                     (Py_ssize_t)wide);
        goto done;
    }
    if ((dy = dd_array_in(objects[2], NPY_FLOAT32, 2, (npy_intp[]){n, c}, "d_y")) &&
        (dw = writable(objects[3], 2, (npy_intp[]){c, f}, "d_weight")) &&
        (db = writable(objects[4], 1, &c, "d_bias")) && (dx = new_array(2, (npy_intp[]){n, f}, NPY_FLOAT32))) {
        DD_BEGIN_COMPUTING
        dd_affine_backward(PyArray_DATA(dx), PyArray_DATA(dw), PyArray_DATA(db), PyArray_DATA(dy), PyArray_DATA(x),
                           PyArray_DATA(w), (size_t)n, (size_t)f, (size_t)c);
        DD_END_COMPUTING
    }
done:
    Py_XDECREF(x);
    Py_XDECREF(w);
    Py_XDECREF(dy);
    Py_XDECREF(dw);
    Py_XDECREF(db);
    return (PyObject *)dx;
}

static PyObject *core_softmax(PyObject *module, PyObject *object)
{
    npy_intp dims[2];
    PyArrayObject *z = dd_may_compute(PyModule_GetState(module)) ? matrix_in(object, "logits", &dims[0], &dims[1])
                                                                 : NULL;
    PyArrayObject *p = z ? new_array(2, dims, NPY_FLOAT32) : NULL;
    if (p) {
        DD_BEGIN_COMPUTING
        dd_softmax(PyArray_DATA(p), PyArray_DATA(z), (size_t)dims[0], (size_t)dims[1]);
        DD_END_COMPUTING
    }
    Py_XDECREF(z);
    return (PyObject *)p;
}

static PyObject *core_softmax_cross_entropy(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"logits", "labels", "weights", "smoothing", NULL};
    PyObject *z_object, *labels_object, *weights_object = Py_None;
    float smoothing = 0;
    if (!dd_may_compute(PyModule_GetState(module)) ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "OO|Of:softmax_cross_entropy", names, &z_object, &labels_object,
                                     &weights_object, &smoothing) ||
        !is_fraction(smoothing, "smoothing")) {
        return NULL;
    }
    npy_intp dims[2];
    PyArrayObject *z = matrix_in(z_object, "logits", &dims[0], &dims[1]), *labels = NULL, *weights = NULL, *dz = NULL;
    double *rows = NULL, loss = 0;
    if (!z || !(labels = labels_in(labels_object, dims[0], dims[1])) ||
        (weights_object != Py_None && !(weights = dd_array_in(weights_object, NPY_FLOAT32, 1, dims, "weights")))) {
        goto done;
    }
    rows = dd_alloc((size_t)dims[0] * sizeof *rows);
    if (!rows) {
        PyErr_NoMemory();
    } else if ((dz = new_array(2, dims, NPY_FLOAT32))) {
        DD_BEGIN_COMPUTING
        loss = dd_softmax_cross_entropy(PyArray_DATA(dz), rows, PyArray_DATA(z), PyArray_DATA(labels),
                                        weights ? PyArray_DATA(weights) : NULL, (size_t)dims[0], (size_t)dims[1],
                                        smoothing);
        DD_END_COMPUTING
    }
done:
    dd_free(rows);
    Py_XDECREF(z);
    Py_XDECREF(labels);
    Py_XDECREF(weights);
    return dz ? Py_BuildValue("(dN)", loss, dz) : NULL;
}

static PyObject *core_consistency(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"strong", "weak", "threshold", NULL};
    PyObject *strong_object, *weak_object;
    float threshold;
    if (!dd_may_compute(PyModule_GetState(module)) ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "OOf:consistency", names, &strong_object, &weak_object,
                                     &threshold) ||
        !is_fraction(threshold, "threshold")) {
        return NULL;
    }
    npy_intp dims[2];
    PyArrayObject *strong = matrix_in(strong_object, "strong", &dims[0], &dims[1]), *weak = NULL, *dz = NULL;
    double *rows = NULL, loss = 0;
    size_t used = 0;
    if (!strong || !(weak = dd_array_in(weak_object, NPY_FLOAT32, 2, dims, "weak"))) {
        goto done;
    }
    rows = dd_alloc((size_t)dims[0] * sizeof *rows);
    if (!rows) {
        PyErr_NoMemory();
    } else if ((dz = new_array(2, dims, NPY_FLOAT32))) {
        DD_BEGIN_COMPUTING
        loss = dd_consistency(PyArray_DATA(dz), rows, &used, PyArray_DATA(strong), PyArray_DATA(weak), (size_t)dims[0],
                              (size_t)dims[1], threshold);
        DD_END_COMPUTING
    }
done:
    dd_free(rows);
    Py_XDECREF(strong);
    Py_XDECREF(weak);
    return dz ? Py_BuildValue("(dNn)", loss, dz, (Py_ssize_t)used) : NULL;
}

static PyObject *core_pseudo_label(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"logits", "threshold", NULL};
    PyObject *object;
    float threshold;
    if (!dd_may_compute(PyModule_GetState(module)) ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "Of:pseudo_label", names, &object, &threshold) ||
        !is_fraction(threshold, "threshold")) {
        return NULL;
    }
    PyArrayObject *z = dd_array_in(object, NPY_FLOAT32, 0, NULL, "logits");
    if (z && (PyArray_NDIM(z) != 3 || PyArray_SIZE(z) == 0)) {
        PyErr_Format(PyExc_ValueError,
                     "logits: expected (heads, rows, classes), all above 0, got %d dimensions and %zd elements",
                     PyArray_NDIM(z), (Py_ssize_t)PyArray_SIZE(z));
        Py_CLEAR(z);
    }
    if (!z) {
        return NULL;
    }
    const npy_intp *dims = PyArray_DIMS(z);
    PyArrayObject *labels = new_array(1, &dims[1], NPY_INT32),
                  *confidence = labels ? new_array(1, &dims[1], NPY_FLOAT32) : NULL;
    if (confidence) {
        DD_BEGIN_COMPUTING
        dd_pseudo_label(PyArray_DATA(labels), PyArray_DATA(confidence), PyArray_DATA(z), (size_t)dims[0],
                        (size_t)dims[1], (size_t)dims[2], threshold);
        DD_END_COMPUTING
    } else {
        Py_CLEAR(labels);
    }
    Py_DECREF(z);
    return labels ? Py_BuildValue("(NN)", labels, confidence) : NULL;
}

static PyObject *core_sgd_step(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"parameters",   "gradients", "moments", "lr", "momentum",
                            "weight_decay", "nesterov",  "scale",   NULL};
    PyObject *objects[3];
    float lr, momentum = 0, decay = 0, scale = 1;
    int nesterov = 1;
    if (!dd_may_compute(PyModule_GetState(module)) ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "OOOf|ffpf:sgd_step", names, &objects[0], &objects[1], &objects[2],
                                     &lr, &momentum, &decay, &nesterov, &scale)) {
        return NULL;
    }
    PyArrayObject *p = writable(objects[0], 0, NULL, "parameters"), *g = NULL, *m = NULL;
    if (p && (g = dd_array_in(objects[1], NPY_FLOAT32, PyArray_NDIM(p), PyArray_DIMS(p), "gradients")) &&
        (m = writable(objects[2], PyArray_NDIM(p), PyArray_DIMS(p), "moments"))) {
        const dd_sgd sgd = {
            .lr = lr, .momentum = momentum, .weight_decay = decay, .nesterov = nesterov != 0, .scale = scale};
        DD_BEGIN_COMPUTING
        dd_sgd_step(PyArray_DATA(p), PyArray_DATA(m), PyArray_DATA(g), (size_t)PyArray_SIZE(p), &sgd);
        DD_END_COMPUTING
    }
    PyObject *result = m ? Py_NewRef(Py_None) : NULL;
    Py_XDECREF(p);
    Py_XDECREF(g);
    Py_XDECREF(m);
    return result;
}

#define KEYWORDS(f) (PyCFunction)(void (*)(void))f, METH_VARARGS | METH_KEYWORDS

PyMethodDef dd_loss_methods[] = {
    {"linear", core_linear, METH_VARARGS,
     "linear(x, weight, bias) -> x weight^T + bias; x (n, f), weight (c, f), bias (c)."},
    {"linear_backward", core_linear_backward, METH_VARARGS,
     "linear_backward(x, weight, d_y, d_weight, d_bias) -> d_x; adds to d_weight and d_bias in place."},
    {"softmax", core_softmax, METH_O, "softmax(logits) -> the probabilities of each row."},
    {"softmax_cross_entropy", KEYWORDS(core_softmax_cross_entropy),
     "softmax_cross_entropy(logits, labels, weights=None, smoothing=0) "
     "-> (sum of weighted losses / rows, its gradient to logits)."},
    {"consistency", KEYWORDS(core_consistency),
     "consistency(strong, weak, threshold) -> (loss, its gradient to strong, rows that counted); "
     "weak gets no gradient."},
    {"pseudo_label", KEYWORDS(core_pseudo_label),
     "pseudo_label(logits (heads, rows, classes), threshold) -> (labels int32, -1: not accepted; confidence float32)."},
    {"sgd_step", KEYWORDS(core_sgd_step),
     "sgd_step(parameters, gradients, moments, lr, momentum=0, weight_decay=0, nesterov=True, scale=1): "
     "one step in place."},
    {NULL, NULL, 0, NULL},
};
