/* dreamda._core.Plan: arrays in and out of a dd_plan, with the GIL released while it runs. */
#include "bindings/core.h"

#include <pythread.h>

typedef struct {
    PyObject_HEAD
    dd_model_object *model; /* strong: owns the weights */
    dd_plan *plan;          /* owned */
    PyThread_type_lock lock; /* one run at a time */
} plan_object;

PyObject *dd_plan_object_new(dd_module_state *state, dd_model_object *model, dd_plan *plan)
{
    PyTypeObject *type = state->plan_type;
    plan_object *self = (plan_object *)type->tp_alloc(type, 0);
    if (!self) {
        dd_plan_destroy(plan);
        return NULL;
    }
    self->plan = plan;
    self->model = (dd_model_object *)Py_NewRef((PyObject *)model);
    self->lock = PyThread_allocate_lock();
    if (!self->lock) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static int plan_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((plan_object *)self)->model);
    return 0;
}

static void plan_dealloc(PyObject *object)
{
    plan_object *self = (plan_object *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    dd_plan_destroy(self->plan);
    if (self->lock) {
        PyThread_free_lock(self->lock);
    }
    Py_XDECREF((PyObject *)self->model);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyObject *plan_missing(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    const dd_plan *plan = ((plan_object *)self)->plan;
    const dd_weights *w = ((plan_object *)self)->model->weights;
    int count = dd_weights_count(w);
    int *ids = PyMem_Calloc((size_t)count + 1, sizeof *ids);
    if (!ids) {
        return PyErr_NoMemory();
    }
    count = dd_plan_missing(plan, ids, count);
    PyObject *list = PyList_New(count);
    for (int i = 0; list && i < count; i++) {
        PyObject *name = PyUnicode_FromString(dd_weights_get(w, ids[i])->name);
        if (!name) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, i, name);
    }
    PyMem_Free(ids);
    return list;
}

static PyObject *plan_load(PyObject *object, PyObject *args)
{
    const char *name;
    PyObject *source;
    plan_object *self = (plan_object *)object;
    dd_module_state *state = PyType_GetModuleState(Py_TYPE(object));
    if (!dd_may_compute(state) || !PyArg_ParseTuple(args, "sO:load", &name, &source)) {
        return NULL;
    }
    int id = dd_weights_find(self->model->weights, name);
    if (id < 0) {
        PyErr_Format(PyExc_ValueError, "the model has no parameter '%s'", name);
        return NULL;
    }
    const dd_parameter *p = dd_weights_get(self->model->weights, id);
    PyArrayObject *array = (PyArrayObject *)PyArray_FROM_OF(source, NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ALIGNED |
                                                                        NPY_ARRAY_NOTSWAPPED);
    if (!array) {
        return NULL;
    }
    bool fits = PyArray_NDIM(array) == p->ndim;
    for (int i = 0; fits && i < p->ndim; i++) {
        fits = PyArray_DIM(array, i) == p->dims[i];
    }
    int type = PyArray_TYPE(array);
    dd_status status = DD_INVALID;
    if (!fits) {
        PyErr_Format(PyExc_ValueError, "parameter '%s' has another shape than the model's", name);
    } else if (type != NPY_FLOAT32 && type != NPY_FLOAT16 && type != NPY_UINT16) {
        PyErr_Format(PyExc_ValueError, "parameter '%s': expected float32, float16 or uint16 (bfloat16 bits), got %R",
                     name, (PyObject *)PyArray_DESCR(array));
    } else {
        dd_dtype dtype = type == NPY_FLOAT32 ? DD_F32 : type == NPY_FLOAT16 ? DD_F16 : DD_BF16;
        status = dd_weights_load(self->model->weights, id, dtype, PyArray_DATA(array));
        if (status != DD_OK) {
            dd_raise(state, status);
        }
    }
    Py_DECREF(array);
    return status == DD_OK ? Py_NewRef(Py_None) : NULL;
}

static PyObject *plan_read(PyObject *object, PyObject *args)
{
    const char *name, *type;
    PyObject *path;
    long long offset;
    plan_object *self = (plan_object *)object;
    dd_module_state *state = PyType_GetModuleState(Py_TYPE(object));
    if (!dd_may_compute(state) ||
        !PyArg_ParseTuple(args, "sO&sL:read", &name, PyUnicode_FSConverter, &path, &type, &offset)) {
        return NULL;
    }
    const char *const types[] = {[DD_F32] = "float32", [DD_F16] = "float16", [DD_BF16] = "uint16"};
    int id = dd_weights_find(self->model->weights, name), dtype = 0, known = (int)(sizeof types / sizeof *types);
    while (dtype < known && strcmp(types[dtype], type) != 0) {
        dtype++;
    }
    dd_status status = DD_INVALID;
    if (id < 0) {
        PyErr_Format(PyExc_ValueError, "the model has no parameter '%s'", name);
    } else if (dtype == known) {
        PyErr_Format(PyExc_ValueError, "parameter '%s': expected float32, float16 or uint16 (bfloat16 bits), got %s",
                     name, type);
    } else {
        status = dd_weights_read(self->model->weights, id, (dd_dtype)dtype, PyBytes_AS_STRING(path), offset);
        if (status != DD_OK) {
            dd_raise(state, status);
        }
    }
    Py_DECREF(path);
    return status == DD_OK ? Py_NewRef(Py_None) : NULL;
}

static void shape_of(const dd_value_info *v, npy_intp dims[4])
{
    for (int j = 0; j < v->ndim; j++) {
        dims[j] = (npy_intp)v->dims[j];
    }
}

/* arrays[i]: a strong reference, or NULL where an optional input is absent. False with an exception set. */
static bool collect_inputs(const dd_plan *plan, PyObject *given, PyArrayObject **arrays, const void **sources)
{
    Py_ssize_t used = 0;
    for (int i = 0; i < dd_plan_inputs(plan); i++) {
        const dd_value_info *v = dd_plan_input(plan, i);
        PyObject *object;
        npy_intp dims[4];
        if (!dd_dict_item(given, v->name, &object)) {
            return false;
        }
        used += object != NULL;
        if (!object || object == Py_None) {
            continue;
        }
        shape_of(v, dims);
        arrays[i] = dd_array_in(object, dd_numpy_type(v->dtype), v->ndim, dims, v->name);
        if (!arrays[i]) {
            return false;
        }
        sources[i] = PyArray_DATA(arrays[i]);
    }
    if (used != PyDict_GET_SIZE(given)) {
        PyErr_SetString(PyExc_ValueError,
                        "run: this plan has no input of one of the given names; plan.inputs lists them");
        return false;
    }
    return true;
}

/* A dict of new arrays, one for every output, whose data targets[i] is. NULL with an exception set. */
static PyObject *new_outputs(const dd_plan *plan, void **targets)
{
    PyObject *dict = PyDict_New();
    for (int i = 0; dict && i < dd_plan_outputs(plan); i++) {
        const dd_value_info *v = dd_plan_output(plan, i);
        npy_intp dims[4];
        shape_of(v, dims);
        PyObject *array = PyArray_SimpleNew(v->ndim, dims, NPY_FLOAT32);
        if (!array || PyDict_SetItemString(dict, v->name, array) < 0) {
            Py_CLEAR(dict);
        } else {
            targets[i] = PyArray_DATA((PyArrayObject *)array);
        }
        Py_XDECREF(array);
    }
    return dict;
}

static PyObject *plan_run(PyObject *object, PyObject *given)
{
    plan_object *self = (plan_object *)object;
    dd_module_state *state = PyType_GetModuleState(Py_TYPE(object));
    const int ninputs = dd_plan_inputs(self->plan), noutputs = dd_plan_outputs(self->plan);
    PyObject *result = NULL;
    dd_status status;
    if (!dd_may_compute(state)) {
        return NULL;
    }
    if (!PyDict_Check(given)) {
        PyErr_SetString(PyExc_TypeError, "run: expected a dict of arrays");
        return NULL;
    }
    void **pointers = PyMem_Calloc((size_t)(2 * ninputs + noutputs) + 1, sizeof *pointers);
    if (!pointers) {
        return PyErr_NoMemory();
    }
    PyArrayObject **arrays = (PyArrayObject **)pointers;
    const void **sources = (const void **)pointers + ninputs;
    void **targets = pointers + 2 * ninputs;
    result = collect_inputs(self->plan, given, arrays, sources) ? new_outputs(self->plan, targets) : NULL;
    if (!result) {
        goto done;
    }
    status = dd_plan_bind(self->plan); /* under the GIL, as loads are */
    if (status == DD_OK) {
        DD_BEGIN_COMPUTING
        PyThread_acquire_lock(self->lock, WAIT_LOCK);
        status = dd_plan_run(self->plan, sources, targets);
        PyThread_release_lock(self->lock);
        DD_END_COMPUTING
    }
    if (status != DD_OK) {
        dd_raise(state, status);
        Py_CLEAR(result);
    }
done:
    for (int i = 0; i < ninputs; i++) {
        Py_XDECREF((PyObject *)arrays[i]);
    }
    PyMem_Free(pointers);
    return result;
}

static PyObject *plan_profile(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    plan_object *self = (plan_object *)object;
    int rows = dd_plan_profile_rows(self->plan);
    if (!dd_may_compute(PyType_GetModuleState(Py_TYPE(object)))) {
        return NULL;
    }
    dd_profile_row *kept = PyMem_Calloc((size_t)rows + 1, sizeof *kept);
    if (!kept) {
        return PyErr_NoMemory();
    }
    DD_BEGIN_COMPUTING /* a run writes the times */
    PyThread_acquire_lock(self->lock, WAIT_LOCK);
    for (int i = 0; i < rows; i++) {
        kept[i] = dd_plan_profile(self->plan, i);
    }
    PyThread_release_lock(self->lock);
    DD_END_COMPUTING
    PyObject *list = PyList_New(rows);
    for (int i = 0; list && i < rows; i++) {
        dd_profile_row r = kept[i];
        double gflops = r.seconds > 0 ? r.flops / r.seconds * 1e-9 : 0;
        PyObject *row = Py_BuildValue("{s:s,s:s,s:s,s:d,s:d}", "name", r.name, "op", r.op, "implementation",
                                      r.implementation, "ms", 1e3 * r.seconds, "gflops", gflops);
        if (!row) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, i, row);
    }
    PyMem_Free(kept);
    return list;
}

