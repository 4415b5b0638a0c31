/* The functions of a plan for each kind of operation; dd_operations, at the end, has one row per kind. */
#include "graph/step.h"

#include "base/arena.h"
#include "graph/convolution.h"
#include "kernels/kernels.h"
#include "kernels/train.h"

#include <math.h>
#include <string.h>

static dd_engine *engine_of(const dd_plan *p)
{
    return dd_weights_engine(dd_graph_weights(p->graph));
}

/* A residual is added after an activation, but before a ReLU, and where the operation says so. */
static dd_epilogue epilogue(const dd_plan *p, const dd_op *op)
{
    const dd_value multiply = op->src[DD_SRC_MULTIPLY].value, add = op->src[DD_SRC_ADD].value;
    const bool act_of_sum = add && (op->act == DD_ACT_RELU || op->act_of_sum);
    return (dd_epilogue){.bias = op->nbias > 0,
                         .act = act_of_sum ? DD_ACT_NONE : op->act,
                         .act_last = act_of_sum ? op->act : DD_ACT_NONE,
                         .multiply = multiply != DD_NONE,
                         .multiply_ld = multiply ? (size_t)dd_step_value(p, multiply)->c : 0,
                         .add = add != DD_NONE,
                         .add_ld = add ? (size_t)dd_step_value(p, add)->c : 0};
}

/* The packs of an operation with plain weights and bias, in the layout of its primitive or kernel. */
static dd_status pack(dd_plan *p, dd_step *s)
{
    dd_status status = DD_OK;
    const dd_op *op = s->op;
    dd_weights *weights = dd_graph_weights(p->graph);
    const dd_layout *layout = s->primitive ? dd_primitive_weights(s->primitive) : s->winograd;
    DD_TRY(dd_weights_pack(weights, op->weights, op->nweights, layout, &s->weights));
    if (op->nbias) {
        DD_TRY(dd_weights_pack(weights, op->bias, op->nbias, NULL, &s->bias));
    }
fail:
    return status;
}

/* ---- convolutions */

/* The primitive or the layout of a convolution. */
static dd_status create_convolution(dd_plan *p, dd_step *s, const dd_conv_desc *d, dd_convolution_rule rule)
{
    dd_status status = DD_OK;
    const dd_value_info *dst = dd_step_value(p, s->op->dst);
    s->flops = 2.0 * dst->n * dd_tokens(dst) * dst->c * d->ic * d->kernel * d->kernel;
    if (s->upsampling || dd_convolution_by_winograd(d, p->isa, rule, false)) {
        s->scratch = dd_winograd_scratch(p->isa, p->dtype, d->ic, p->threads, 0);
        DD_TRY(dd_layout_winograd(&s->winograd, p->isa, p->dtype, d->ic, d->oc, s->upsampling != NULL));
    } else {
        DD_TRY(dd_conv_create(&s->primitive, engine_of(p), d));
    }
fail:
    return status;
}

static dd_status create_conv(dd_plan *p, dd_step *s)
{
    dd_status status = DD_OK;
    dd_conv_desc d = dd_convolution(p->graph, s->op, dd_step_source(s, DD_SRC), p->dtype);
    d.epilogue = epilogue(p, s->op);
    DD_TRY(create_convolution(p, s, &d, DD_PER_IMAGE));
    DD_TRY(pack(p, s));
fail:
    return status;
}

/* One convolution for the batch norm and the convolution before it. */
static dd_status create_batch_norm(dd_plan *p, dd_step *s)
{
    dd_status status = DD_OK;
    int first;
    dd_conv_desc d = dd_convolution_cropped(p->graph, s->conv, p->dtype, &first);
    d.epilogue = epilogue(p, s->op);
    DD_TRY(create_convolution(p, s, &d, DD_PER_BATCH));
    const dd_fold fold = {.weight = s->conv->weights[0],
                          .gamma = s->op->weights[0],
                          .beta = s->op->bias[0],
                          .mean = s->op->mean,
                          .variance = s->op->variance,
                          .eps = s->op->eps,
                          .kernel = s->conv->kernel,
                          .first = first,
                          .places = d.kernel};
    const dd_layout *layout = s->primitive ? dd_primitive_weights(s->primitive) : s->winograd;
    DD_TRY(dd_weights_pack_folded(dd_graph_weights(p->graph), &fold, layout, &s->weights));
fail:
    return status;
}

