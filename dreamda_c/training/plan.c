/* Memory: one block of state (parameters, gradients, momentum, running statistics), one of packed weights, one arena.
 * The arena holds, for each slot, the values that forward keeps for backward; then the gradients of activations
 * (planned by lifetime), the activations of evaluation (likewise), and scratch. */
#include "training/plan.h"

#include "base/team.h"
#include "graph/convolution.h"
#include "kernels/kernels.h"
#include "kernels/train.h"

#include <string.h>

static size_t parameter_floats(const dd_parameter *p)
{
    size_t count = 1;
    for (int i = 0; i < p->ndim; i++) {
        count *= (size_t)p->dims[i];
    }
    return count;
}

/* Offsets of every parameter: convolution weights first (they decay), then norms; running statistics in a block of
   their own. */
static dd_status lay_out_parameters(dd_trainer *t)
{
    dd_status status = DD_OK;
    int count = dd_weights_count(t->table);
    t->offset = dd_calloc((size_t)count + 1, sizeof *t->offset);
    t->running = dd_calloc((size_t)count + 1, sizeof *t->running);
    if (!t->offset || !t->running) {
        DD_FAIL(DD_NOMEM, "out of memory for a trainer");
    }
    for (int i = 0; i < t->nsteps; i++) {
        const dd_op *op = t->steps[i].op;
        if (op->kind == DD_OP_BATCH_NORM) {
            t->running[op->mean.parameter] = t->running[op->variance.parameter] = true;
        }
    }
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < count; i++) {
            const dd_parameter *p = dd_weights_get(t->table, i);
            size_t floats = aligned(parameter_floats(p) * sizeof(float)) / sizeof(float);
            if ((pass == 0) != (p->ndim > 1)) {
                continue;
            }
            size_t *end = t->running[i] ? &t->statistics : &t->parameters;
            t->offset[i] = *end;
            *end += floats;
        }
        t->decayed = pass == 0 ? t->parameters : t->decayed;
    }
    size_t floats = 3 * t->parameters + t->statistics;
    t->parameter = dd_calloc(floats, sizeof(float));
    if (!t->parameter) {
        DD_FAIL(DD_NOMEM, "out of memory for %zu parameters", t->parameters);
    }
    t->bytes += floats * sizeof(float);
    t->gradient = t->parameter + t->parameters;
    t->moment = t->gradient + t->parameters;
    t->statistic = t->moment + t->parameters;
    for (int i = 0; i < t->nsteps; i++) {
        step *s = &t->steps[i];
        if (s->op->kind == DD_OP_CONV) {
            s->weight = t->offset[s->op->weights[0].parameter];
        } else if (s->op->kind == DD_OP_BATCH_NORM) {
            s->gamma = t->offset[s->op->weights[0].parameter];
            s->beta = t->offset[s->op->bias[0].parameter];
            s->mean = t->offset[s->op->mean.parameter];
            s->variance = t->offset[s->op->variance.parameter];
            for (int c = 0; c < value(t, s->op->dst)->c; c++) {
                t->parameter[s->gamma + (size_t)c] = t->statistic[s->variance + (size_t)c] = 1.0f;
            }
        }
    }
fail:
    return status;
}

dd_conv_desc dd_trainer_conv(const dd_trainer *t, const dd_op *op)
{
    int first;
    return dd_convolution_cropped(t->graph, op, t->dtype, &first);
}

/* The offset in floats, within a filter, of the first place of the cropped window. */
static size_t corner_of(const dd_trainer *t, const dd_op *op)
{
    int first;
    dd_convolution_cropped(t->graph, op, t->dtype, &first);
    return (size_t)first * (size_t)(op->kernel + 1);
}

static int step_of(const dd_trainer *t, dd_value v)
{
    for (int i = 0; i < t->nsteps; i++) {
        if (t->steps[i].op->dst == v) {
            return i;
        }
    }
    return -1;
}

static bool is_image(const dd_trainer *t, dd_value v)
{
    int maker = step_of(t, v);
    return maker < 0 || t->steps[maker].op->kind == DD_OP_FROM_NCHW;
}

/* On AMX tiles our kernel always pays in bf16. Elsewhere it pays if the result has few positions, or few and a stride:
   oneDNN's works image by image. In f32 a 3 x 3 window pays everywhere: with stride 1 by Winograd's form, with a stride
   before AVX-512, where oneDNN's is slow. */
