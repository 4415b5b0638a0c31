/* The families of dreamda._core.Model: dd_families has a row for each. What a row needs stands above it: how a config
 * dict becomes the C structure, and how its graph is built at a shape. */
#include "bindings/core.h"

#include <string.h>

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
    if (x < low || x > DD_MAX_DIMENSION) {
        PyErr_Format(PyExc_ValueError, "config: '%s' is %ld, but has to be from %d to %d", key, x, low,
                     DD_MAX_DIMENSION);
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

/* 0 stands for an absent part. */
static bool read_optional_int(PyObject *config, const char *key, int *out)
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

/* A list of `levels` kinds, each below `count`. */
static bool read_kinds(PyObject *config, const char *key, int count, int levels, int *out)
{
    if (!read_ints(config, key, 0, &levels, out)) {
        return false;
    }
    for (int i = 0; i < levels; i++) {
        if (out[i] >= count) {
            PyErr_Format(PyExc_ValueError, "config: '%s' has %d, but only 0 to %d are possible", key, out[i],
                         count - 1);
            return false;
        }
    }
    return true;
}

static bool read_kind(PyObject *config, const char *key, int count, int *out)
{
    if (!read_optional_int(config, key, out)) {
        return false;
    }
    if (*out >= count) {
        PyErr_Format(PyExc_ValueError, "config: '%s' is %d, but only 0 to %d are possible", key, *out, count - 1);
        return false;
    }
    return true;
}

/* Whether the parts that read a context or a class have one. */
static bool check_inputs(const dd_unet_config *c)
{
    bool reads = c->mid_attention == DD_CROSS_ATTENTION;
    for (int i = 0; i < c->levels; i++) {
        reads = reads || c->down_attention[i] == DD_CROSS_ATTENTION || c->up_attention[i] == DD_CROSS_ATTENTION;
    }
    if (reads && !c->context_dim) {
        PyErr_SetString(PyExc_ValueError, "config: 'context_dim' is 0, but there is cross-attention");
        return false;
    }
    if (c->class_embedding == DD_CLASS_TABLE && !c->num_class_embeds) {
        PyErr_SetString(PyExc_ValueError, "config: 'num_class_embeds' is 0, but there is a table of classes");
        return false;
    }
    return true;
}

/* The numbers of transformer layers, one for every ResNet block on the way down and on the way up. */
static bool read_transformer_layers(PyObject *config, dd_unet_config *c)
{
    int down = 0, up = 0;
    for (int i = 0; i < c->levels; i++) {
        down += c->layers_per_block[i];
        up += c->layers_per_block[i] + 1; /* as many as skip connections */
        if (c->layers_per_block[i] > DD_MAX_SKIPS || up > DD_MAX_SKIPS) {
            PyErr_Format(PyExc_ValueError, "config: 'layers_per_block' makes more than %d skip connections",
                         DD_MAX_SKIPS);
            return false;
        }
    }
    return read_ints(config, "transformer_layers", 1, &down, c->transformer_layers) &&
           read_ints(config, "up_transformer_layers", 1, &up, c->up_transformer_layers) &&
           read_optional_int(config, "mid_transformer_layers", &c->mid_transformer_layers);
}

static bool read_unet(PyObject *config, dd_config *out)
{
    dd_unet_config *c = &out->unet;
    return read_int(config, "in_channels", &c->in_channels) && read_int(config, "out_channels", &c->out_channels) &&
           read_ints(config, "block_out_channels", 1, &c->levels, c->block_out_channels) &&
           read_ints(config, "layers_per_block", 1, &c->levels, c->layers_per_block) &&
           read_kinds(config, "down_attention", DD_ATTENTIONS, c->levels, c->down_attention) &&
           read_kinds(config, "up_attention", DD_ATTENTIONS, c->levels, c->up_attention) &&
           read_kind(config, "mid_resnets", 3, &c->mid_resnets) &&
           read_kind(config, "mid_attention", DD_ATTENTIONS, &c->mid_attention) &&
           read_optional_int(config, "mid_attention_groups", &c->mid_attention_groups) &&
           read_transformer_layers(config, c) &&
           read_ints(config, "heads", 1, &c->levels, c->heads) &&
           read_optional_int(config, "context_dim", &c->context_dim) &&
           read_int(config, "norm_num_groups", &c->norm_num_groups) && read_float(config, "norm_eps", &c->norm_eps) &&
           read_bool(config, "linear_projection", &c->linear_projection) &&
           read_bool(config, "flip_sin_to_cos", &c->flip_sin_to_cos) &&
           read_float(config, "freq_shift", &c->freq_shift) &&
           read_optional_int(config, "time_cond_proj_dim", &c->time_cond_proj_dim) &&
           read_optional_int(config, "text_embeds_dim", &c->text_embeds_dim) &&
           read_optional_int(config, "time_ids_dim", &c->time_ids_dim) &&
           read_kind(config, "class_embedding", DD_CLASS_EMBEDDINGS, &c->class_embedding) &&
           read_optional_int(config, "num_class_embeds", &c->num_class_embeds) &&
           read_bool(config, "scale_shift", &c->scale_shift) &&
           read_bool(config, "downsample_one_sided", &c->downsample_one_sided) && check_inputs(c);
}

static bool read_vae(PyObject *config, dd_config *out)
{
    dd_vae_config *c = &out->vae;
    return read_int(config, "in_channels", &c->in_channels) && read_int(config, "out_channels", &c->out_channels) &&
           read_int(config, "latent_channels", &c->latent_channels) &&
           read_ints(config, "block_out_channels", 1, &c->levels, c->block_out_channels) &&
           read_int(config, "layers_per_block", &c->layers_per_block) &&
           read_int(config, "norm_num_groups", &c->norm_num_groups) &&
           read_bool(config, "quant_conv", &c->quant_conv) &&
           read_bool(config, "post_quant_conv", &c->post_quant_conv) &&
           read_bool(config, "mid_attention", &c->mid_attention);
}

static bool read_tiny_vae(PyObject *config, dd_config *out)
{
    dd_tiny_vae_config *c = &out->tiny_vae;
    return read_int(config, "in_channels", &c->in_channels) && read_int(config, "out_channels", &c->out_channels) &&
           read_int(config, "latent_channels", &c->latent_channels) &&
           read_int(config, "encoder_channels", &c->encoder_channels) &&
           read_int(config, "decoder_channels", &c->decoder_channels) &&
           read_ints(config, "encoder_blocks", 1, &c->levels, c->encoder_blocks) &&
           read_ints(config, "decoder_blocks", 1, &c->levels, c->decoder_blocks);
}

static bool read_clip(PyObject *config, dd_config *out)
{
    dd_clip_config *c = &out->clip;
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
           read_optional_int(config, "projection_dim", &c->projection_dim) &&
           read_float(config, "layer_norm_eps", &c->layer_norm_eps);
}

static const struct {
    const char *name;
    int depth;
} backbones[] = {{"resnet18", 18}, {"resnet34", 34}, {"resnet50", 50}};

/* The text under `key`, or NULL with an exception set. */
static const char *text_of(PyObject *config, const char *key)
{
    PyObject *value;
    if (!dd_dict_item(config, key, &value)) {
        return NULL;
    }
    if (!value || !PyUnicode_Check(value)) {
        PyErr_Format(PyExc_ValueError, "config: '%s' has to be given as a string", key);
        return NULL;
    }
    return PyUnicode_AsUTF8(value);
}

static bool number_of(PyObject *config, const char *key, int *out)
{
    PyObject *value;
    if (!dd_dict_item(config, key, &value)) {
        return false;
    }
    long x = value ? PyLong_AsLong(value) : 0;
    PyErr_Clear();
    if (x < 1 || x > 4096) {
        PyErr_Format(PyExc_ValueError, "config: '%s' has to be a whole number from 1 to 4096", key);
        return false;
    }
    *out = (int)x;
    return true;
}

bool dd_read_resnet(PyObject *config, dd_resnet_config *c)
{
    const char *backbone = text_of(config, "backbone"), *stem = backbone ? text_of(config, "stem") : NULL;
    if (!stem || !number_of(config, "in_channels", &c->in_channels) || !number_of(config, "width", &c->width)) {
        return false;
    }
    for (size_t i = 0; i < sizeof backbones / sizeof *backbones; i++) {
        if (strcmp(backbone, backbones[i].name) == 0) {
            c->depth = backbones[i].depth;
        }
    }
    if (!c->depth) {
        PyErr_Format(PyExc_ValueError, "config: backbone '%s' is unknown: use resnet18, resnet34 or resnet50",
                     backbone);
        return false;
    }
    c->small_stem = strcmp(stem, "small") == 0;
    if (!c->small_stem && strcmp(stem, "imagenet") != 0) {
        PyErr_Format(PyExc_ValueError, "config: stem '%s' is unknown: use imagenet or small", stem);
        return false;
    }
    return true;
}

static bool read_resnet(PyObject *config, dd_config *out)
{
    return dd_read_resnet(config, &out->resnet);
}

/* ---- building */

static dd_status build_unet(dd_graph *g, const dd_config *c, const dd_plan_shape *s)
{
    return dd_unet_build(g, &c->unet, &(dd_unet_shape){s->rows, s->height, s->width, s->tokens, s->decoders});
}

static dd_status build_vae_encoder(dd_graph *g, const dd_config *c, const dd_plan_shape *s)
{
    return dd_vae_encoder_build(g, &c->vae, s->rows, s->height, s->width);
}

static dd_status build_vae_decoder(dd_graph *g, const dd_config *c, const dd_plan_shape *s)
{
    return dd_vae_decoder_build(g, &c->vae, s->rows, s->height, s->width);
}

static dd_status build_tiny_vae_encoder(dd_graph *g, const dd_config *c, const dd_plan_shape *s)
{
    return dd_tiny_vae_encoder_build(g, &c->tiny_vae, s->rows, s->height, s->width);
}

static dd_status build_tiny_vae_decoder(dd_graph *g, const dd_config *c, const dd_plan_shape *s)
{
    return dd_tiny_vae_decoder_build(g, &c->tiny_vae, s->rows, s->height, s->width);
}

static dd_status build_clip(dd_graph *g, const dd_config *c, const dd_plan_shape *s)
{
    return dd_clip_build(g, &c->clip, s->rows, s->tokens);
}

static dd_status build_resnet(dd_graph *g, const dd_config *c, const dd_plan_shape *s)
{
    return dd_resnet_build(g, &c->resnet, s->rows, s->height, s->width);
}

static int one(const dd_config *c)
{
    (void)c;
    return 1;
}

static int of_unet(const dd_config *c) { return c->unet.downsample_one_sided ? 1 << (c->unet.levels - 1) : 1; }
static int of_vae(const dd_config *c) { return 1 << (c->vae.levels - 1); }
static int of_tiny_vae(const dd_config *c) { return 1 << (c->tiny_vae.levels - 1); }
static int of_resnet(const dd_config *c) { return c->resnet.small_stem ? 8 : 32; }

const dd_family dd_families[] = {
    {"unet", read_unet, build_unet, of_unet},
    {"vae_encoder", read_vae, build_vae_encoder, of_vae},
    {"vae_decoder", read_vae, build_vae_decoder, of_vae},
    {"tiny_vae_encoder", read_tiny_vae, build_tiny_vae_encoder, of_tiny_vae},
    {"tiny_vae_decoder", read_tiny_vae, build_tiny_vae_decoder, of_tiny_vae},
    {"clip_text", read_clip, build_clip, one},
    {"resnet", read_resnet, build_resnet, of_resnet},
};
const int dd_family_count = (int)(sizeof dd_families / sizeof *dd_families);
