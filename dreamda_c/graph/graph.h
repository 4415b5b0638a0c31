/* The computation of a model at one shape: values and operations, which can only be appended, and the names of their
 * parameters. A graph has no buffers and does not use oneDNN. A plan (plan.h) owns the graph and runs it.
 *
 *     dd_graph *g;
 *     DD_TRY(dd_graph_create(&g, weights));
 *     dd_value x = dd_graph_input(g, "sample", DD_F32, DD_INPUT_REQUIRED, 4, (int64_t[]){rows, 4, 64, 64});
 *     x = dd_graph_from_nchw(g, x);
 *     dd_graph_push(g, "down_blocks.%d", 0);
 *     x = dd_graph_conv(g, &(dd_conv){.name = "conv1", .src = x, .out = 320, .kernel = 3, .stride = 1, .pad_before = 1,
 *                                     .pad_after = 1});
 *     dd_graph_pop(g);
 *     dd_graph_output(g, "sample", dd_graph_to_nchw(g, x));
 *     DD_TRY(dd_graph_status(g));          // the first failure of all the calls above
 *     dd_graph_destroy(g);
 *
 * Values are channels-last rows: (n, h * w, c). After the first failure, builders return DD_NONE and accept DD_NONE, so
 * models need no error handling. Only a loop whose length depends on a configuration must check the status. A parameter
 * is named by the prefix stack and its own name, as in diffusers.
 */
#ifndef DD_GRAPH_H
#define DD_GRAPH_H

#include "graph/weights.h"
#include "onednn/onednn.h"

typedef struct dd_graph dd_graph;
typedef int dd_value;
enum { DD_NONE = 0, DD_MAX_STACK = 3 };

/* Activations have the plan's dtype; in a graph, DD_ACTIVATION stands for it. */
enum { DD_ACTIVATION = -1 };

dd_status dd_graph_create(dd_graph **out, dd_weights *weights); /* weights are borrowed and must outlive the graph */
void dd_graph_destroy(dd_graph *g);
dd_status dd_graph_status(const dd_graph *g);
void dd_graph_fail(dd_graph *g, dd_status status, const char *format, ...) __attribute__((format(printf, 3, 4)));

void dd_graph_push(dd_graph *g, const char *format, ...) __attribute__((format(printf, 2, 3)));
void dd_graph_pop(dd_graph *g);

/* Arrays of the caller, in the caller's layout. An optional input may be left out of a run. A constant input seldom
   changes: values that depend only on constant inputs are computed again only when the bytes of these change. */
typedef enum { DD_INPUT_REQUIRED, DD_INPUT_OPTIONAL, DD_INPUT_CONSTANT } dd_input_kind;
dd_value dd_graph_input(dd_graph *g, const char *name, dd_dtype dtype, dd_input_kind kind, int ndim,
                        const int64_t *dims);
void dd_graph_output(dd_graph *g, const char *name, dd_value v);

int dd_graph_channels(const dd_graph *g, dd_value v);
int dd_graph_height(const dd_graph *g, dd_value v);
int dd_graph_width(const dd_graph *g, dd_value v);
int dd_graph_rows(const dd_graph *g, dd_value v);

dd_value dd_graph_from_nchw(dd_graph *g, dd_value src);                  /* (n, c, h, w) f32 -> activation */
dd_value dd_graph_to_nchw(dd_graph *g, dd_value src);                    /* activation -> (n, c, h, w) f32 */
dd_value dd_graph_from_rows(dd_graph *g, dd_value src);                  /* (n, t, c) f32 -> activation */
dd_value dd_graph_to_rows(dd_graph *g, dd_value src);                    /* activation -> (n, t, c) f32 */
/* (n, c) f32 -> (n, c * dim): the sinusoids of each number, one after the other. */
dd_value dd_graph_timestep(dd_graph *g, dd_value timestep, int dim, bool flip_sin_to_cos, float freq_shift);
/* Rows of a table, with those of a table of positions unless that is NULL. */
dd_value dd_graph_embed(dd_graph *g, dd_value tokens, const char *token_table, const char *position_table,
                        int vocabulary, int positions, int channels);
dd_value dd_graph_upsample(dd_graph *g, dd_value src, int h, int w);     /* nearest, to h x w */

typedef struct {
    const char *name;
    dd_value src;
    int out, kernel, stride, pad_before, pad_after;
    bool no_bias;
    dd_activation act;
    dd_value add; /* residual, or DD_NONE; it is added after the activation, but before a ReLU */
} dd_conv;
dd_value dd_graph_conv(dd_graph *g, const dd_conv *conv);

/* Some channels of a value, without a copy; channels 0 means all of them. */
typedef struct {
    dd_value value;
    int offset, channels;
} dd_view;

/* dst = act(src w^T + b) [* multiply] [+ add]. The rows of several names are stacked into one product (q, k, v). If
   `weight_rows` / `weight_cols` say that the parameter is larger than out x src channels, a rectangle of it is used. */