static bool weight_gradient_fits(const dd_trainer *t, const dd_op *op)
{
    const dd_window w = window_of(t, op);
    if (w.kernel * w.kernel > DD_WEIGHT_GRADIENT_TAPS) {
        return false;
    }
    if (t->dtype == DD_BF16 && t->isa == DD_ISA_AMX) {
        return true;
    }
    if (w.ic % 16 || w.oc % dd_winograd_columns(t->isa)) {
        return false;
    }
    if (t->dtype == DD_F32 && w.kernel == 3 && (w.stride == 1 || t->isa == DD_ISA_AVX2)) {
        return true;
    }
    return w.oh * w.ow <= (w.stride > 1 ? 64 : 4);
}

static size_t take(size_t *end, size_t bytes)
{
    size_t at = *end;
    *end += aligned(bytes);
    return at;
}

static dd_status create_convolution(dd_trainer *t, step *s, size_t *packed)
{
    dd_status status = DD_OK;
    dd_engine *engine = dd_weights_engine(t->table);
    dd_conv_desc d = dd_trainer_conv(t, s->op);
    bool wanted = !is_image(t, s->op->src[DD_SRC].value);
    DD_TRY(dd_conv_train_create(&s->forward, wanted ? &s->backward : NULL, &s->weights, engine, &d));
    dd_conv_desc back = d;
    back.ic = d.oc;
    back.oc = d.ic;
    s->winograd = dd_convolution_by_winograd(&d, t->isa, DD_PER_BATCH, false);
    s->winograd_backward = s->winograd && wanted && dd_convolution_by_winograd(&back, t->isa, DD_PER_BATCH, false);
    s->own_weights = weight_gradient_fits(t, s->op);
    if (s->own_weights) {
        dd_primitive_destroy(s->weights);
        s->weights = NULL;
    } else {
        DD_TRY(dd_unpack_create(&s->unpack, engine, dd_primitive_weights(s->weights), s->op->kernel));
    }
    if (s->winograd) {
        dd_primitive_destroy(s->forward);
        s->forward = NULL;
        s->packed_forward = take(packed, dd_winograd_pack_bytes(t->dtype, d.ic, d.oc, DD_WINOGRAD_FORWARD));
        if (s->winograd_backward) {
            dd_primitive_destroy(s->backward);
            s->backward = NULL;
            s->packed_backward = take(packed, dd_winograd_pack_bytes(t->dtype, d.ic, d.oc, DD_WINOGRAD_BACKWARD));
        } else if (wanted) {
            DD_TRY(dd_pack_create(&s->pack_backward, engine, dd_primitive_weights(s->backward), s->op->kernel));
            s->packed_backward = take(packed, dd_layout_bytes(dd_primitive_weights(s->backward)));
        }
        return DD_OK;
    }
    const dd_layout *forward = dd_primitive_weights(s->forward);
    DD_TRY(dd_pack_create(&s->pack_forward, engine, forward, s->op->kernel));
    s->packed_forward = take(packed, dd_layout_bytes(forward));
    s->packed_backward = s->packed_forward;
    if (wanted && !dd_layout_equal(forward, dd_primitive_weights(s->backward))) {
        DD_TRY(dd_pack_create(&s->pack_backward, engine, dd_primitive_weights(s->backward), s->op->kernel));
        s->packed_backward = take(packed, dd_layout_bytes(dd_primitive_weights(s->backward)));
    }
fail:
    return status;
}

/* The convolution that evaluation runs in place of itself and of the batch norm `s` behind it. */
static dd_status create_evaluation(dd_trainer *t, step *s, size_t *packed)
{
    dd_status status = DD_OK;
    s->convolution = step_of(t, s->op->src[DD_SRC].value);
    if (s->convolution < 0 || t->steps[s->convolution].op->kind != DD_OP_CONV) {
        DD_FAIL(DD_INVALID, "'%s' does not follow a convolution", s->op->name);
    }
    dd_conv_desc d = dd_trainer_conv(t, t->steps[s->convolution].op);
    bool relu = s->op->act == DD_ACT_RELU, add = s->op->src[DD_SRC_ADD].value != DD_NONE;
    d.epilogue = (dd_epilogue){
        .bias = true,
        .act = relu && !add ? DD_ACT_RELU : DD_ACT_NONE,
        .add = add,
        .act_last = relu && add ? DD_ACT_RELU : DD_ACT_NONE};
    s->bias_evaluate = take(packed, (size_t)d.oc * sizeof(float));
    s->winograd_evaluate = dd_convolution_by_winograd(&d, t->isa, DD_PER_BATCH, false);
    if (s->winograd_evaluate) {
        s->packed_evaluate = take(packed, dd_winograd_pack_bytes(t->dtype, d.ic, d.oc, DD_WINOGRAD_FORWARD));
        return DD_OK;
    }
    DD_TRY(dd_conv_create(&s->evaluate, dd_weights_engine(t->table), &d));
    DD_TRY(dd_pack_create(&s->pack_evaluate, dd_weights_engine(t->table), dd_primitive_weights(s->evaluate),
                          t->steps[s->convolution].op->kernel));
    s->packed_evaluate = take(packed, dd_layout_bytes(dd_primitive_weights(s->evaluate)));
fail:
    return status;
}

