#include "bindings/core.h"

PyObject *dd_raise(dd_module_state *state, dd_status status)
{
    const bool refused = status == DD_ONEDNN || status == DD_FORKED || status == DD_TEAM;
    PyObject *type = status == DD_NOMEM ? PyExc_MemoryError : refused ? state->error : PyExc_ValueError;
    PyErr_SetString(type, dd_message());
    return NULL;
}

bool dd_may_compute(dd_module_state *state)
{
    dd_status status = dd_process_enter();
    if (status != DD_OK) {
        dd_raise(state, status);
    }
    return status == DD_OK;
}

const char *dd_dtype_name(int dtype)
{
    return dtype == DD_S32 ? "int32" : dtype == DD_U32 ? "uint32" : "float32";
}

int dd_numpy_type(int dtype)
{
    return dtype == DD_S32 ? NPY_INT32 : dtype == DD_U32 ? NPY_UINT32 : NPY_FLOAT32;
}

int dd_int_in(PyObject *object, void *out)
{
    int overflow;
    long long x = PyLong_AsLongLongAndOverflow(object, &overflow);
    if (x == -1 && PyErr_Occurred()) {
        return 0;
    }
    *(int *)out = overflow < 0 || (!overflow && x < INT_MIN) ? INT_MIN : overflow > 0 || x > INT_MAX ? INT_MAX : (int)x;
    return 1;
}

bool dd_dict_item(PyObject *dict, const char *key, PyObject **value)
{
    PyObject *name = PyUnicode_FromString(key);
    *value = name ? PyDict_GetItemWithError(dict, name) : NULL;
    Py_XDECREF(name);
    return *value || !PyErr_Occurred();
}

PyObject *dd_shape_tuple(int ndim, const npy_intp *dims)
{
    PyObject *shape = PyTuple_New(ndim);
    for (int i = 0; shape && i < ndim; i++) {
        PyObject *item = PyLong_FromSsize_t(dims[i]);
        if (!item) {
            Py_CLEAR(shape);
            break;
        }
        PyTuple_SET_ITEM(shape, i, item);
    }
    return shape;
}

static void raise_shape(const char *name, int ndim, const npy_intp *dims, PyArrayObject *got)
{
    PyObject *expected = dd_shape_tuple(ndim, dims), *found = dd_shape_tuple(PyArray_NDIM(got), PyArray_DIMS(got));
    if (expected && found) {
        PyErr_Format(PyExc_ValueError, "%s: expected an array of shape %R, got %R", name, expected, found);
    }
    Py_XDECREF(expected);
    Py_XDECREF(found);
}

/* Whether a cast has left every number what it was. */
static bool keeps_values(PyArrayObject *cast, PyArrayObject *original)
{
    PyObject *equal = PyObject_RichCompare((PyObject *)cast, (PyObject *)original, Py_EQ);
    PyObject *all = equal ? PyObject_CallMethod(equal, "all", NULL) : NULL;
    const bool kept = all && PyObject_IsTrue(all) == 1;
    Py_XDECREF(all);
    Py_XDECREF(equal);
    return kept;
}

PyArrayObject *dd_array_in(PyObject *object, int type, int ndim, const npy_intp *dims, const char *name)
{
    PyArrayObject *any = (PyArrayObject *)PyArray_FROM_O(object), *array;
    if (!any) {
        return NULL;
    }
    bool wants_float = type == NPY_FLOAT32;
    if (wants_float ? !PyArray_ISFLOAT(any) && !PyArray_ISINTEGER(any) : !PyArray_ISINTEGER(any)) {
        PyErr_Format(PyExc_ValueError, "%s: expected an array of %s, got %R", name,
                     wants_float ? "float32" : "integers", (PyObject *)PyArray_DESCR(any));
        Py_DECREF(any);
        return NULL;
    }
    if (dims && (PyArray_NDIM(any) != ndim || !PyArray_CompareLists(PyArray_DIMS(any), dims, ndim))) {
        raise_shape(name, ndim, dims, any);
        Py_DECREF(any);
        return NULL;
    }
    array = (PyArrayObject *)PyArray_FROMANY((PyObject *)any, type, 0, 0, NPY_ARRAY_IN_ARRAY | NPY_ARRAY_FORCECAST);
    if (array && !wants_float && array != any && !keeps_values(array, any)) {
        if (!PyErr_Occurred()) {
            PyErr_Format(PyExc_ValueError, "%s: some of the numbers do not fit %R", name,
                         (PyObject *)PyArray_DESCR(array));
        }
        Py_CLEAR(array);
    }
    Py_DECREF(any);
    return array;
}
