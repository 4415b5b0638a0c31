/* dreamda._core.Trainer: a backbone in training, with its parameters as arrays. */
#include "bindings/core.h"

#include "training/trainer.h"

#include <pythread.h>
#include <stdatomic.h>
#include <string.h>

typedef struct {
    PyObject_HEAD
    dd_trainer *trainer; /* owned */
    PyThread_type_lock lock; /* one call at a time */
    struct {
        atomic_int lent;     /* views that are alive: someone may write through them at any time */
        atomic_bool touched; /* a view was alive since the last pass */
    } views[DD_TRAINER_PARTS];
} trainer_object;

static PyObject *trainer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"config", "batch", "height", "width", "dtype", "threads", "slots", NULL};
    dd_module_state *state = PyType_GetModuleState(type);
    PyObject *config;
    const char *dtype = "";
    int batch = 0, height = 0, width = 0, threads = 0, slots = 1;
    dd_resnet_config c = {0};
    if (!dd_may_compute(state) ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "O!|$O&O&O&sO&O&:Trainer", names, &PyDict_Type, &config, dd_int_in,
                                     &batch, dd_int_in, &height, dd_int_in, &width, &dtype, dd_int_in, &threads,
                                     dd_int_in, &slots) ||
        !dd_read_resnet(config, &c)) {
        return NULL;
    }
    dd_dtype t = strcmp(dtype, "bf16") == 0 ? DD_BF16 : DD_F32;
    if (t == DD_F32 && strcmp(dtype, "f32") != 0) {
        PyErr_Format(PyExc_ValueError, "dtype: '%s' is unknown: use f32 or bf16", dtype);
        return NULL;
    }
    if (threads < 1 || threads > 1024 || slots < 1 || slots > DD_MAX_SLOTS) {
        PyErr_Format(PyExc_ValueError,
                     "%d threads and %d slots are not possible: use 1 to 1024 threads and 1 to %d slots", threads,
                     slots, DD_MAX_SLOTS);
        return NULL;
    }
    if (batch < 1 || batch > 65536 || height < 1 || height > 65536 || width < 1 || width > 65536) {
        PyErr_Format(PyExc_ValueError, "a batch of %d images of %d x %d is not possible", batch, height, width);
        return NULL;
    }
    trainer_object *self = (trainer_object *)type->tp_alloc(type, 0);
    if (!self) {
        return NULL;
    }
    self->lock = PyThread_allocate_lock();
    dd_weights *weights = NULL;
    dd_graph *graph = NULL;
    dd_status status = self->lock ? dd_weights_create(&weights) : dd_fail(DD_NOMEM, "out of memory for a lock");
    if (status == DD_OK && (status = dd_graph_create(&graph, weights)) != DD_OK) {
        dd_weights_destroy(weights);
    }
    if (status == DD_OK) {
        if ((status = dd_resnet_build(graph, &c, batch, height, width)) != DD_OK) {
            dd_graph_destroy(graph);
            dd_weights_destroy(weights);
        } else {
            status = dd_trainer_create(&self->trainer, weights, graph, t, threads, slots);
        }
    }
    if (status != DD_OK) {
        Py_DECREF(self);
        return dd_raise(state, status);
    }
    return (PyObject *)self;
}

static int trainer_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static void trainer_dealloc(PyObject *object)
{
    trainer_object *self = (trainer_object *)object;
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    dd_trainer_destroy(self->trainer);
    if (self->lock) {
        PyThread_free_lock(self->lock);
    }
    type->tp_free(object);
    Py_DECREF(type);
}

/* ---- computing */

#define LOCKED(self, call)                               \
    do {                                                 \
        DD_BEGIN_COMPUTING                           \
        PyThread_acquire_lock((self)->lock, WAIT_LOCK);  \
        call;                                            \
        PyThread_release_lock((self)->lock);             \
        DD_END_COMPUTING                             \
    } while (0)

/* With the lock, before packed weights are used. */
static void note_touch(trainer_object *self)
{
    for (int part = 0; part < DD_TRAINER_PARTS; part++) {
        if (atomic_exchange(&self->views[part].touched, false) || atomic_load(&self->views[part].lent) > 0) {
            dd_trainer_touched(self->trainer, (dd_trainer_part)part);
        }
    }
}

static bool may_compute(PyObject *self)
{
    return dd_may_compute(PyType_GetModuleState(Py_TYPE(self)));
}

