/* What the files of the dreamda._core extension share: module state, errors, and the borders to NumPy.
 *
 *     PyArrayObject *x = dd_array_in(object, NPY_FLOAT32, ndim, dims, "sample"); // a new reference
 *     return dd_raise(state, status); // NULL, with the right exception set
 */
#ifndef DD_PY_CORE_H
#define DD_PY_CORE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define NPY_NO_DEPRECATED_API NPY_1_22_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL dreamda_core_array_api
#ifndef DD_IMPORT_NUMPY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

#include "base/process.h"
#include "graph/plan.h"
#include "models/models.h"

typedef struct {
    PyObject *error; /* dreamda.Error */
    PyTypeObject *model_type, *plan_type, *trainer_type;
} dd_module_state;

enum { DD_MAX_DIMENSION = 1 << 20 }; /* of images, tokens and channels */

typedef union {
    dd_unet_config unet;
    dd_vae_config vae;
    dd_tiny_vae_config tiny_vae;
    dd_clip_config clip;
    dd_resnet_config resnet;
} dd_config;

typedef struct {
    int rows, height, width, tokens, decoders;
} dd_plan_shape;

/* A kind of model: one row of dd_families. */
typedef struct {
    const char *name;
    bool (*read)(PyObject *config, dd_config *out); /* false with an exception that names the key */
    dd_status (*build)(dd_graph *g, const dd_config *config, const dd_plan_shape *shape);
    int (*smallest)(const dd_config *config); /* height and width of the smallest image that it takes */
} dd_family;

extern const dd_family dd_families[]; /* bindings/families.c */
extern const int dd_family_count;

typedef struct {
    PyObject_HEAD
    dd_weights *weights; /* owned */
    const dd_family *family;
    dd_config config;
} dd_model_object;

extern PyType_Spec dd_model_spec, dd_plan_spec, dd_trainer_spec;
extern PyMethodDef dd_loss_methods[]; /* bindings/losses.c */

/* Sets the exception that fits the status, with dd_message() as its text. Always returns NULL. */
PyObject *dd_raise(dd_module_state *state, dd_status status);

/* False with dreamda.Error set in a forked child whose parent had used the engine; asked by every call that may use
   threads. */
bool dd_may_compute(dd_module_state *state);

/* Computing without the GIL; nothing in between may return or jump out. */
#define DD_BEGIN_COMPUTING dd_process_busy(); Py_BEGIN_ALLOW_THREADS
#define DD_END_COMPUTING dd_process_idle(); Py_END_ALLOW_THREADS

/* The array itself if it is aligned, C-contiguous and of `type`; else a converted copy. Raises ValueError naming
   `name`, what was expected and what came, where shape or kind of number do not fit. dims NULL: any shape. */
PyArrayObject *dd_array_in(PyObject *object, int type, int ndim, const npy_intp *dims, const char *name);

/* *value = the borrowed item of `key`, or NULL where there is none. False with an exception set. */
bool dd_dict_item(PyObject *dict, const char *key, PyObject **value);

PyObject *dd_shape_tuple(int ndim, const npy_intp *dims);

/* For "O&": a whole number as an int; beyond an int it becomes the nearest one, for the caller's own check of its
   range. */
int dd_int_in(PyObject *object, void *out);

/* "float32", "int32", ... of a graph input or output. */
const char *dd_dtype_name(int dtype);
int dd_numpy_type(int dtype);

/* Reads backbone, stem, in_channels and width. False with an exception set. */
bool dd_read_resnet(PyObject *config, dd_resnet_config *out);

/* A new Plan, which owns `plan` from here on, also on failure, and keeps the model. */
PyObject *dd_plan_object_new(dd_module_state *state, dd_model_object *model, dd_plan *plan);

#endif
