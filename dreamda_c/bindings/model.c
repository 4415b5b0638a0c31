/* dreamda._core.Model: a family, its configuration and its weights. */
#include "bindings/core.h"

#include <string.h>

typedef enum {
    FAMILY_UNET, FAMILY_VAE_ENCODER, FAMILY_VAE_DECODER, FAMILY_TINY_VAE_ENCODER, FAMILY_TINY_VAE_DECODER, FAMILY_CLIP, FAMILY_COUNT
} family;

static const char *const family_names[FAMILY_COUNT] = {"unet", "vae_encoder", "vae_decoder",
                                                         "tiny_vae_encoder", "tiny_vae_decoder", "clip_text"};

enum { MAX_DIMENSION = 1 << 20 };

/* ---- reading a config dict; each returns false with an exception set that names the key */

static PyObject *item(PyObject *config, const char *key)
{
    PyObject *value;
    if (dd_dict_item(config, key, &value) && !value) {
        PyErr_Format(PyExc_ValueError, "config: '%s' is missing", key);
    }
    return value;
}

static bool to_int(PyObject *value, const char *key, int low, int *out)
{
    long x = PyLong_AsLong(value);
    if (x == -1 && PyErr_Occurred()) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "config: '%s' has to be a whole number, got %R", key, value);
        return false;
    }
    if (x < low || x > MAX_DIMENSION) {
        PyErr_Format(PyExc_ValueError, "config: '%s' is %ld, but has to be from %d to %d", key, x, low, MAX_DIMENSION);
        return false;
    }
    *out = (int)x;
    return true;
}

static bool read_int(PyObject *config, const char *key, int *out)
{
    PyObject *value = item(config, key);
    return value && to_int(value, key, 1, out);
}

static bool read_optional_int(PyObject *config, const char *key, int *out) /* 0: absent */
{
    PyObject *value = item(config, key);
    return value && to_int(value, key, 0, out);
}

static bool read_float(PyObject *config, const char *key, float *out)
{
    PyObject *value = item(config, key);
    if (!value) {
        return false;
    }
    double x = PyFloat_AsDouble(value);
    if ((x == -1 && PyErr_Occurred()) || !(x >= 0 && x < 1e6)) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "config: '%s' has to be a number from 0 to 1e6, got %R", key, value);
        return false;
    }
    *out = (float)x;
    return true;
}

static bool read_bool(PyObject *config, const char *key, bool *out)
{
    PyObject *value = item(config, key);
    int truth = value ? PyObject_IsTrue(value) : -1;
    *out = truth > 0;
    return truth >= 0;
}

/* A list of exactly *levels entries, or of 1 to DD_MAX_LEVELS if *levels is 0 (which it then sets). */
static bool read_ints(PyObject *config, const char *key, int low, int *levels, int *out)
{
    PyObject *value = item(config, key);
    if (!value) {
        return false;
    }
    PyObject *list = PySequence_Fast(value, "");
    if (!list) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "config: '%s' has to be a list, got %R", key, value);
        return false;
    }
    Py_ssize_t length = PySequence_Fast_GET_SIZE(list);
    bool fits = *levels ? length == *levels : length >= 1 && length <= DD_MAX_LEVELS;
    if (!fits) {
        PyErr_Format(PyExc_ValueError, "config: '%s' has %zd entries, but %d%s are possible", key, length,
                     *levels ? *levels : DD_MAX_LEVELS, *levels ? "" : " at most");
    }
    for (Py_ssize_t i = 0; fits && i < length; i++) {
        fits = to_int(PySequence_Fast_GET_ITEM(list, i), key, low, &out[i]);
    }
    *levels = fits ? (int)length : *levels;
    Py_DECREF(list);
    return fits;
}

static bool read_bools(PyObject *config, const char *key, int levels, bool *out)
{
    int values[DD_MAX_LEVELS] = {0};
    if (!read_ints(config, key, 0, &levels, values)) {
        return false;
    }
    for (int i = 0; i < levels; i++) {
        out[i] = values[i] != 0;
    }
    return true;
}