bool dd_takes_upsampling(const dd_plan *p, int index)
{
    const dd_op *up = index > 0 ? dd_graph_op(p->graph, index - 1) : NULL, *op = dd_graph_op(p->graph, index);
    if (!up || up->kind != DD_OP_UPSAMPLE || op->kind != DD_OP_CONV || op->src[DD_SRC].value != up->dst) {
        return false;
    }
    const dd_value_info *from = dd_step_value(p, up->src[DD_SRC].value), *between = dd_step_value(p, up->dst);
    dd_conv_desc d = dd_convolution(p->graph, op, up->dst, p->dtype);
    d.epilogue = epilogue(p, op);
    if (between->h != 2 * from->h || between->w != 2 * from->w ||
        !dd_convolution_by_winograd(&d, p->isa, DD_PER_IMAGE, true)) {
        return false;
    }
    for (int i = index + 1; i < dd_graph_ops(p->graph); i++) {
        const dd_op *other = dd_graph_op(p->graph, i);
        for (int j = 0; j < other->nsrc; j++) {
            if (other->src[j].value == up->dst) {
                return false;
            }
        }
    }
    return true;
}

static dd_status run_conv(const dd_plan *p, const dd_step *s, const dd_call *c)
{
    if (!s->winograd) {
        return dd_primitive_run(s->primitive);
    }
    dd_winograd(p->isa, p->dtype,
                &(dd_winograd_call){.dst = c->dst,
                                    .src = c->src,
                                    .weights = c->weights,
                                    .bias = c->bias,
                                    .residual = dd_step_data(p, s, DD_SRC_ADD),
                                    .relu = s->op->act == DD_ACT_RELU,
                                    .up = s->upsampling != NULL,
                                    .n = c->in->n,
                                    .h = c->in->h,
                                    .w = c->in->w,
                                    .ic = c->in->c,
                                    .oc = c->out->c,
                                    .scratch = p->scratch});
    return DD_OK;
}

/* ---- matrix products */

/* Long rows that are whole pages apart fall into the same sets of the caches. Before AVX-512, oneDNN's 1 x 1
   convolutions then take three times as long; copying the rows with one cache line more each takes only a twentieth. */
static bool rows_collide(const dd_value_info *src)
{
    return src->c > 2048 && (size_t)src->c * sizeof(float) % 4096 == 0;
}

enum { PAD = 16 };

static void copy_padded(float *dst, const float *src, int64_t rows, size_t cols)
{
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        float *to = dst + (size_t)r * (cols + PAD);
        memcpy(to, src + (size_t)r * cols, cols * sizeof *to);
        memset(to + cols, 0, PAD * sizeof *to);
    }
}