static bool check_slot(const trainer_object *self, int slot)
{
    if (slot < 0 || slot >= dd_trainer_slots(self->trainer)) {
        PyErr_Format(PyExc_ValueError, "slot %d: this trainer has slots 0 to %d", slot,
                     dd_trainer_slots(self->trainer) - 1);
        return false;
    }
    return true;
}

static PyObject *new_features(const trainer_object *self, npy_intp rows)
{
    return PyArray_SimpleNew(2, ((npy_intp[]){rows, dd_trainer_features(self->trainer)}), NPY_FLOAT32);
}

static PyArrayObject *images_in(const trainer_object *self, PyObject *object, npy_intp rows)
{
    const dd_value_info *in = dd_trainer_input(self->trainer);
    npy_intp dims[4] = {rows, (npy_intp)in->dims[1], (npy_intp)in->dims[2], (npy_intp)in->dims[3]};
    return dd_array_in(object, NPY_FLOAT32, 4, dims, "images");
}

static PyObject *trainer_forward(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"images", "slot", NULL};
    trainer_object *self = (trainer_object *)object;
    PyObject *given;
    int slot = 0;
    if (!may_compute(object) ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "O|O&:forward", names, &given, dd_int_in, &slot) ||
        !check_slot(self, slot)) {
        return NULL;
    }
    npy_intp rows = (npy_intp)dd_trainer_input(self->trainer)->dims[0];
    PyArrayObject *images = images_in(self, given, rows);
    PyObject *features = images ? new_features(self, rows) : NULL;
    if (features) {
        dd_status status;
        const float *from = PyArray_DATA(images);
        float *to = PyArray_DATA((PyArrayObject *)features);
        LOCKED(self, note_touch(self); status = dd_trainer_forward(self->trainer, slot, from, to));
        if (status != DD_OK) {
            Py_CLEAR(features);
            dd_raise(PyType_GetModuleState(Py_TYPE(object)), status);
        }
    }
    Py_XDECREF(images);
    return features;
}

static PyObject *trainer_evaluate(PyObject *object, PyObject *given)
{
    trainer_object *self = (trainer_object *)object;
    npy_intp batch = (npy_intp)dd_trainer_input(self->trainer)->dims[0];
    PyArrayObject *any = may_compute(object) ? (PyArrayObject *)PyArray_FROM_O(given) : NULL;
    if (!any) {
        return NULL;
    }
    npy_intp rows = PyArray_NDIM(any) == 4 ? PyArray_DIM(any, 0) : batch;
    if (rows < 1 || rows > batch) {
        PyErr_Format(PyExc_ValueError, "images: %zd given, but this trainer takes 1 to %zd at a time", (Py_ssize_t)rows,
                     (Py_ssize_t)batch);
        Py_DECREF(any);
        return NULL;
    }
    PyArrayObject *images = images_in(self, (PyObject *)any, rows);
    Py_DECREF(any);
    PyObject *features = images ? new_features(self, rows) : NULL;
    if (features) {
        dd_status status;
        const float *from = PyArray_DATA(images);
        float *to = PyArray_DATA((PyArrayObject *)features);
        LOCKED(self, note_touch(self); status = dd_trainer_evaluate(self->trainer, from, (int)rows, to));
        if (status != DD_OK) {
            Py_CLEAR(features);
            dd_raise(PyType_GetModuleState(Py_TYPE(object)), status);
        }
    }
    Py_XDECREF(images);
    return features;
}

static PyObject *trainer_backward(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"d_features", "slot", NULL};
    trainer_object *self = (trainer_object *)object;
    PyObject *given;
    int slot = 0;
    if (!may_compute(object) ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "O|O&:backward", names, &given, dd_int_in, &slot) ||
        !check_slot(self, slot)) {
        return NULL;
    }
    npy_intp dims[2] = {(npy_intp)dd_trainer_input(self->trainer)->dims[0], dd_trainer_features(self->trainer)};
    PyArrayObject *d_features = dd_array_in(given, NPY_FLOAT32, 2, dims, "d_features");
    if (!d_features) {
        return NULL;
    }
    dd_status status;
    const float *from = PyArray_DATA(d_features);
    LOCKED(self, status = dd_trainer_backward(self->trainer, slot, from));
    Py_DECREF(d_features);
    return status == DD_OK ? Py_NewRef(Py_None) : dd_raise(PyType_GetModuleState(Py_TYPE(object)), status);
}