static void larger(size_t *most, const dd_primitive *p)
{
    if (p && dd_primitive_scratch(p) > *most) {
        *most = dd_primitive_scratch(p);
    }
}

/* Plans a slot. It keeps the sources of convolutions and of batch norms, the results of batch norms with a residual
   (for the gradient of ReLU), statistics and workspaces. The other values live from their first to their last use. */
static dd_status plan_forward(dd_trainer *t)
{
    dd_status status = DD_OK;
    int values = dd_graph_values(t->graph), count = values + 1 + t->nsteps;
    dd_buffer *b = dd_calloc((size_t)count, sizeof *b);
    if (!b) {
        DD_FAIL(DD_NOMEM, "out of memory for a trainer");
    }
    for (int i = 0; i < t->nsteps; i++) {
        const step *s = &t->steps[i];
        const dd_op *op = s->op;
        b[op->dst] = (dd_buffer){.bytes = value_bytes(t, op->dst), .first = i, .last = i};
        for (int j = 0; j < op->nsrc; j++) {
            if (op->src[j].value != DD_NONE) {
                dd_buffer *src = &b[op->src[j].value];
                bool keep = j == 0 && (op->kind == DD_OP_CONV || op->kind == DD_OP_BATCH_NORM);
                src->last = keep ? t->nsteps : src->last > i ? src->last : i;
            }
        }
        if (op->kind == DD_OP_BATCH_NORM && op->src[DD_SRC_ADD].value != DD_NONE) {
            b[op->dst].last = t->nsteps;
        }
        b[values + 1 + i] = (dd_buffer){.first = i, .last = t->nsteps};
        if (op->kind == DD_OP_BATCH_NORM) {
            b[values + 1 + i].bytes = 2 * aligned((size_t)value(t, op->dst)->c * sizeof(float));
        } else if (op->kind == DD_OP_MAX_POOL) {
            b[values + 1 + i].bytes = dd_primitive_workspace(s->forward);
        }
    }
    DD_TRY(dd_planner_assign(b, count, &t->slot_bytes));
    for (int v = 1; v <= values; v++) {
        t->kept[v] = b[v].offset;
    }
    for (int i = 0; i < t->nsteps; i++) {
        t->steps[i].saved = b[values + 1 + i].offset;
    }
fail:
    dd_free(b);
    return status;
}

static int new_buffer(dd_trainer *t, size_t bytes, int when)
{
    t->buffers[t->nbuffers] = (dd_buffer){.bytes = bytes, .first = when, .last = when};
    return t->nbuffers++;
}