static dd_status create_linear(dd_plan *p, dd_step *s)
{
    dd_status status = DD_OK;
    const dd_op *op = s->op;
    const dd_value_info *src = dd_step_value(p, op->src[DD_SRC].value), *dst = dd_step_value(p, op->dst);
    dd_matmul_desc d = {.dtype = p->dtype, .dst_dtype = dd_step_dtype(p, dst), .m = (int64_t)src->n * dd_tokens(src),
                        .k = op->src[DD_SRC].channels, .n = dst->c, .src_ld = (size_t)src->c, .dst_ld = (size_t)dst->c,
                        .epilogue = epilogue(p, op)};
    dd_engine *engine = engine_of(p);
    s->flops = 2.0 * (double)d.m * (double)d.k * (double)d.n;
    DD_TRY(dd_matmul_create(&s->primitive, engine, &d));
    if (strncmp(dd_primitive_implementation(s->primitive), "gemm", 4) == 0 && d.dst_dtype == d.dtype) {
        /* Before AVX-512, oneDNN's products are a GEMM whose sums depend on the position of a row, so that a batch
           could change them. A 1 x 1 convolution computes the same, in the same way for every row, and faster. */
        dd_primitive_destroy(s->primitive);
        s->primitive = NULL;
        const bool pad = p->dtype == DD_F32 && rows_collide(src);
        dd_conv_desc c = {.dtype = d.dtype,
                          .n = src->n,
                          .h = src->h,
                          .w = src->w,
                          .ic = src->c + (pad ? PAD : 0),
                          .oc = dst->c,
                          .kernel = 1,
                          .stride = 1,
                          .epilogue = d.epilogue};
        DD_TRY(dd_conv_create(&s->primitive, engine, &c));
        if (pad) {
            s->padded = (dd_primitive_scratch(s->primitive) / DD_ALIGN + 1) * DD_ALIGN;
            s->scratch = s->padded + (size_t)d.m * (size_t)(src->c + PAD) * sizeof(float);
        }
    }
    DD_TRY(pack(p, s));
fail:
    return status;
}

static dd_status run_linear(const dd_plan *p, const dd_step *s, const dd_call *c)
{
    if (s->padded) {
        copy_padded((float *)(void *)((char *)p->scratch + s->padded), c->src, (int64_t)c->in->n * dd_tokens(c->in),
                    (size_t)c->in->c);
    }
    return dd_primitive_run(s->primitive);
}

/* ---- norms */

static dd_status create_group_norm(dd_plan *p, dd_step *s)
{
    const dd_value_info *dst = dd_step_value(p, s->op->dst);
    s->scratch = dd_group_norm_scratch(dst->n, dd_tokens(dst), dst->c);
    return pack(p, s);
}

static dd_status run_group_norm(const dd_plan *p, const dd_step *s, const dd_call *c)
{
    const dd_op *op = s->op;
    const dd_value row_bias = op->src[DD_SRC_ROW_BIAS].value, scale_shift = op->src[DD_SRC_SCALE_SHIFT].value;
    dd_group_norm(p->isa, p->dtype,
                  &(dd_group_norm_call){.dst = c->dst,
                                        .src = c->src,
                                        .beside = dd_step_data(p, s, DD_SRC_BESIDE),
                                        .row_bias = dd_step_data(p, s, DD_SRC_ROW_BIAS),
                                        .row_bias_ld = row_bias ? (size_t)dd_step_value(p, row_bias)->c : 0,
                                        .scale_shift = dd_step_data(p, s, DD_SRC_SCALE_SHIFT),
                                        .scale_shift_ld = scale_shift ? (size_t)dd_step_value(p, scale_shift)->c : 0,
                                        .gamma = c->weights,
                                        .beta = c->bias,
                                        .n = c->in->n,
                                        .hw = dd_tokens(c->in),
                                        .c = c->in->c,
                                        .beside_c = c->out->c - c->in->c,
                                        .groups = op->groups,
                                        .eps = op->eps,
                                        .silu = op->silu,
                                        .scratch = p->scratch});
    return DD_OK;
}

static dd_status run_layer_norm(const dd_plan *p, const dd_step *s, const dd_call *c)
{
    dd_layer_norm(p->isa, p->dtype, c->dst, c->src, c->weights, c->bias, c->in->n * dd_tokens(c->in), c->in->c,
                  s->op->eps);
    return DD_OK;
}

/* ---- attention */