static PyObject *trainer_zero_grad(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    trainer_object *self = (trainer_object *)object;
    if (!may_compute(object)) {
        return NULL;
    }
    LOCKED(self, dd_trainer_zero_gradients(self->trainer));
    Py_RETURN_NONE;
}

static PyObject *trainer_gradient_norm(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    trainer_object *self = (trainer_object *)object;
    double norm;
    if (!may_compute(object)) {
        return NULL;
    }
    LOCKED(self, norm = dd_trainer_gradient_norm(self->trainer));
    return PyFloat_FromDouble(norm);
}

static PyObject *trainer_step(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"lr", "momentum", "weight_decay", "nesterov", "clip_norm", NULL};
    trainer_object *self = (trainer_object *)object;
    int nesterov = 1;
    double lr, momentum, decay, clip_norm = 0;
    if (!may_compute(object) || !PyArg_ParseTupleAndKeywords(args, kwargs, "ddd|pd:step", names, &lr, &momentum, &decay,
                                                             &nesterov, &clip_norm)) {
        return NULL;
    }
    if (!(lr >= 0 && lr < 1e6 && momentum >= 0 && momentum < 1 && decay >= 0 && decay < 1e6 && clip_norm >= 0)) {
        PyErr_SetString(PyExc_ValueError,
                        "step: lr, weight_decay and clip_norm have to be 0 or more, momentum from 0 to below 1");
        return NULL;
    }
    dd_trainer_options o = {.lr = (float)lr,
                            .momentum = (float)momentum,
                            .weight_decay = (float)decay,
                            .nesterov = nesterov,
                            .clip_norm = clip_norm};
    LOCKED(self, dd_trainer_step(self->trainer, &o));
    Py_RETURN_NONE;
}

/* ---- looking in */

typedef enum { VALUES, GRADIENTS, MOMENTS, BUFFERS } array_kind;

static const char *const lease_names[DD_TRAINER_PARTS] = {
    [DD_TRAINER_PARAMETERS] = "dreamda._core.Trainer.parameters",
    [DD_TRAINER_STATISTICS] = "dreamda._core.Trainer.buffers",
};

static void end_lease(PyObject *lease)
{
    const int part = PyCapsule_IsValid(lease, lease_names[DD_TRAINER_PARAMETERS]) ? DD_TRAINER_PARAMETERS
                                                                                  : DD_TRAINER_STATISTICS;
    trainer_object *self = PyCapsule_GetPointer(lease, lease_names[part]);
    atomic_store(&self->views[part].touched, true); /* someone may have written since the last pass */
    atomic_fetch_sub(&self->views[part].lent, 1);
    Py_DECREF(self);
}

/* The base of views: keeps the trainer alive, and tells it how long someone may write through them. */
static PyObject *new_lease(PyObject *object, dd_trainer_part part)
{
    trainer_object *self = (trainer_object *)object;
    PyObject *lease = PyCapsule_New(self, lease_names[part], end_lease);
    if (lease) {
        Py_INCREF(self);
        atomic_fetch_add(&self->views[part].lent, 1);
        atomic_store(&self->views[part].touched, true);
    }
    return lease;
}

/* name -> a float32 view that keeps the trainer alive. */
static PyObject *views(PyObject *self, array_kind kind)
{
    const dd_trainer *t = ((trainer_object *)self)->trainer;
    PyObject *base = kind == VALUES    ? new_lease(self, DD_TRAINER_PARAMETERS)
                     : kind == BUFFERS ? new_lease(self, DD_TRAINER_STATISTICS)
                                       : Py_NewRef(self);
    PyObject *dict = base ? PyDict_New() : NULL;
    for (int i = 0; dict && i < dd_trainer_arrays(t); i++) {
        dd_trainer_array a = dd_trainer_get(t, i);
        if ((a.gradient == NULL) != (kind == BUFFERS)) {
            continue;
        }
        float *data = kind == GRADIENTS ? a.gradient : kind == MOMENTS ? a.moment : a.value;
        npy_intp dims[DD_MAX_PARAMETER_DIMS];
        for (int j = 0; j < a.about->ndim; j++) {
            dims[j] = (npy_intp)a.about->dims[j];
        }
        PyObject *array = PyArray_SimpleNewFromData(a.about->ndim, dims, NPY_FLOAT32, data);
        if (!array || PyArray_SetBaseObject((PyArrayObject *)array, Py_NewRef(base)) < 0 ||
            PyDict_SetItemString(dict, a.about->name, array) < 0) {
            Py_CLEAR(dict);
        }
        Py_XDECREF(array);
    }
    Py_XDECREF(base);
    return dict;
}