static bool read_unet(PyObject *config, dd_unet_config *c)
{
    return read_int(config, "in_channels", &c->in_channels) && read_int(config, "out_channels", &c->out_channels) &&
           read_ints(config, "block_out_channels", 1, &c->levels, c->block_out_channels) &&
           read_ints(config, "layers_per_block", 1, &c->levels, c->layers_per_block) &&
           read_bools(config, "down_attention", c->levels, c->down_attention) &&
           read_bools(config, "up_attention", c->levels, c->up_attention) &&
           read_ints(config, "transformer_layers", 1, &c->levels, c->transformer_layers) &&
           read_ints(config, "heads", 1, &c->levels, c->heads) && read_int(config, "context_dim", &c->context_dim) &&
           read_int(config, "norm_num_groups", &c->norm_num_groups) && read_float(config, "norm_eps", &c->norm_eps) &&
           read_bool(config, "linear_projection", &c->linear_projection) &&
           read_bool(config, "flip_sin_to_cos", &c->flip_sin_to_cos) && read_float(config, "freq_shift", &c->freq_shift) &&
           read_optional_int(config, "time_cond_proj_dim", &c->time_cond_proj_dim);
}

static bool read_vae(PyObject *config, dd_vae_config *c)
{
    return read_int(config, "in_channels", &c->in_channels) && read_int(config, "out_channels", &c->out_channels) &&
           read_int(config, "latent_channels", &c->latent_channels) &&
           read_ints(config, "block_out_channels", 1, &c->levels, c->block_out_channels) &&
           read_int(config, "layers_per_block", &c->layers_per_block) &&
           read_int(config, "norm_num_groups", &c->norm_num_groups) && read_bool(config, "quant_conv", &c->quant_conv) &&
           read_bool(config, "post_quant_conv", &c->post_quant_conv) && read_bool(config, "mid_attention", &c->mid_attention);
}

static bool read_tiny_vae(PyObject *config, dd_tiny_vae_config *c)
{
    return read_int(config, "in_channels", &c->in_channels) && read_int(config, "out_channels", &c->out_channels) &&
           read_int(config, "latent_channels", &c->latent_channels) && read_int(config, "encoder_channels", &c->encoder_channels) &&
           read_int(config, "decoder_channels", &c->decoder_channels) &&
           read_ints(config, "encoder_blocks", 1, &c->levels, c->encoder_blocks) &&
           read_ints(config, "decoder_blocks", 1, &c->levels, c->decoder_blocks);
}

static bool read_clip(PyObject *config, dd_clip_config *c)
{
    PyObject *act = item(config, "hidden_act");
    if (!act) {
        return false;
    }
    const char *name = PyUnicode_Check(act) ? PyUnicode_AsUTF8(act) : "";
    if (name && strcmp(name, "quick_gelu") == 0) {
        c->hidden_act = DD_ACT_QUICK_GELU;
    } else if (name && strcmp(name, "gelu") == 0) {
        c->hidden_act = DD_ACT_GELU;
    } else {
        PyErr_Format(PyExc_ValueError, "config: 'hidden_act' has to be \"quick_gelu\" or \"gelu\", got %R", act);
        return false;
    }
    return read_int(config, "vocab_size", &c->vocab_size) && read_int(config, "hidden_size", &c->hidden_size) &&
           read_int(config, "intermediate_size", &c->intermediate_size) &&
           read_int(config, "num_hidden_layers", &c->num_hidden_layers) &&
           read_int(config, "num_attention_heads", &c->num_attention_heads) &&
           read_int(config, "max_position_embeddings", &c->max_position_embeddings) &&
           read_float(config, "layer_norm_eps", &c->layer_norm_eps);
}

/* ---- building */

typedef struct {
    int rows, height, width, tokens, decoders;
} plan_shape;