/* Without pointers, which are known only in a run. */
static dd_attention_call attention_sizes(const dd_plan *p, const dd_op *op)
{
    const dd_value_info *q = dd_step_value(p, op->src[DD_SRC_QUERY].value),
                        *k = dd_step_value(p, op->src[DD_SRC_KEY].value);
    const dd_value_info *v = dd_step_value(p, op->src[DD_SRC_VALUE].value), *dst = dd_step_value(p, op->dst);
    const int d = dst->c / op->heads;
    return (dd_attention_call){.dst_ld = (size_t)dst->c,
                               .q_ld = (size_t)q->c,
                               .k_ld = (size_t)k->c,
                               .v_ld = (size_t)v->c,
                               .n = dst->n,
                               .heads = op->heads,
                               .tq = dd_tokens(dst),
                               .tk = dd_tokens(k),
                               .d = d,
                               .scale = 1.f / sqrtf((float)d),
                               .causal = op->causal};
}

static const char *view_data(const dd_plan *p, const dd_view *view)
{
    return (const char *)p->data[view->value] + (size_t)view->offset * dd_dtype_size(p->dtype);
}

static dd_status create_attention(dd_plan *p, dd_step *s)
{
    const dd_attention_call call = attention_sizes(p, s->op);
    s->scratch = dd_attention_scratch(p->isa, p->dtype, &call, p->threads);
    s->flops = 4.0 * call.n * call.tq * call.tk * (double)call.dst_ld * (call.causal ? 0.5 : 1.0);
    return DD_OK;
}

static dd_status run_attention(const dd_plan *p, const dd_step *s, const dd_call *c)
{
    dd_attention_call call = attention_sizes(p, s->op);
    call.dst = c->dst;
    call.q = view_data(p, &s->op->src[DD_SRC_QUERY]);
    call.k = view_data(p, &s->op->src[DD_SRC_KEY]);
    call.v = view_data(p, &s->op->src[DD_SRC_VALUE]);
    call.scratch = p->scratch;
    dd_attention(p->isa, p->dtype, &call);
    return DD_OK;
}

/* ---- noise */

static dd_status create_add_noise(dd_plan *p, dd_step *s)
{
    const dd_value_info *src = dd_step_value(p, s->op->src[DD_SRC].value);
    s->scratch = dd_add_noise_scratch(src->n, src->c, dd_tokens(src));
    return DD_OK;
}

static dd_status run_add_noise(const dd_plan *p, const dd_step *s, const dd_call *c)
{
    const float *scale = dd_step_data(p, s, DD_SRC_SCALE), *given = dd_step_data(p, s, DD_SRC_GIVEN);
    const dd_noise_key *keys = dd_step_data(p, s, DD_SRC_NOISE_KEYS);
    if (!scale) {
        memcpy(c->dst, c->src, dd_value_bytes(c->in, p->dtype));
        return DD_OK;
    }
    if (!given && !keys) {
        return dd_fail(DD_INVALID, "noise_scale is given, but neither noise nor noise_key");
    }
    _Static_assert(sizeof(dd_noise_key) == 8 * sizeof(uint32_t), "a key is eight words");
    dd_add_noise(p->dtype, c->dst, c->src, scale, given, keys, c->in->n, c->in->c, dd_tokens(c->in), p->scratch);
    return DD_OK;
}

/* ---- embeddings */

static dd_status run_timestep(const dd_plan *p, const dd_step *s, const dd_call *c)
{
    dd_timestep_embedding(p->dtype, c->dst, c->src, c->in->n * c->in->c, c->out->c / c->in->c, s->op->flip_sin_to_cos,
                          s->op->freq_shift);
    return DD_OK;
}

static dd_status create_embed(dd_plan *p, dd_step *s)
{
    dd_status status = DD_OK;
    dd_weights *weights = dd_graph_weights(p->graph);
    DD_TRY(dd_weights_pack(weights, &s->op->token_table, 1, NULL, &s->weights));
    if (s->op->position_table.rows) {
        DD_TRY(dd_weights_pack(weights, &s->op->position_table, 1, NULL, &s->bias));
    }
fail:
    return status;
}

