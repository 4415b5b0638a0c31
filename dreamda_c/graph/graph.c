#include "graph/graph.h"

#include "base/arena.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { MAX_NAME = 256, MAX_DEPTH = 16, MAX_OPS = 20000 };

struct dd_graph {
    dd_weights *weights; /* borrowed */
    dd_status status;    /* sticky */
    char prefix[MAX_NAME];
    size_t prefix_ends[MAX_DEPTH];
    int depth;
    dd_op *ops;
    int nops, ops_capacity;
    dd_value_info *values; /* [0] stands for DD_NONE */
    int nvalues, values_capacity;
};

dd_status dd_graph_create(dd_graph **out, dd_weights *weights)
{
    dd_graph *g = dd_calloc(1, sizeof *g);
    if (!g) {
        return dd_fail(DD_NOMEM, "out of memory for a graph");
    }
    g->weights = weights;
    *out = g;
    return DD_OK;
}

void dd_graph_destroy(dd_graph *g)
{
    if (!g) {
        return;
    }
    for (int i = 0; i < g->nops; i++) {
        dd_free(g->ops[i].name);
    }
    for (int i = 1; i <= g->nvalues; i++) {
        dd_free((char *)(uintptr_t)g->values[i].name);
    }
    dd_free(g->ops);
    dd_free(g->values);
    dd_free(g);
}

dd_status dd_graph_status(const dd_graph *g)
{
    return g->status;
}

void dd_graph_fail(dd_graph *g, dd_status status, const char *format, ...)
{
    char text[400];
    va_list args;
    if (g->status != DD_OK) {
        return;
    }
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    g->status = dd_fail(status, "%s", text);
}

void dd_graph_push(dd_graph *g, const char *format, ...)
{
    if (g->depth >= MAX_DEPTH) {
        dd_graph_fail(g, DD_INVALID, "blocks nested deeper than %d", MAX_DEPTH);
        return;
    }
    size_t end = strlen(g->prefix);
    g->prefix_ends[g->depth++] = end;
    va_list args;
    va_start(args, format);
    vsnprintf(g->prefix + end, MAX_NAME - end, format, args);
    va_end(args);
    end = strlen(g->prefix);
    if (end + 2 > MAX_NAME) {
        dd_graph_fail(g, DD_INVALID, "a parameter name is longer than %d characters", MAX_NAME);
        return;
    }
    memcpy(g->prefix + end, ".", 2);
}

void dd_graph_pop(dd_graph *g)
{
    if (g->depth > 0) {
        g->prefix[g->prefix_ends[--g->depth]] = '\0';
    }
}

/* Above some 2^35 elements oneDNN 3.2 divides by a number that has overflowed to 0. */
#define MAX_ELEMENTS ((size_t)1 << 34)

static dd_value add_value(dd_graph *g, const dd_value_info *info)
{
    size_t elements;
    if (g->status != DD_OK) {
        return DD_NONE;
    }
    if (info->n < 1 || info->h < 1 || info->w < 1 || info->c < 1 ||
        !dd_size_mul(&elements, 4, (int64_t)info->n, (int64_t)info->h, (int64_t)info->w, (int64_t)info->c) ||
        elements > MAX_ELEMENTS || (int64_t)info->n * info->h * info->w > INT32_MAX) {
        dd_graph_fail(g, DD_SHAPE, "a tensor of %d x %d x %d x %d elements (%s) is not possible: use smaller sizes",
                      info->n, info->c, info->h, info->w, g->prefix);
        return DD_NONE;
    }
    if (!dd_grow(&g->values, g->nvalues + 1, &g->values_capacity, sizeof *g->values)) {
        dd_graph_fail(g, DD_NOMEM, "out of memory for a graph");
        return DD_NONE;
    }
    g->values[++g->nvalues] = *info;
    return g->nvalues;
}

