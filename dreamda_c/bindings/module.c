/* dreamda._core: module state, types, and the two functions that need no model. */
#define DD_IMPORT_NUMPY
#include "bindings/core.h"

#include "base/arena.h"
#include "base/rng.h"
#include "base/team.h"
#include "kernels/kernels.h"

#include <omp.h>

/* Python's and NumPy's whole numbers from 0 to `most`. */
static bool part_of_key(PyObject *object, uint64_t most, const char *name, uint64_t *out)
{
    PyObject *number = PyNumber_Index(object);
    const unsigned long long x = number ? PyLong_AsUnsignedLongLong(number) : 0;
    Py_XDECREF(number);
    if (PyErr_Occurred() || x > most) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "%s: expected a whole number from 0 to %llu, got %R", name,
                     (unsigned long long)most, object);
        return false;
    }
    *out = x;
    return true;
}

static PyObject *core_normals(PyObject *module, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"seed", "image", "variant", "step", "stream", "row", "shape", NULL};
    PyObject *parts[6], *shape;
    if (!dd_may_compute(PyModule_GetState(module)) ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "OOOOOOO:normals", names, &parts[0], &parts[1], &parts[2], &parts[3],
                                     &parts[4], &parts[5], &shape)) {
        return NULL;
    }
    uint64_t words[6];
    for (int i = 0; i < 6; i++) {
        if (!part_of_key(parts[i], i < 2 ? UINT64_MAX : UINT32_MAX, names[i], &words[i])) {
            return NULL;
        }
    }
    PyArray_Dims dims = {NULL, 0};
    if (!PyArray_IntpConverter(shape, &dims)) {
        return NULL;
    }
    PyObject *array = PyArray_SimpleNew(dims.len, dims.ptr, NPY_FLOAT32);
    PyDimMem_FREE(dims.ptr);
    if (!array) {
        return NULL;
    }
    dd_noise_key key = {.seed = words[0], .image = words[1], .variant = (uint32_t)words[2], .step = (uint32_t)words[3],
                        .stream = (uint32_t)words[4], .row = (uint32_t)words[5]};
    float *data = PyArray_DATA((PyArrayObject *)array);
    size_t count = (size_t)PyArray_SIZE((PyArrayObject *)array);
    DD_BEGIN_COMPUTING
    dd_normals(&key, 0, count, data);
    DD_END_COMPUTING
    return array;
}

static PyObject *core_info(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    static const char *const isa_names[] = {
        [DD_ISA_AVX2] = "avx2", [DD_ISA_AVX512] = "avx512", [DD_ISA_AVX512_BF16] = "avx512_bf16", [DD_ISA_AMX] = "amx"};
    int v[3];
    dd_onednn_version(v);
    PyObject *version = PyUnicode_FromFormat("%d.%d.%d", v[0], v[1], v[2]);
    if (!version) {
        return NULL;
    }
    return Py_BuildValue("{s:N,s:s,s:s,s:s,s:i,s:L}", "onednn_version", version, "onednn_runtime", "OMP", "onednn_isa",
                         dd_onednn_isa_name(), "kernels_isa", isa_names[dd_onednn_isa()], "threads",
                         omp_get_max_threads(), "live_bytes", (long long)dd_live_bytes());
}

static PyObject *core_team(PyObject *module, PyObject *object)
{
    int threads, given;
    if (!dd_may_compute(PyModule_GetState(module)) || !dd_int_in(object, &threads)) {
        return NULL;
    }
    if (threads < 1 || threads > 1024) {
        PyErr_Format(PyExc_ValueError, "threads: %d is not possible: use 1 to 1024", threads);
        return NULL;
    }
    DD_BEGIN_COMPUTING
    given = dd_team_given(threads);
    DD_END_COMPUTING
    return PyLong_FromLong(given);
}

static int add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **slot)
{
    *slot = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    return *slot ? PyModule_AddType(module, *slot) : -1;
}