static PyObject *get_parameters(PyObject *self, void *Py_UNUSED(closure)) { return views(self, VALUES); }
static PyObject *get_gradients(PyObject *self, void *Py_UNUSED(closure)) { return views(self, GRADIENTS); }
static PyObject *get_moments(PyObject *self, void *Py_UNUSED(closure)) { return views(self, MOMENTS); }
static PyObject *get_buffers(PyObject *self, void *Py_UNUSED(closure)) { return views(self, BUFFERS); }

static PyObject *get_features(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLong(dd_trainer_features(((trainer_object *)self)->trainer));
}

static PyObject *get_memory(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(dd_trainer_bytes(((trainer_object *)self)->trainer));
}

static PyObject *trainer_profile(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    trainer_object *self = (trainer_object *)object;
    dd_trainer *t = self->trainer;
    int rows = dd_trainer_profile_rows(t);
    if (!may_compute(object)) {
        return NULL;
    }
    dd_trainer_row *kept = PyMem_Calloc((size_t)rows + 1, sizeof *kept);
    if (!kept) {
        return PyErr_NoMemory();
    }
    LOCKED(self, { /* a run writes the times */
        for (int i = 0; i < rows; i++) {
            kept[i] = dd_trainer_profile(t, i);
        }
        dd_trainer_profile_reset(t);
    });
    PyObject *list = PyList_New(0);
    for (int i = 0; list && i < rows; i++) {
        dd_trainer_row r = kept[i];
        if (r.calls == 0) {
            continue;
        }
        PyObject *row = Py_BuildValue("{s:s,s:s,s:s,s:i,s:d}", "name", r.name, "phase", r.phase, "implementation",
                                      r.implementation, "calls", r.calls, "ms", 1e3 * r.seconds);
        if (!row || PyList_Append(list, row) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(row);
    }
    PyMem_Free(kept);
    return list;
}

#define KEYWORDS (METH_VARARGS | METH_KEYWORDS)
#define FUNCTION(f) (PyCFunction)(void (*)(void))(f)

static PyMethodDef trainer_methods[] = {
    {"forward", FUNCTION(trainer_forward), KEYWORDS,
     "forward(images, slot=0) -> features (batch, features). Training mode; updates the running statistics."},
    {"backward", FUNCTION(trainer_backward), KEYWORDS,
     "backward(d_features, slot=0): add to the gradients. Uses the slot's forward pass up."},
    {"zero_grad", trainer_zero_grad, METH_NOARGS, "zero_grad(): all gradients become 0."},
    {"gradient_norm", trainer_gradient_norm, METH_NOARGS, "gradient_norm() -> the 2-norm of all gradients together."},
    {"step", FUNCTION(trainer_step), KEYWORDS,
     "step(lr, momentum, weight_decay, nesterov=True, clip_norm=0.0): one step of SGD as PyTorch defines it.\n\n"
     "No decay on norms. With clip_norm > 0 gradients count as scaled down to that norm; the arrays stay as they are."},
    {"evaluate", trainer_evaluate, METH_O,
     "evaluate(images) -> features of 1 to `batch` images, with the running statistics."},
    {"profile", trainer_profile, METH_NOARGS,
     "profile() -> list of dict: name, phase, implementation, calls and ms since the last profile."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef trainer_getset[] = {
    {"features", get_features, NULL, "width of the features", NULL},
    {"parameters", get_parameters, NULL, "name -> float32 view of a parameter", NULL},
    {"gradients", get_gradients, NULL, "name -> float32 view of its gradient", NULL},
    {"moments", get_moments, NULL, "name -> float32 view of its momentum", NULL},
    {"buffers", get_buffers, NULL, "name -> float32 view of running_mean and running_var", NULL},
    {"memory", get_memory, NULL, "bytes held", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot trainer_slots[] = {
    {Py_tp_doc,
     "Trainer(config, *, batch, height, width, dtype, threads, slots=1): a backbone with gradients and optimiser."},
    {Py_tp_new, trainer_new},
    {Py_tp_dealloc, trainer_dealloc},
    {Py_tp_traverse, trainer_traverse},
    {Py_tp_methods, trainer_methods},
    {Py_tp_getset, trainer_getset},
    {0, NULL},
};

PyType_Spec dd_trainer_spec = {
    .name = "dreamda._core.Trainer",
    .basicsize = sizeof(trainer_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = trainer_slots,
};