/* Appends `op`, named after the prefix and `name`, with a new value of the given shape as its destination. */
static dd_value add_op(dd_graph *g, dd_op *op, const char *name, int n, int h, int w, int c, int dtype)
{
    if (g->status != DD_OK) {
        return DD_NONE;
    }
    if (g->nops >= MAX_OPS) {
        dd_graph_fail(g, DD_INVALID, "a model of more than %d operations", MAX_OPS);
        return DD_NONE;
    }
    bool constant = true;
    for (int i = 0; i < op->nsrc; i++) {
        if (op->src[i].value != DD_NONE) {
            constant = constant && g->values[op->src[i].value].constant;
            if (op->src[i].channels == 0) {
                op->src[i].channels = g->values[op->src[i].value].c;
            }
        }
    }
    op->dst = add_value(g, &(dd_value_info){.n = n, .h = h, .w = w, .c = c, .dtype = dtype, .constant = constant});
    if (op->dst == DD_NONE) {
        return DD_NONE;
    }
    char full[MAX_NAME + 64];
    snprintf(full, sizeof full, "%s%s", g->prefix, name);
    op->name = dd_grow(&g->ops, g->nops, &g->ops_capacity, sizeof *g->ops) ? dd_strdup(full) : NULL;
    if (!op->name) {
        dd_graph_fail(g, DD_NOMEM, "out of memory for a graph");
        return DD_NONE;
    }
    g->ops[g->nops++] = *op;
    return op->dst;
}

/* The parameter `prefix` `name` `ending`; declares it. */
static int parameter(dd_graph *g, const char *name, const char *ending, int ndim, const int64_t *dims)
{
    char full[MAX_NAME + 64];
    if (g->status != DD_OK) {
        return -1;
    }
    int length = snprintf(full, sizeof full, "%s%s%s", g->prefix, name, ending);
    if (length >= MAX_NAME) {
        dd_graph_fail(g, DD_INVALID, "a parameter name is longer than %d characters", MAX_NAME);
        return -1;
    }
    int id = -1;
    g->status = dd_weights_parameter(g->weights, full, ndim, dims, &id);
    return id;
}

static dd_slice vector(dd_graph *g, const char *name, const char *ending, int64_t length)
{
    int id = parameter(g, name, ending, 1, &length);
    return (dd_slice){.parameter = id, .rows = length, .cols = 1};
}

static const dd_value_info *info(const dd_graph *g, dd_value v)
{
    static const dd_value_info nothing = {.n = 1, .h = 1, .w = 1, .c = 1};
    return v == DD_NONE ? &nothing : &g->values[v];
}

int dd_graph_rows(const dd_graph *g, dd_value v) { return info(g, v)->n; }
int dd_graph_height(const dd_graph *g, dd_value v) { return info(g, v)->h; }
int dd_graph_width(const dd_graph *g, dd_value v) { return info(g, v)->w; }
int dd_graph_channels(const dd_graph *g, dd_value v) { return info(g, v)->c; }

static void set_external(dd_graph *g, dd_value v, const char *name, int ndim, const int64_t *dims)
{
    dd_value_info *value = &g->values[v];
    value->name = dd_strdup(name);
    if (!value->name) {
        dd_graph_fail(g, DD_NOMEM, "out of memory for a graph");
        return;
    }
    value->ndim = ndim;
    memcpy(value->dims, dims, (size_t)ndim * sizeof *dims);
}

dd_value dd_graph_input(dd_graph *g, const char *name, dd_dtype dtype, dd_input_kind kind, int ndim,
                        const int64_t *dims)
{
    /* (n), (n, c), (n, t, c) or (n, c, h, w) */
    for (int i = 0; i < ndim; i++) {
        if (dims[i] < 1 || dims[i] > INT32_MAX) {
            dd_graph_fail(g, DD_SHAPE, "input '%s' cannot have a dimension of %lld", name, (long long)dims[i]);
            return DD_NONE;
        }
    }
    dd_value_info v = {.n = (int)dims[0], .h = 1, .w = 1, .c = 1, .dtype = dtype, .input_kind = kind};
    v.constant = kind == DD_INPUT_CONSTANT;
    if (ndim == 4) {
        v.c = (int)dims[1], v.h = (int)dims[2], v.w = (int)dims[3];
    } else if (ndim == 3) {
        v.h = (int)dims[1], v.c = (int)dims[2];
    } else if (ndim == 2) {
        v.c = (int)dims[1];
    }
    dd_value id = add_value(g, &v);
    if (id != DD_NONE) {
        set_external(g, id, name, ndim, dims);
    }
    return id;
}

void dd_graph_output(dd_graph *g, const char *name, dd_value v)
{
    if (g->status != DD_OK) {
        return;
    }
    const dd_op *maker = &g->ops[g->nops - 1];
    dd_value_info *value = &g->values[v];
    if (maker->dst == v && maker->kind == DD_OP_CONVERT) {
        set_external(g, v, name, 3, (int64_t[]){value->n, value->h, value->c});
    } else if (maker->dst == v && maker->kind == DD_OP_GLOBAL_POOL) {
        set_external(g, v, name, 2, (int64_t[]){value->n, value->c});
    } else {
        set_external(g, v, name, 4, (int64_t[]){value->n, value->c, value->h, value->w});
    }
    g->values[v].output = true;
}