static PyObject *externals(const dd_plan *plan, int count, const dd_value_info *(*get)(const dd_plan *, int))
{
    PyObject *dict = PyDict_New();
    for (int i = 0; dict && i < count; i++) {
        const dd_value_info *v = get(plan, i);
        npy_intp dims[4];
        shape_of(v, dims);
        PyObject *shape = dd_shape_tuple(v->ndim, dims);
        PyObject *entry = shape ? Py_BuildValue("(sN)", dd_dtype_name(v->dtype), shape) : NULL;
        if (!entry || PyDict_SetItemString(dict, v->name, entry)) {
            Py_CLEAR(dict);
        }
        Py_XDECREF(entry);
    }
    return dict;
}

static PyObject *plan_inputs(PyObject *self, void *Py_UNUSED(closure))
{
    const dd_plan *plan = ((plan_object *)self)->plan;
    return externals(plan, dd_plan_inputs(plan), dd_plan_input);
}

static PyObject *plan_outputs(PyObject *self, void *Py_UNUSED(closure))
{
    const dd_plan *plan = ((plan_object *)self)->plan;
    return externals(plan, dd_plan_outputs(plan), dd_plan_output);
}

static PyObject *plan_memory(PyObject *object, void *Py_UNUSED(closure))
{
    const plan_object *self = (const plan_object *)object;
    return Py_BuildValue("{s:n,s:n}", "arena", (Py_ssize_t)dd_plan_arena_bytes(self->plan), "weights",
                         (Py_ssize_t)dd_weights_bytes(self->model->weights));
}