static dd_status run_embed(const dd_plan *p, const dd_step *s, const dd_call *c)
{
    const int32_t *ids = c->src;
    for (int64_t i = 0; i < (int64_t)c->in->n * c->in->c; i++) {
        if (ids[i] < 0 || ids[i] >= s->op->token_table.rows) { /* they index a table */
            return dd_fail(DD_INVALID, "%s %d is outside %s (0 to %lld)",
                           s->op->position_table.rows ? "token id" : "class label", ids[i],
                           s->op->position_table.rows ? "the vocabulary" : "the model's classes",
                           (long long)s->op->token_table.rows - 1);
        }
    }
    dd_embed(p->dtype, c->dst, ids, c->weights, c->bias, c->out->n, dd_tokens(c->out), c->out->c);
    return DD_OK;
}

/* ---- pooling and changes of size, order and type */

static dd_status create_max_pool(dd_plan *p, dd_step *s)
{
    const dd_conv_desc d = dd_convolution(p->graph, s->op, s->op->src[DD_SRC].value, p->dtype);
    return dd_max_pool_create(&s->primitive, NULL, engine_of(p), &d);
}

static dd_status run_max_pool(const dd_plan *p, const dd_step *s, const dd_call *c)
{
    (void)p, (void)c;
    return dd_primitive_run(s->primitive);
}

static dd_status run_global_pool(const dd_plan *p, const dd_step *s, const dd_call *c)
{
    (void)s;
    dd_global_pool(p->dtype, c->dst, c->src, c->in->n, dd_tokens(c->in), c->in->c);
    return DD_OK;
}

static dd_status run_upsample(const dd_plan *p, const dd_step *s, const dd_call *c)
{
    (void)s;
    dd_upsample_nearest(p->dtype, c->dst, c->src, c->in->n, c->in->h, c->in->w, c->in->c, c->out->h, c->out->w);
    return DD_OK;
}

static dd_status run_from_nchw(const dd_plan *p, const dd_step *s, const dd_call *c)
{
    (void)s;
    dd_from_nchw(p->dtype, c->dst, c->src, c->in->n, c->in->c, dd_tokens(c->in));
    return DD_OK;
}

static dd_status run_to_nchw(const dd_plan *p, const dd_step *s, const dd_call *c)
{
    (void)s;
    dd_to_nchw(p->dtype, c->dst, c->src, c->in->n, c->in->c, dd_tokens(c->in));
    return DD_OK;
}

static dd_status run_convert(const dd_plan *p, const dd_step *s, const dd_call *c)
{
    (void)s;
    dd_convert(dd_step_dtype(p, c->out), c->dst, dd_step_dtype(p, c->in), c->src, dd_value_elements(c->in));
    return DD_OK;
}

const dd_operation dd_operations[DD_OP_COUNT] = {
    [DD_OP_FROM_NCHW] = {"from_nchw", NULL, run_from_nchw},
    [DD_OP_TO_NCHW] = {"to_nchw", NULL, run_to_nchw},
    [DD_OP_CONVERT] = {"convert", NULL, run_convert},
    [DD_OP_TIMESTEP] = {"timestep", NULL, run_timestep},
    [DD_OP_EMBED] = {"embed", create_embed, run_embed},
    [DD_OP_UPSAMPLE] = {"upsample", NULL, run_upsample},
    [DD_OP_CONV] = {"conv", create_conv, run_conv},
    [DD_OP_LINEAR] = {"linear", create_linear, run_linear},
    [DD_OP_GROUP_NORM] = {"group_norm", create_group_norm, run_group_norm},
    [DD_OP_LAYER_NORM] = {"layer_norm", pack, run_layer_norm},
    [DD_OP_ATTENTION] = {"attention", create_attention, run_attention},
    [DD_OP_ADD_NOISE] = {"add_noise", create_add_noise, run_add_noise},
    [DD_OP_BATCH_NORM] = {"batch_norm", create_batch_norm, run_conv},
    [DD_OP_MAX_POOL] = {"max_pool", create_max_pool, run_max_pool},
    [DD_OP_GLOBAL_POOL] = {"global_pool", NULL, run_global_pool},
};