/* An operation with one source, whose result has the same shape. */
static dd_value same_shape(dd_graph *g, dd_op_kind kind, const char *name, dd_value src, int dtype)
{
    const dd_value_info *s = info(g, src);
    dd_op op = {.kind = kind, .src = {[DD_SRC] = {.value = src}}, .nsrc = 1};
    return add_op(g, &op, name, s->n, s->h, s->w, s->c, dtype);
}

dd_value dd_graph_from_nchw(dd_graph *g, dd_value src)
{
    return same_shape(g, DD_OP_FROM_NCHW, "from_nchw", src, DD_ACTIVATION);
}
dd_value dd_graph_to_nchw(dd_graph *g, dd_value src) { return same_shape(g, DD_OP_TO_NCHW, "to_nchw", src, DD_F32); }
dd_value dd_graph_from_rows(dd_graph *g, dd_value src)
{
    return same_shape(g, DD_OP_CONVERT, "from_rows", src, DD_ACTIVATION);
}
dd_value dd_graph_to_rows(dd_graph *g, dd_value src) { return same_shape(g, DD_OP_CONVERT, "to_rows", src, DD_F32); }

dd_value dd_graph_timestep(dd_graph *g, dd_value timestep, int dim, bool flip_sin_to_cos, float freq_shift)
{
    if (freq_shift >= (float)(dim / 2)) {
        dd_graph_fail(g, DD_INVALID, "freq_shift %g leaves no frequency for a timestep embedding of %d channels",
                      (double)freq_shift, dim);
        return DD_NONE;
    }
    dd_op op = {.kind = DD_OP_TIMESTEP,
                .src = {[DD_SRC] = {.value = timestep}},
                .nsrc = 1,
                .flip_sin_to_cos = flip_sin_to_cos,
                .freq_shift = freq_shift};
    return add_op(g, &op, "time_proj", info(g, timestep)->n, 1, 1, info(g, timestep)->c * dim, DD_ACTIVATION);
}

dd_value dd_graph_embed(dd_graph *g, dd_value tokens, const char *token_table, const char *position_table,
                        int vocabulary, int positions, int channels)
{
    const dd_value_info *s = info(g, tokens); /* (n, t): t is in c */
    dd_op op = {.kind = DD_OP_EMBED, .src = {[DD_SRC] = {.value = tokens}}, .nsrc = 1};
    int n = s->n, t = s->c;
    op.token_table = (dd_slice){.parameter = parameter(g, token_table, ".weight", 2, (int64_t[]){vocabulary, channels}),
                                .rows = vocabulary, .cols = channels};
    if (position_table) {
        op.position_table = (dd_slice){.parameter = parameter(g, position_table, ".weight", 2,
                                                              (int64_t[]){positions, channels}),
                                       .rows = positions,
                                       .cols = channels};
        if (t > positions) {
            dd_graph_fail(g, DD_SHAPE, "%d tokens, but the model has only %d positions", t, positions);
        }
    }
    return add_op(g, &op, position_table ? "embeddings" : token_table, n, t, 1, channels, DD_ACTIVATION);
}

dd_value dd_graph_upsample(dd_graph *g, dd_value src, int h, int w)
{
    const dd_value_info *s = info(g, src);
    dd_op op = {.kind = DD_OP_UPSAMPLE, .src = {[DD_SRC] = {.value = src}}, .nsrc = 1};
    return add_op(g, &op, "upsample", s->n, h, w, s->c, DD_ACTIVATION);
}