typedef struct {
    const char *name[DD_MAX_STACK];
    int names; /* 0 means 1 */
    dd_view src;
    int out; /* channels of one name */
    int first_row, weight_rows, first_col, weight_cols;
    bool no_bias, pointwise_conv; /* the latter: the weight's shape is (o, i, 1, 1) */
    bool f32;                     /* dst stays f32 (for the row bias of a norm) */
    dd_activation act;
    bool act_of_sum; /* the activation comes after `add` */
    dd_value multiply, add;
} dd_linear;
dd_value dd_graph_linear(dd_graph *g, const dd_linear *linear);

/* GroupNorm of src (and `beside`, its right-hand neighbour in a virtual concatenation), with `row_bias` added first.
   `scale_shift` has a scale and then a shift for every channel of a row: the norm times 1 + scale, plus shift. */
typedef struct {
    const char *name;
    dd_value src, beside, row_bias, scale_shift;
    int groups;
    float eps;
    bool silu;
} dd_group_norm_args;
dd_value dd_graph_group_norm(dd_graph *g, const dd_group_norm_args *args);

dd_value dd_graph_layer_norm(dd_graph *g, const char *name, dd_value src, float eps);
dd_value dd_graph_attention(dd_graph *g, dd_view q, dd_view k, dd_view v, int heads, bool causal);

/* Must follow a convolution without bias. A trainer runs both in training mode; plans and evaluation fold them into one
   convolution. */
typedef struct {
    const char *name; /* of weight, bias, running_mean and running_var */
    dd_value src, add; /* dst = [relu](norm(src) [+ add]) */
    bool relu;
    float eps;
} dd_batch_norm_args;
dd_value dd_graph_batch_norm(dd_graph *g, const dd_batch_norm_args *args);
dd_value dd_graph_max_pool(dd_graph *g, dd_value src, int kernel, int stride, int pad);
dd_value dd_graph_global_pool(dd_graph *g, dd_value src); /* mean over positions: (n, 1, 1, c) f32 */

/* src + scale[row] * noise. The noise is `given`, or drawn from `keys` (rows x 8 u32). All three are optional inputs;
   without scale, the result is a copy of src. */
dd_value dd_graph_add_noise(dd_graph *g, dd_value src, dd_value scale, dd_value given, dd_value keys);

/* ------------------------------------------------------------------------------------ for plans */

typedef enum {
    DD_OP_FROM_NCHW,
    DD_OP_TO_NCHW,
    DD_OP_CONVERT,
    DD_OP_TIMESTEP,
    DD_OP_EMBED,
    DD_OP_UPSAMPLE,
    DD_OP_CONV,
    DD_OP_LINEAR,
    DD_OP_GROUP_NORM,
    DD_OP_LAYER_NORM,
    DD_OP_ATTENTION,
    DD_OP_ADD_NOISE,
    DD_OP_BATCH_NORM,
    DD_OP_MAX_POOL,
    DD_OP_GLOBAL_POOL,
    DD_OP_COUNT
} dd_op_kind;

typedef struct {
    int n, h, w, c;
    int dtype;        /* DD_ACTIVATION or a dd_dtype */
    bool constant;    /* depends only on constant inputs */
    const char *name; /* of an input or output; NULL inside */
    bool output;
    dd_input_kind input_kind;
    int ndim; /* of an input or output, as the caller sees it */
    int64_t dims[4];
} dd_value_info;

/* The slots of dd_op.src. DD_SRC is the value that an operation transforms; the others depend on its kind. */
enum {
    DD_SRC = 0,
    DD_SRC_MULTIPLY = 1,   /* linear */
    DD_SRC_ADD = 2,        /* linear, conv, batch norm: a residual */
    DD_SRC_BESIDE = 1,     /* group norm */
    DD_SRC_ROW_BIAS = 2,   /* group norm */
    DD_SRC_SCALE_SHIFT = 3, /* group norm */
    DD_SRC_QUERY = DD_SRC, /* attention */
    DD_SRC_KEY = 1,
    DD_SRC_VALUE = 2,
    DD_SRC_SCALE = 1,      /* add noise */
    DD_SRC_GIVEN = 2,
    DD_SRC_NOISE_KEYS = 3,
    DD_MAX_SOURCES = 4
};

typedef struct {
    char *name;
    dd_op_kind kind;
    dd_view src[DD_MAX_SOURCES]; /* value DD_NONE: absent */
    int nsrc;
    dd_value dst;
    dd_slice weights[DD_MAX_STACK], bias[DD_MAX_STACK]; /* linear: stacked by rows; norms: gamma and beta */
    dd_slice mean, variance;                            /* batch norm: the running statistics */
    dd_slice token_table, position_table;               /* embed; the latter without rows: absent */
    int nweights, nbias;
    dd_activation act;
    int kernel, stride, pad_before, pad_after, groups, heads;
    float eps, freq_shift;
    bool silu, causal, flip_sin_to_cos, act_of_sum;
} dd_op;

int dd_graph_ops(const dd_graph *g);
const dd_op *dd_graph_op(const dd_graph *g, int index);
int dd_graph_values(const dd_graph *g); /* valid ids are 1 .. values */
const dd_value_info *dd_graph_value(const dd_graph *g, dd_value v);
size_t dd_value_elements(const dd_value_info *v);
size_t dd_value_bytes(const dd_value_info *v, dd_dtype activation); /* if activations have that type */
dd_weights *dd_graph_weights(const dd_graph *g);

#endif
