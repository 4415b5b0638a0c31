/* dreamda._core.Model: a family, its configuration and its weights. */
#include "bindings/core.h"

#include <string.h>

/* A throw-away graph at the smallest shape declares every parameter. */
static dd_status declare_parameters(dd_model_object *model)
{
    dd_status status = DD_OK;
    dd_graph *g = NULL;
    const int size = model->family->smallest(&model->config);
    const dd_plan_shape shape = {.rows = 1, .height = size, .width = size, .tokens = 1, .decoders = 1};
    DD_TRY(dd_graph_create(&g, model->weights));
    DD_TRY(model->family->build(g, &model->config, &shape));
fail:
    dd_graph_destroy(g);
    return status;
}

static const dd_family *find_family(const char *name)
{
    char known[256] = "";
    for (int i = 0; i < dd_family_count; i++) {
        if (strcmp(dd_families[i].name, name) == 0) {
            return &dd_families[i];
        }
        const size_t end = strlen(known);
        PyOS_snprintf(known + end, sizeof known - end, "%s%s",
                      i == 0                    ? ""
                      : i + 1 < dd_family_count ? ", "
                                                : " or ",
                      dd_families[i].name);
    }
    PyErr_Format(PyExc_ValueError, "unknown model family '%s': use %s", name, known);
    return NULL;
}

static PyObject *model_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"family", "config", NULL};
    const char *family_name;
    PyObject *config;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "sO!:Model", names, &family_name, &PyDict_Type, &config)) {
        return NULL;
    }
    dd_module_state *state = PyType_GetModuleState(type);
    if (!dd_may_compute(state)) {
        return NULL;
    }
    dd_model_object *self = (dd_model_object *)type->tp_alloc(type, 0);
    if (!self) {
        return NULL;
    }
    self->family = find_family(family_name);
    if (!self->family || !self->family->read(config, &self->config)) {
        Py_DECREF(self);
        return NULL;
    }
    dd_status status = dd_weights_create(&self->weights);
    if (status == DD_OK) {
        status = declare_parameters(self);
    }
    if (status != DD_OK) {
        Py_DECREF(self);
        return dd_raise(state, status);
    }
    return (PyObject *)self;
}

static int model_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static void model_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    dd_weights_destroy(((dd_model_object *)self)->weights);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *model_parameters(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    const dd_weights *w = ((dd_model_object *)self)->weights;
    int count = dd_weights_count(w);
    PyObject *list = PyList_New(count);
    for (int i = 0; list && i < count; i++) {
        const dd_parameter *p = dd_weights_get(w, i);
        npy_intp dims[DD_MAX_PARAMETER_DIMS];
        for (int j = 0; j < p->ndim; j++) {
            dims[j] = (npy_intp)p->dims[j];
        }
        PyObject *shape = dd_shape_tuple(p->ndim, dims), *entry = shape ? Py_BuildValue("(sN)", p->name, shape) : NULL;
        if (!entry) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, i, entry);
    }
    return list;
}

static PyObject *model_plan(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"rows", "dtype", "threads", "height", "width", "tokens", "decoders", NULL};
    dd_module_state *state = PyType_GetModuleState(Py_TYPE(self));
    dd_plan_shape s = {.height = 1, .width = 1, .tokens = 1, .decoders = 1};
    const char *dtype = "";
    int threads = 0;
    if (!dd_may_compute(state) ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "|$O&sO&O&O&O&O&:plan", names, dd_int_in, &s.rows, &dtype, dd_int_in,
                                     &threads, dd_int_in, &s.height, dd_int_in, &s.width, dd_int_in, &s.tokens,
                                     dd_int_in, &s.decoders)) {
        return NULL;
    }
    dd_dtype type = strcmp(dtype, "bf16") == 0 ? DD_BF16 : DD_F32;
    if (type == DD_F32 && strcmp(dtype, "f32") != 0) {
        PyErr_Format(PyExc_ValueError, "dtype: '%s' is unknown: use f32 or bf16", dtype);
        return NULL;
    }
    if (threads < 1 || threads > 1024) {
        PyErr_Format(PyExc_ValueError, "threads: %d is not possible: use 1 to 1024", threads);
        return NULL;
    }
    if (s.rows < 1 || s.height < 1 || s.width < 1 || s.tokens < 1 || s.rows > DD_MAX_DIMENSION ||
        s.height > DD_MAX_DIMENSION || s.width > DD_MAX_DIMENSION || s.tokens > DD_MAX_DIMENSION || s.decoders < 1 ||
        s.decoders > 2) {
        PyErr_Format(PyExc_ValueError, "a plan of %d rows, %d x %d, %d tokens and %d decoders is not possible", s.rows,
                     s.height, s.width, s.tokens, s.decoders);
        return NULL;
    }
    dd_graph *graph = NULL;
    dd_plan *plan = NULL;
    dd_model_object *model = (dd_model_object *)self;
    dd_status status = dd_graph_create(&graph, model->weights);
    if (status == DD_OK) {
        status = model->family->build(graph, &model->config, &s);
        if (status != DD_OK) {
            dd_graph_destroy(graph);
        } else {
            status = dd_plan_create(&plan, graph, type, threads);
        }
    }
    return status == DD_OK ? dd_plan_object_new(state, model, plan) : dd_raise(state, status);
}

static PyMethodDef model_methods[] = {
    {"parameters", model_parameters, METH_NOARGS,
     "parameters() -> list of (name, shape), PyTorch's names and order of dimensions."},
    {"plan", (PyCFunction)(void (*)(void))model_plan, METH_VARARGS | METH_KEYWORDS,
     "plan(*, rows, dtype, threads, height=1, width=1, tokens=1, decoders=1) -> Plan"},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot model_slots[] = {
    {Py_tp_doc, "Model(family, config): the parameters of a network, shared by its plans."},
    {Py_tp_new, model_new},
    {Py_tp_dealloc, model_dealloc},
    {Py_tp_traverse, model_traverse},
    {Py_tp_methods, model_methods},
    {0, NULL},
};

PyType_Spec dd_model_spec = {
    .name = "dreamda._core.Model",
    .basicsize = sizeof(dd_model_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = model_slots,
};