/* Assigns buffers to the (at most two) parts of each value's gradient, from the last step to the first. */
static dd_status plan_backward(dd_trainer *t, size_t *bytes)
{
    dd_status status = DD_OK;
    int values = dd_graph_values(t->graph);
    int(*parts)[2] = dd_calloc((size_t)values + 1, sizeof *parts);
    t->buffers = dd_calloc((size_t)t->nsteps + 1, sizeof *t->buffers);
    if (!parts || !t->buffers) {
        DD_FAIL(DD_NOMEM, "out of memory for a trainer");
    }
    for (int v = 0; v <= values; v++) {
        parts[v][0] = parts[v][1] = -1;
    }
    for (int when = 0; when < t->nsteps; when++) {
        step *s = &t->steps[t->nsteps - 1 - when];
        const dd_op *op = s->op;
        int *d = parts[op->dst], given[2] = {-1, -1}; /* to src, to the residual */
        for (int k = 0; k < 2; k++) {
            s->d_dst[k] = d[k];
            if (d[k] >= 0) {
                t->buffers[d[k]].last = when;
            }
        }
        if (op->kind == DD_OP_BATCH_NORM) {
            bool residual = op->src[DD_SRC_ADD].value != DD_NONE;
            given[0] = d[1] >= 0 ? d[1] : residual ? new_buffer(t, value_bytes(t, op->dst), when) : d[0];
            given[1] = residual ? d[0] : -1;
        } else if (op->kind == DD_OP_GLOBAL_POOL || op->kind == DD_OP_MAX_POOL ||
                   (op->kind == DD_OP_CONV && (s->backward || s->winograd_backward))) {
            given[0] = new_buffer(t, value_bytes(t, op->src[DD_SRC].value), when);
        }
        s->d_src = given[0];
        for (int k = 0; k < 2; k++) {
            if (given[k] >= 0) {
                int *part = parts[op->src[k ? DD_SRC_ADD : DD_SRC].value];
                if (part[0] >= 0 && part[1] >= 0) {
                    DD_FAIL(DD_INVALID, "'%s': a value with more than two uses cannot be trained", op->name);
                }
                part[part[0] >= 0] = given[k];
            }
        }
    }
    DD_TRY(dd_planner_assign(t->buffers, t->nbuffers, bytes));
fail:
    dd_free(parts);
    return status;
}

/* A batch norm stands for itself and the convolution before it. */
static dd_status plan_evaluation(dd_trainer *t, size_t *bytes)
{
    dd_status status = DD_OK;
    int values = dd_graph_values(t->graph);
    dd_buffer *b = dd_calloc((size_t)values + 1, sizeof *b);
    if (!b) {
        DD_FAIL(DD_NOMEM, "out of memory for a trainer");
    }
    for (int i = 0; i < t->nsteps; i++) {
        const dd_op *op = t->steps[i].op;
        if (op->kind == DD_OP_CONV) {
            continue;
        }
        dd_value src = op->kind == DD_OP_BATCH_NORM ? t->steps[t->steps[i].convolution].op->src[DD_SRC].value
                                                    : op->src[DD_SRC].value;
        b[op->dst] = (dd_buffer){.bytes = value_bytes(t, op->dst), .first = i, .last = i};
        b[src].last = i;
        if (op->kind == DD_OP_BATCH_NORM) {
            b[op->src[DD_SRC_ADD].value].last = i; /* DD_NONE: a buffer of no bytes */
        }
    }
    DD_TRY(dd_planner_assign(b, values + 1, bytes));
    for (int v = 1; v <= values; v++) {
        t->evaluated[v] = b[v].offset;
    }
fail:
    dd_free(b);
    return status;
}