dd_value dd_graph_conv(dd_graph *g, const dd_conv *c)
{
    const dd_value_info *s = info(g, c->src);
    int pads = c->pad_before + c->pad_after - c->kernel;
    int n = s->n, h = (s->h + pads) / c->stride + 1, w = (s->w + pads) / c->stride + 1;
    int64_t dims[4] = {c->out, s->c, c->kernel, c->kernel};
    if (s->h + pads < 0 || s->w + pads < 0) {
        dd_graph_fail(g, DD_SHAPE, "'%s%s': an input of %d x %d is smaller than the %d x %d kernel", g->prefix, c->name,
                      s->h, s->w, c->kernel, c->kernel);
        return DD_NONE;
    }
    dd_op op = {.kind = DD_OP_CONV,
                .src = {[DD_SRC] = {.value = c->src}, [DD_SRC_ADD] = {.value = c->add}},
                .nsrc = 3,
                .kernel = c->kernel,
                .stride = c->stride,
                .pad_before = c->pad_before,
                .pad_after = c->pad_after,
                .act = c->act};
    op.weights[0] = (dd_slice){.parameter = parameter(g, c->name, ".weight", 4, dims), .rows = c->out,
                               .cols = dims[1] * dims[2] * dims[3]};
    op.nweights = 1;
    if (!c->no_bias) {
        op.bias[op.nbias++] = vector(g, c->name, ".bias", c->out);
    }
    return add_op(g, &op, c->name, n, h, w, c->out, DD_ACTIVATION);
}

dd_value dd_graph_linear(dd_graph *g, const dd_linear *l)
{
    const dd_value_info *s = info(g, l->src.value);
    int in = l->src.channels ? l->src.channels : s->c, names = l->names ? l->names : 1, n = s->n, h = s->h, w = s->w;
    int64_t rows = l->weight_rows ? l->weight_rows : l->out, cols = l->weight_cols ? l->weight_cols : in;
    dd_op op = {
        .kind = DD_OP_LINEAR,
        .nsrc = 3,
        .act = l->act,
        .act_of_sum = l->act_of_sum,
        .nweights = names,
        .nbias = l->no_bias ? 0 : names,
        .src = {[DD_SRC] = l->src, [DD_SRC_MULTIPLY] = {.value = l->multiply}, [DD_SRC_ADD] = {.value = l->add}}};
    for (int i = 0; i < names; i++) {
        int64_t dims[4] = {rows, cols, 1, 1};
        int id = parameter(g, l->name[i], ".weight", l->pointwise_conv ? 4 : 2, dims);
        op.weights[i] = (dd_slice){
            .parameter = id, .row = l->first_row, .rows = l->out, .col = l->first_col, .cols = in};
        if (!l->no_bias) {
            op.bias[i] = vector(g, l->name[i], ".bias", rows);
            op.bias[i].row = l->first_row;
            op.bias[i].rows = l->out;
        }
    }
    return add_op(g, &op, l->name[0], n, h, w, names * l->out, l->f32 ? DD_F32 : DD_ACTIVATION);
}

dd_value dd_graph_group_norm(dd_graph *g, const dd_group_norm_args *a)
{
    const dd_value_info *s = info(g, a->src);
    int c = s->c + (a->beside ? info(g, a->beside)->c : 0), n = s->n, h = s->h, w = s->w;
    if (a->groups < 1 || c % a->groups) {
        dd_graph_fail(g, DD_INVALID, "'%s%s': norm_num_groups %d does not divide %d channels", g->prefix, a->name,
                      a->groups, c);
        return DD_NONE;
    }
    if (a->beside && g->status == DD_OK && (info(g, a->beside)->h != h || info(g, a->beside)->w != w)) {
        dd_graph_fail(g, DD_SHAPE, "'%s%s': a skip of %d x %d beside %d x %d", g->prefix, a->name,
                      info(g, a->beside)->h, info(g, a->beside)->w, h, w);
        return DD_NONE;
    }
    dd_op op = {.kind = DD_OP_GROUP_NORM,
                .nsrc = 4,
                .groups = a->groups,
                .eps = a->eps,
                .silu = a->silu,
                .nweights = 1,
                .nbias = 1,
                .src = {[DD_SRC] = {.value = a->src},
                        [DD_SRC_BESIDE] = {.value = a->beside},
                        [DD_SRC_ROW_BIAS] = {.value = a->row_bias},
                        [DD_SRC_SCALE_SHIFT] = {.value = a->scale_shift}}};
    op.weights[0] = vector(g, a->name, ".weight", c);
    op.bias[0] = vector(g, a->name, ".bias", c);
    return add_op(g, &op, a->name, n, h, w, c, DD_ACTIVATION);
}

dd_value dd_graph_layer_norm(dd_graph *g, const char *name, dd_value src, float eps)
{
    const dd_value_info *s = info(g, src);
    int n = s->n, h = s->h, w = s->w, c = s->c;
    dd_op op = {
        .kind = DD_OP_LAYER_NORM, .src = {[DD_SRC] = {.value = src}}, .nsrc = 1, .eps = eps, .nweights = 1, .nbias = 1};
    op.weights[0] = vector(g, name, ".weight", c);
    op.bias[0] = vector(g, name, ".bias", c);
    return add_op(g, &op, name, n, h, w, c, DD_ACTIVATION);
}