static dd_status build(dd_model_object *model, dd_graph *g, const plan_shape *s)
{
    switch ((family)model->family) {
    case FAMILY_UNET:
        return dd_unet_build(g, &model->config.unet, &(dd_unet_shape){s->rows, s->height, s->width, s->tokens, s->decoders});
    case FAMILY_VAE_ENCODER:
        return dd_vae_encoder_build(g, &model->config.vae, s->rows, s->height, s->width);
    case FAMILY_VAE_DECODER:
        return dd_vae_decoder_build(g, &model->config.vae, s->rows, s->height, s->width);
    case FAMILY_TINY_VAE_ENCODER:
        return dd_tiny_vae_encoder_build(g, &model->config.tiny, s->rows, s->height, s->width);
    case FAMILY_TINY_VAE_DECODER:
        return dd_tiny_vae_decoder_build(g, &model->config.tiny, s->rows, s->height, s->width);
    case FAMILY_CLIP:
        return dd_clip_build(g, &model->config.clip, s->rows, s->tokens);
    case FAMILY_COUNT:
        break;
    }
    return dd_fail(DD_INVALID, "unknown model family");
}

/* A throw-away graph at the smallest shape declares every parameter. */
static dd_status declare_parameters(dd_model_object *model)
{
    dd_status status = DD_OK;
    dd_graph *g = NULL;
    const bool vae = model->family == FAMILY_VAE_ENCODER || model->family == FAMILY_VAE_DECODER;
    const bool tiny = model->family == FAMILY_TINY_VAE_ENCODER || model->family == FAMILY_TINY_VAE_DECODER;
    int size = 1 << (vae ? model->config.vae.levels - 1 : tiny ? model->config.tiny.levels - 1 : 0);
    plan_shape shape = {.rows = 1, .height = size, .width = size, .tokens = 1, .decoders = 1};
    DD_TRY(dd_graph_create(&g, model->weights));
    DD_TRY(build(model, g, &shape));
fail:
    dd_graph_destroy(g);
    return status;
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
    for (self->family = 0; self->family < FAMILY_COUNT; self->family++) {
        if (strcmp(family_names[self->family], family_name) == 0) {
            break;
        }
    }
    bool known = false;
    if (self->family == FAMILY_COUNT) {
        PyErr_Format(PyExc_ValueError, "unknown model family '%s': use unet, vae_encoder, vae_decoder, tiny_vae_encoder, tiny_vae_decoder or "
                     "clip_text", family_name);
    } else if (self->family == FAMILY_UNET) {
        known = read_unet(config, &self->config.unet);
    } else if (self->family == FAMILY_CLIP) {
        known = read_clip(config, &self->config.clip);
    } else if (self->family == FAMILY_TINY_VAE_ENCODER || self->family == FAMILY_TINY_VAE_DECODER) {
        known = read_tiny_vae(config, &self->config.tiny);
    } else {
        known = read_vae(config, &self->config.vae);
    }
    if (!known) {
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
    plan_shape s = {.height = 1, .width = 1, .tokens = 1, .decoders = 1};
    const char *dtype = "";
    int threads = 0;
    if (!dd_may_compute(state) ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "|$O&sO&O&O&O&O&:plan", names, dd_int_in, &s.rows, &dtype, dd_int_in, &threads,
                                     dd_int_in, &s.height, dd_int_in, &s.width, dd_int_in, &s.tokens, dd_int_in, &s.decoders)) {
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
    if (s.rows < 1 || s.height < 1 || s.width < 1 || s.tokens < 1 || s.rows > MAX_DIMENSION || s.height > MAX_DIMENSION ||
        s.width > MAX_DIMENSION || s.tokens > MAX_DIMENSION || s.decoders < 1 || s.decoders > 2) {
        PyErr_Format(PyExc_ValueError, "a plan of %d rows, %d x %d, %d tokens and %d decoders is not possible", s.rows, s.height,
                     s.width, s.tokens, s.decoders);
        return NULL;
    }
    dd_graph *graph = NULL;
    dd_plan *plan = NULL;
    dd_model_object *model = (dd_model_object *)self;
    dd_status status = dd_graph_create(&graph, model->weights);
    if (status == DD_OK) {
        status = build(model, graph, &s);
        if (status != DD_OK) {
            dd_graph_destroy(graph);
        } else {
            status = dd_plan_create(&plan, graph, type, threads);
        }
    }
    return status == DD_OK ? dd_plan_object_new(state, model, plan) : dd_raise(state, status);
}

static PyMethodDef model_methods[] = {
    {"parameters", model_parameters, METH_NOARGS, "parameters() -> list of (name, shape), PyTorch's names and order of dimensions."},
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