static dd_status plan_memory(dd_trainer *t)
{
    dd_status status = DD_OK;
    size_t gradients, activations, scratch = 0, folded = 0, packed = 0;
    dd_engine *engine = dd_weights_engine(t->table);
    for (int i = 0; i < t->nsteps; i++) {
        step *s = &t->steps[i];
        const dd_value_info *dst = value(t, s->op->dst);
        if (s->op->kind == DD_OP_CONV) {
            DD_TRY(create_convolution(t, s, &packed));
            if (s->winograd) {
                size_t wanted = dd_winograd_scratch(t->isa, t->dtype, value(t, s->op->src[DD_SRC].value)->c, t->threads,
                                                    0);
                size_t wanted_backward = dd_winograd_scratch(t->isa, t->dtype, dst->c, t->threads, 0);
                wanted = wanted_backward > wanted ? wanted_backward : wanted;
                scratch = wanted > scratch ? wanted : scratch;
            }
            size_t plain = parameter_floats(dd_weights_get(t->table, (int)s->op->weights[0].parameter)) * sizeof(float);
            size_t gradient = s->weights ? dd_layout_bytes(dd_primitive_weights(s->weights)) : 0;
            if (s->own_weights) {
                const dd_window window = window_of(t, s->op);
                size_t wanted = dd_weight_gradient_scratch(t->isa, t->dtype, &window, t->threads);
                scratch = wanted > scratch ? wanted : scratch;
            }
            folded = plain > folded ? plain : folded;
            folded = gradient > folded ? gradient : folded;
        } else if (s->op->kind == DD_OP_BATCH_NORM) {
            if ((int64_t)dst->n * dst->h * dst->w < 2) {
                DD_FAIL(DD_SHAPE, "'%s': batch norm needs more than one value a channel: use a larger batch or image",
                        s->op->name);
            }
            DD_TRY(create_evaluation(t, s, &packed));
            size_t wanted = dd_batch_norm_scratch((int64_t)dst->n * dst->h * dst->w, dst->c);
            scratch = wanted > scratch ? wanted : scratch;
        } else if (s->op->kind == DD_OP_MAX_POOL) {
            dd_conv_desc d = dd_convolution(t->graph, s->op, s->op->src[DD_SRC].value, t->dtype);
            DD_TRY(dd_max_pool_create(&s->forward, &s->backward, engine, &d));
            DD_TRY(dd_max_pool_create(&s->evaluate, NULL, engine, &d));
        } else if (s->op->kind != DD_OP_FROM_NCHW && s->op->kind != DD_OP_GLOBAL_POOL) {
            DD_FAIL(DD_INVALID, "op '%s' cannot be trained", s->op->name);
        }
        const dd_primitive *all[] = {s->forward,      s->backward,      s->weights,       s->evaluate,
                                     s->pack_forward, s->pack_backward, s->pack_evaluate, s->unpack};
        for (size_t k = 0; k < sizeof all / sizeof *all; k++) {
            larger(&scratch, all[k]);
        }
    }
    DD_TRY(plan_forward(t));
    DD_TRY(plan_backward(t, &gradients));
    DD_TRY(plan_evaluation(t, &activations));
    scratch = aligned(scratch);
    size_t total = (size_t)t->nslots * t->slot_bytes + gradients + activations + scratch + aligned(folded);
    t->packed = dd_alloc(packed + DD_ALIGN);
    t->arena = dd_alloc(total + DD_ALIGN);
    if (!t->packed || !t->arena) {
        DD_FAIL(DD_NOMEM, "out of memory for a trainer of %zu bytes: use a smaller batch or image", total);
    }
    t->bytes += packed + total;
    t->slots = t->arena;
    t->gradients = t->slots + (size_t)t->nslots * t->slot_bytes;
    t->activations = t->gradients + gradients;
    t->scratch = t->activations + activations;
    t->folded = (float *)(void *)(t->scratch + scratch);
fail:
    return status;
}

/* Binds fixed buffers once; those of a slot are bound in each run. */
static void bind(dd_trainer *t)
{
    for (int i = 0; i < t->nsteps; i++) {
        step *s = &t->steps[i];
        dd_primitive *all[] = {s->forward,      s->backward,      s->weights,       s->evaluate,
                               s->pack_forward, s->pack_backward, s->pack_evaluate, s->unpack};
        for (size_t k = 0; k < sizeof all / sizeof *all; k++) {
            if (all[k]) {
                dd_primitive_bind(all[k], DD_ARG_SCRATCH, t->scratch);
            }
        }
        char *d_dst = s->d_dst[0] >= 0 ? t->gradients + t->buffers[s->d_dst[0]].offset : NULL;
        char *d_src = s->d_src >= 0 ? t->gradients + t->buffers[s->d_src].offset : NULL;
        if (s->op->kind == DD_OP_CONV) {
            const size_t corner = corner_of(t, s->op);
            float *plain = t->parameter + s->weight + corner;
            if (s->forward) {
                dd_primitive_bind(s->forward, DD_ARG_WEIGHTS, t->packed + s->packed_forward);
                dd_primitive_bind(s->pack_forward, DD_ARG_SRC, plain);
                dd_primitive_bind(s->pack_forward, DD_ARG_DST, t->packed + s->packed_forward);
            }
            if (s->backward) {
                dd_primitive_bind(s->backward, DD_ARG_WEIGHTS, t->packed + s->packed_backward);
            }
            if (s->pack_backward) {
                dd_primitive_bind(s->pack_backward, DD_ARG_SRC, plain);
                dd_primitive_bind(s->pack_backward, DD_ARG_DST, t->packed + s->packed_backward);
            }
            if (s->weights) {
                dd_primitive_bind(s->weights, DD_ARG_DIFF_DST, d_dst);
                dd_primitive_bind(s->weights, DD_ARG_DIFF_WEIGHTS, t->folded);
                dd_primitive_bind(s->unpack, DD_ARG_SRC, t->folded);
                dd_primitive_bind(s->unpack, DD_ARG_DST, t->gradient + s->weight + corner);
            }
        }
        if (s->backward) {
            dd_primitive_bind(s->backward, DD_ARG_DIFF_DST, d_dst);
            dd_primitive_bind(s->backward, DD_ARG_DIFF_SRC, d_src);
        }
        if (s->op->kind == DD_OP_BATCH_NORM && s->evaluate) {
            dd_value src = t->steps[s->convolution].op->src[DD_SRC].value, add = s->op->src[DD_SRC_ADD].value;
            dd_primitive_bind(s->evaluate, DD_ARG_SRC, t->activations + t->evaluated[src]);
            dd_primitive_bind(s->evaluate, DD_ARG_WEIGHTS, t->packed + s->packed_evaluate);
            dd_primitive_bind(s->evaluate, DD_ARG_BIAS, t->packed + s->bias_evaluate);
            dd_primitive_bind(s->evaluate, DD_ARG_ADD, add ? t->activations + t->evaluated[add] : NULL);
            dd_primitive_bind(s->evaluate, DD_ARG_DST, t->activations + t->evaluated[s->op->dst]);
            dd_primitive_bind(s->pack_evaluate, DD_ARG_SRC, t->folded + corner_of(t, t->steps[s->convolution].op));
            dd_primitive_bind(s->pack_evaluate, DD_ARG_DST, t->packed + s->packed_evaluate);
        } else if (s->evaluate) {
            dd_primitive_bind(s->evaluate, DD_ARG_SRC, t->activations + t->evaluated[s->op->src[DD_SRC].value]);
            dd_primitive_bind(s->evaluate, DD_ARG_DST, t->activations + t->evaluated[s->op->dst]);
        }
    }
}