static PyMethodDef plan_methods[] = {
    {"missing", plan_missing, METH_NOARGS, "missing() -> names of the parameters that still have to be loaded."},
    {"load", plan_load, METH_VARARGS,
     "load(name, array): pack one parameter (float32, float16, or uint16 holding bfloat16)."},
    {"read", plan_read, METH_VARARGS,
     "read(name, path, dtype, offset): the same from a file, a part at a time; dtype as text."},
    {"run", plan_run, METH_O,
     "run(inputs) -> outputs, dicts of arrays. Releases the GIL; concurrent calls wait for each other."},
    {"profile", plan_profile, METH_NOARGS,
     "profile() -> list of dict: name, op, implementation, ms, gflops of the last run."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef plan_getset[] = {
    {"inputs", plan_inputs, NULL, "name -> (dtype, shape)", NULL},
    {"outputs", plan_outputs, NULL, "name -> (dtype, shape)", NULL},
    {"memory", plan_memory, NULL, "bytes of this plan's arena and of the model's packed weights", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot plan_slots[] = {
    {Py_tp_doc, "A model made ready to run at one shape and dtype; made by Model.plan."},
    {Py_tp_dealloc, plan_dealloc},
    {Py_tp_traverse, plan_traverse},
    {Py_tp_methods, plan_methods},
    {Py_tp_getset, plan_getset},
    {0, NULL},
};

PyType_Spec dd_plan_spec = {
    .name = "dreamda._core.Plan",
    .basicsize = sizeof(plan_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = plan_slots,
};