static int core_exec(PyObject *module)
{
    dd_module_state *state = PyModule_GetState(module);
    if (PyArray_ImportNumPyAPI() < 0) {
        return -1;
    }
    if (!dd_cpu_supported()) {
        PyErr_SetString(PyExc_ImportError, "dreamda needs a processor with AVX2, FMA and F16C");
        return -1;
    }
    if (dd_onednn_check() != DD_OK || dd_process_watch() != DD_OK) {
        PyErr_SetString(PyExc_ImportError, dd_message());
        return -1;
    }
    /* Daemon threads in a call end it; another one would need the GIL, which a finished interpreter does not give. */
    static bool registered;
    if (!registered && Py_AtExit(dd_process_wait) < 0) {
        PyErr_SetString(PyExc_ImportError, "too many extension modules want to be told when Python ends");
        return -1;
    }
    registered = true;
    if (PyModule_AddFunctions(module, dd_loss_methods) < 0) {
        return -1;
    }
    state->error = PyErr_NewExceptionWithDoc("dreamda.Error", "The engine refused to do what was asked.",
                                             PyExc_RuntimeError, NULL);
    if (!state->error || PyModule_AddObjectRef(module, "Error", state->error) < 0) {
        return -1;
    }
    return add_type(module, &dd_model_spec, &state->model_type) < 0 ||
                   add_type(module, &dd_plan_spec, &state->plan_type) < 0 ||
                   add_type(module, &dd_trainer_spec, &state->trainer_type) < 0
               ? -1
               : 0;
}

static int core_traverse(PyObject *module, visitproc visit, void *arg)
{
    dd_module_state *state = PyModule_GetState(module);
    Py_VISIT(state->error);
    Py_VISIT(state->model_type);
    Py_VISIT(state->plan_type);
    Py_VISIT(state->trainer_type);
    return 0;
}

static int core_clear(PyObject *module)
{
    dd_module_state *state = PyModule_GetState(module);
    Py_CLEAR(state->error);
    Py_CLEAR(state->model_type);
    Py_CLEAR(state->plan_type);
    Py_CLEAR(state->trainer_type);
    return 0;
}

static void core_free(void *module)
{
    core_clear(module);
}

static PyObject *core_alloc_fail_after(PyObject *Py_UNUSED(module), PyObject *object)
{
    long long n = PyLong_AsLongLong(object);
    if (n == -1 && PyErr_Occurred()) {
        return NULL;
    }
    dd_alloc_fail_after(n);
    Py_RETURN_NONE;
}

static PyMethodDef core_methods[] = {
    {"normals", (PyCFunction)(void (*)(void))core_normals, METH_VARARGS | METH_KEYWORDS,
     "normals(seed, image, variant, step, stream, row, shape)\n--\n\n"
     "N(0, 1) noise that belongs to a key: Philox4x32-10 and Box-Muller. Equal keys give bitwise identical numbers.\n\n"
     "Parameters\n----------\n"
     "seed, image : int\n    The key's 64-bit parts.\n"
     "variant, step, stream, row : int\n    The key's 32-bit parts.\n"
     "shape : int or tuple of int\n\n"
     "Returns\n-------\nfloat32 array of that shape\n\n"
     "Raises\n------\nValueError\n    A part of the key does not fit its width."},
    {"info", core_info, METH_NOARGS,
     "info()\n--\n\n"
     "What the engine found on this machine.\n\n"
     "Returns\n-------\ndict\n"
     "    ``onednn_version``, ``onednn_runtime``, ``onednn_isa``, ``kernels_isa`` (of our own kernels), ``threads``,\n"
     "    and ``live_bytes``, the memory that the core holds now."},
    {"team", core_team, METH_O,
     "team(threads, /)\n--\n\n"
     "How many of so many threads OpenMP gives to a call from here: measured, not asked.\n\n"
     "Parameters\n----------\nthreads : int\n    1 to 1024.\n\n"
     "Returns\n-------\nint"},
    {"_alloc_fail_after", core_alloc_fail_after, METH_O,
     "For tests: the (n+1)th allocation of the core from now fails, once; -1 switches that off."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot core_slots[] = {
    {Py_mod_exec, core_exec},
#if PY_VERSION_HEX >= 0x030c0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

static PyModuleDef core_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "dreamda._core",
    .m_doc = "The C core: models, plans and keyed noise.",
    .m_size = sizeof(dd_module_state),
    .m_methods = core_methods,
    .m_slots = core_slots,
    .m_traverse = core_traverse,
    .m_clear = core_clear,
    .m_free = core_free,
};

PyMODINIT_FUNC PyInit__core(void)
{
    return PyModuleDef_Init(&core_module);
}