dd_status dd_trainer_create(dd_trainer **out, dd_weights *weights, dd_graph *graph, dd_dtype dtype, int threads,
                            int slots)
{
    dd_status status = DD_OK;
    dd_team team;
    int values = dd_graph_values(graph);
    dd_trainer *t = NULL;
    if ((status = dd_team_begin(&team, threads)) != DD_OK) {
        dd_graph_destroy(graph);
        dd_weights_destroy(weights);
        return status;
    }
    t = dd_calloc(1, sizeof *t);
    if (!t) {
        dd_graph_destroy(graph);
        dd_weights_destroy(weights);
        DD_FAIL(DD_NOMEM, "out of memory for a trainer");
    }
    t->graph = graph;
    t->table = weights;
    t->dtype = dtype;
    t->threads = threads;
    t->nslots = slots;
    t->isa = dd_onednn_isa();
    DD_TRY(dd_graph_status(graph));
    DD_TRY(dd_onednn_check_dtype(dtype));
    t->steps = dd_calloc((size_t)dd_graph_ops(graph) + 1, sizeof *t->steps);
    t->kept = dd_calloc((size_t)values + 1, sizeof *t->kept);
    t->evaluated = dd_calloc((size_t)values + 1, sizeof *t->evaluated);
    if (!t->steps || !t->kept || !t->evaluated) {
        DD_FAIL(DD_NOMEM, "out of memory for a trainer");
    }
    for (t->nsteps = 0; t->nsteps < dd_graph_ops(graph); t->nsteps++) {
        t->steps[t->nsteps].op = dd_graph_op(graph, t->nsteps);
    }
    DD_TRY(lay_out_parameters(t));
    DD_TRY(plan_memory(t));
    bind(t);
    *out = t;
    t = NULL;
fail:
    dd_team_end(&team);
    dd_trainer_destroy(t);
    return status;
}

void dd_trainer_destroy(dd_trainer *t)
{
    if (!t) {
        return;
    }
    for (int i = 0; t->steps && i < t->nsteps; i++) {
        step *s = &t->steps[i];
        dd_primitive *all[] = {s->forward,      s->backward,      s->weights,       s->evaluate,
                               s->pack_forward, s->pack_backward, s->pack_evaluate, s->unpack};
        for (size_t k = 0; k < sizeof all / sizeof *all; k++) {
            dd_primitive_destroy(all[k]);
        }
    }
    dd_free(t->steps);
    dd_free(t->offset);
    dd_free(t->running);
    dd_free(t->parameter);
    dd_free(t->packed);
    dd_free(t->arena);
    dd_free(t->kept);
    dd_free(t->evaluated);
    dd_free(t->buffers);
    dd_graph_destroy(t->graph);
    dd_weights_destroy(t->table);
    dd_free(t);
}