dd_value dd_graph_attention(dd_graph *g, dd_view q, dd_view k, dd_view v, int heads, bool causal)
{
    const dd_value_info *s = info(g, q.value);
    int channels = q.channels ? q.channels : s->c;
    if (heads < 1 || channels % heads) {
        dd_graph_fail(g, DD_INVALID, "'%s': %d heads do not divide %d channels", g->prefix, heads, channels);
        return DD_NONE;
    }
    dd_op op = {.kind = DD_OP_ATTENTION,
                .src = {[DD_SRC_QUERY] = q, [DD_SRC_KEY] = k, [DD_SRC_VALUE] = v},
                .nsrc = 3,
                .heads = heads,
                .causal = causal};
    return add_op(g, &op, "attention", s->n, s->h, s->w, channels, DD_ACTIVATION);
}

dd_value dd_graph_batch_norm(dd_graph *g, const dd_batch_norm_args *a)
{
    const dd_value_info *s = info(g, a->src);
    int n = s->n, h = s->h, w = s->w, c = s->c;
    dd_op op = {.kind = DD_OP_BATCH_NORM,
                .src = {[DD_SRC] = {.value = a->src}, [DD_SRC_ADD] = {.value = a->add}},
                .nsrc = 3,
                .eps = a->eps,
                .act = a->relu ? DD_ACT_RELU : DD_ACT_NONE,
                .nweights = 1,
                .nbias = 1};
    op.weights[0] = vector(g, a->name, ".weight", c);
    op.bias[0] = vector(g, a->name, ".bias", c);
    op.mean = vector(g, a->name, ".running_mean", c);
    op.variance = vector(g, a->name, ".running_var", c);
    return add_op(g, &op, a->name, n, h, w, c, DD_ACTIVATION);
}

dd_value dd_graph_max_pool(dd_graph *g, dd_value src, int kernel, int stride, int pad)
{
    const dd_value_info *s = info(g, src);
    int n = s->n, h = (s->h + 2 * pad - kernel) / stride + 1, w = (s->w + 2 * pad - kernel) / stride + 1, c = s->c;
    dd_op op = {.kind = DD_OP_MAX_POOL,
                .src = {[DD_SRC] = {.value = src}},
                .nsrc = 1,
                .kernel = kernel,
                .stride = stride,
                .pad_before = pad,
                .pad_after = pad};
    return add_op(g, &op, "maxpool", n, h, w, c, DD_ACTIVATION);
}

dd_value dd_graph_global_pool(dd_graph *g, dd_value src)
{
    const dd_value_info *s = info(g, src);
    dd_op op = {.kind = DD_OP_GLOBAL_POOL, .src = {[DD_SRC] = {.value = src}}, .nsrc = 1};
    return add_op(g, &op, "avgpool", s->n, 1, 1, s->c, DD_F32);
}

dd_value dd_graph_add_noise(dd_graph *g, dd_value src, dd_value scale, dd_value given, dd_value keys)
{
    const dd_value_info *s = info(g, src);
    dd_op op = {.kind = DD_OP_ADD_NOISE, .nsrc = 4,
                .src = {[DD_SRC] = {.value = src}, [DD_SRC_SCALE] = {.value = scale}, [DD_SRC_GIVEN] = {.value = given},
                        [DD_SRC_NOISE_KEYS] = {.value = keys}}};
    return add_op(g, &op, "add_noise", s->n, s->h, s->w, s->c, DD_ACTIVATION);
}

int dd_graph_ops(const dd_graph *g) { return g->nops; }
const dd_op *dd_graph_op(const dd_graph *g, int index) { return &g->ops[index]; }
int dd_graph_values(const dd_graph *g) { return g->nvalues; }
const dd_value_info *dd_graph_value(const dd_graph *g, dd_value v) { return &g->values[v]; }

size_t dd_value_elements(const dd_value_info *v)
{
    return (size_t)v->n * (size_t)v->h * (size_t)v->w * (size_t)v->c;
}

size_t dd_value_bytes(const dd_value_info *v, dd_dtype activation)
{
    return dd_value_elements(v) * dd_dtype_size(v->dtype == DD_ACTIVATION ? activation : (dd_dtype)v->dtype);
}

dd_weights *dd_graph_weights(const dd_graph *g) { return g->weights; }
