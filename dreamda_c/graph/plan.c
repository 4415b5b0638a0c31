/* Life of a plan: order the operations (constant ones first), create primitives and packs, plan lifetimes, allocate one
 * arena, bind every pointer; weights are bound at the first run, when they have been loaded. */
#include "graph/plan.h"

#include "base/arena.h"
#include "base/planner.h"
#include "base/team.h"
#include "kernels/kernels.h"

#include <math.h>
#include <string.h>
#include <time.h>

typedef struct {
    const dd_op *op;
    const dd_op *upsampling; /* folded into this convolution, whose source is its source; or NULL */
    dd_primitive *primitive; /* NULL: one of our kernels */
    dd_layout *winograd;     /* NULL: not such a convolution */
    dd_pack *weights, *bias; /* NULL: none */
    size_t scratch, padded;  /* padded: where in scratch such a source goes; 0: it is read where it is */
    double flops, seconds;
} dd_step;

struct dd_plan {
    dd_graph *graph;
    dd_dtype dtype;
    dd_isa isa;
    int threads;
    dd_step *steps;
    int nsteps, nconstant; /* the first nconstant steps depend on constant inputs alone */
    char *arena;
    size_t arena_bytes;
    void *scratch;
    void **data; /* by value: into the arena, or the caller's array during a run */
    int *inputs, *outputs;
    int ninputs, noutputs;
    void **remembered; /* by value: the last bytes of a constant input */
    bool constants_known, bound;
};

static size_t value_bytes(const dd_plan *p, const dd_value_info *v)
{
    size_t size = v->dtype == DD_ACTIVATION ? dd_dtype_size(p->dtype) : dd_dtype_size((dd_dtype)v->dtype);
    return (size_t)v->n * (size_t)v->h * (size_t)v->w * (size_t)v->c * size;
}

static const dd_value_info *value(const dd_plan *p, dd_value v)
{
    return dd_graph_value(p->graph, v);
}

static int tokens(const dd_value_info *v)
{
    return v->h * v->w;
}

static dd_value source(const dd_step *s, int index)
{
    return index == 0 && s->upsampling ? s->upsampling->src[0].value : s->op->src[index].value;
}

static dd_epilogue epilogue(const dd_plan *p, const dd_op *op)
{
    const bool relu_last = op->act == DD_ACT_RELU && op->src[2].value != DD_NONE;
    dd_epilogue e = {.bias = op->nbias > 0, .act = relu_last ? DD_ACT_NONE : op->act, .relu_last = relu_last};
    if (op->src[1].value) {
        e.multiply = true;
        e.multiply_ld = (size_t)value(p, op->src[1].value)->c;
    }
    if (op->src[2].value) {
        e.add = true;
        e.add_ld = (size_t)value(p, op->src[2].value)->c;
    }
    return e;
}

/* Winograd's convolution pays where its weights are small beside the work, or small at all: not on the coarse levels of Stable Diffusion's
   U-Net, whose weights are most of the model and would take 16 / 9 of the memory. Behind an upsampling it always does: a quarter of the
   multiplications, and no more weights. Depends on one image alone, so that rows keep their bits in any batch. */
static bool winograd_fits(const dd_plan *p, const dd_op *op, const dd_value_info *src, const dd_value_info *dst, bool up)
{
    const bool fine = src->h >= 24 && src->w >= 24, small = src->h >= 8 && src->w >= 8;
    if (!dd_winograd_takes(p->isa, op->kernel, op->stride, op->pad_before, op->pad_after, src->c, dst->c) ||
        (op->act != DD_ACT_NONE && op->act != DD_ACT_RELU) || op->src[1].value ||
        !(up || fine || (small && dd_winograd_pack_bytes(p->dtype, src->c, dst->c, DD_WINOGRAD_FORWARD) <= 2u << 20))) {
        return false;
    }
    return p->dtype == DD_F32 || p->isa < DD_ISA_AMX; /* tiles are faster still */
}

/* Whether ops[index], a convolution, can take over the upsampling before it. */
static bool takes_upsampling(const dd_plan *p, int index)
{
    const dd_op *up = index > 0 ? dd_graph_op(p->graph, index - 1) : NULL, *op = dd_graph_op(p->graph, index);
    if (!up || up->kind != DD_OP_UPSAMPLE || op->kind != DD_OP_CONV || op->src[0].value != up->dst) {
        return false;
    }
    const dd_value_info *from = value(p, up->src[0].value), *between = value(p, up->dst), *dst = value(p, op->dst);
    if (between->h != 2 * from->h || between->w != 2 * from->w || !winograd_fits(p, op, between, dst, true)) {
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

static dd_status create_conv(dd_plan *p, dd_step *s)
{
    dd_status status = DD_OK;
    const dd_op *op = s->op;
    const dd_value_info *src = value(p, source(s, 0)), *dst = value(p, op->dst);
    dd_conv_desc d = {.dtype = p->dtype, .n = src->n, .h = src->h, .w = src->w, .ic = src->c, .oc = dst->c,
                      .kernel = op->kernel, .stride = op->stride, .pad_before = op->pad_before, .pad_after = op->pad_after,
                      .epilogue = epilogue(p, op)};
    s->flops = 2.0 * dst->n * tokens(dst) * dst->c * src->c * op->kernel * op->kernel;
    if (s->upsampling || winograd_fits(p, op, src, dst, false)) {
        s->scratch = dd_winograd_scratch(p->isa, p->dtype, src->c, p->threads, 0);
        DD_TRY(dd_layout_winograd(&s->winograd, p->isa, p->dtype, src->c, dst->c, s->upsampling != NULL));
        return DD_OK;
    }
    DD_TRY(dd_conv_create(&s->primitive, dd_weights_engine(dd_graph_weights(p->graph)), &d));
fail:
    return status;
}

/* Long rows that are whole pages apart meet in the same sets of the caches: oneDNN's 1 x 1 convolutions before AVX-512 then take three times
   as long, where a copy of the rows with a line more each takes a twentieth. */
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
    const dd_value_info *src = value(p, op->src[0].value), *dst = value(p, op->dst);
    dd_matmul_desc d = {.dtype = p->dtype, .dst_dtype = dst->dtype == DD_ACTIVATION ? p->dtype : (dd_dtype)dst->dtype,
                        .m = (int64_t)src->n * tokens(src), .k = op->src[0].channels, .n = dst->c, .src_ld = (size_t)src->c,
                        .dst_ld = (size_t)dst->c, .epilogue = epilogue(p, op)};
    dd_engine *engine = dd_weights_engine(dd_graph_weights(p->graph));
    s->flops = 2.0 * (double)d.m * (double)d.k * (double)d.n;
    DD_TRY(dd_matmul_create(&s->primitive, engine, &d));
    if (strncmp(dd_primitive_implementation(s->primitive), "gemm", 4) == 0 && d.dst_dtype == d.dtype) {
        /* Before AVX-512 oneDNN's products are a GEMM whose sums depend on where a row stands: bits that a batch could
           change. A 1 x 1 convolution computes the same, every row alike, and faster. */
        dd_primitive_destroy(s->primitive);
        s->primitive = NULL;
        const bool pad = p->dtype == DD_F32 && rows_collide(src);
        dd_conv_desc c = {.dtype = d.dtype, .n = src->n, .h = src->h, .w = src->w, .ic = src->c + (pad ? PAD : 0), .oc = dst->c, .kernel = 1,
                          .stride = 1, .epilogue = d.epilogue};
        DD_TRY(dd_conv_create(&s->primitive, engine, &c));
        if (pad) {
            s->padded = (dd_primitive_scratch(s->primitive) / DD_ALIGN + 1) * DD_ALIGN;
            s->scratch = s->padded + (size_t)d.m * (size_t)(src->c + PAD) * sizeof(float);
        }
    }
fail:
    return status;
}

static dd_status create_step(dd_plan *p, dd_step *s)
{
    dd_status status = DD_OK;
    const dd_op *op = s->op;
    dd_weights *weights = dd_graph_weights(p->graph);
    const dd_value_info *src = value(p, op->src[0].value), *dst = value(p, op->dst);
    switch (op->kind) {
    case DD_OP_CONV:
        DD_TRY(create_conv(p, s));
        break;
    case DD_OP_LINEAR:
        DD_TRY(create_linear(p, s));
        break;
    case DD_OP_GROUP_NORM:
        s->scratch = dd_group_norm_scratch(dst->n, tokens(dst), dst->c);
        break;
    case DD_OP_ATTENTION: {
        const dd_value_info *k = value(p, op->src[1].value);
        int d = dst->c / op->heads;
        s->scratch = dd_attention_scratch(p->isa, p->dtype, dst->n, op->heads, tokens(dst), tokens(k), d, p->threads);
        s->flops = 4.0 * dst->n * tokens(dst) * tokens(k) * dst->c * (op->causal ? 0.5 : 1.0);
        break;
    }
    case DD_OP_ADD_NOISE:
        s->scratch = dd_add_noise_scratch(src->n, src->c, tokens(src));
        break;
    default:
        break;
    }
    if (s->primitive && !s->padded) {
        s->scratch = dd_primitive_scratch(s->primitive);
    }
    if (op->nweights) {
        const dd_layout *layout = s->primitive ? dd_primitive_weights(s->primitive) : s->winograd;
        DD_TRY(dd_weights_pack(weights, op->weights, op->nweights, layout, &s->weights));
    }
    if (op->nbias) {
        DD_TRY(dd_weights_pack(weights, op->bias, op->nbias, NULL, &s->bias));
    }
    return DD_OK;
fail:
    if (status == DD_ONEDNN) {
        char reason[400];
        size_t length = strlen(dd_message());
        memcpy(reason, dd_message(), length < sizeof reason ? length + 1 : sizeof reason);
        reason[sizeof reason - 1] = '\0';
        dd_fail(status, "op '%s': %s", op->name, reason);
    }
    return status;
}

/* Whether nobody needs the room of `v` after that step. */
static bool ends_with(const dd_plan *p, int index, const dd_buffer *buffers, dd_value v)
{
    return v && !value(p, v)->name && !value(p, v)->constant && buffers[v].last == index;
}

/* The source in whose room the result of a step is made, or DD_NONE: a norm's, a Winograd convolution's residual, or its source where that
   is at least twice as large. */
static dd_value replaces(const dd_plan *p, int index, const dd_buffer *buffers, const dd_value *home)
{
    const dd_step *s = &p->steps[index];
    const dd_op *op = s->op;
    const dd_value first = source(s, 0), residual = op->src[2].value;
    const dd_value_info *src = value(p, first), *dst = value(p, op->dst);
    if (dst->name) {
        return DD_NONE;
    }
    if (op->kind == DD_OP_GROUP_NORM) {
        return !op->src[1].value && ends_with(p, index, buffers, first) ? first : DD_NONE;
    }
    if (!s->winograd) {
        return DD_NONE;
    }
    if (ends_with(p, index, buffers, residual) && home[residual] != home[first]) {
        return residual;
    }
    return !s->upsampling && src->h % 2 == 0 && 2 * dst->c <= src->c && ends_with(p, index, buffers, first) ? first : DD_NONE;
}

/* Lifetimes from first and last use; inputs and outputs are the caller's memory and take no room. */
static dd_status plan_memory(dd_plan *p)
{
    dd_status status = DD_OK;
    int count = dd_graph_values(p->graph);
    size_t scratch = 0;
    dd_buffer *buffers = dd_calloc((size_t)count + 1, sizeof *buffers);
    dd_value *home = dd_calloc((size_t)count + 1, sizeof *home); /* by value: the one whose room it takes, itself as a rule */
    if (!buffers || !home) {
        DD_FAIL(DD_NOMEM, "out of memory for a plan");
    }
    for (int i = 0; i < p->nsteps; i++) {
        const dd_op *op = p->steps[i].op;
        dd_buffer *dst = &buffers[op->dst];
        dst->bytes = value(p, op->dst)->name ? 0 : value_bytes(p, value(p, op->dst));
        dst->first = dst->last = i;
        for (int j = 0; j < op->nsrc; j++) {
            dd_value v = source(&p->steps[i], j);
            if (v == DD_NONE) {
                continue;
            }
            /* What constant steps leave for the others has to survive every later run. */
            buffers[v].last = value(p, v)->constant && i >= p->nconstant ? p->nsteps : i;
        }
    }
    for (int v = 1; v <= count; v++) {
        home[v] = v;
    }
    for (int i = 0; i < p->nsteps; i++) {
        dd_step *s = &p->steps[i];
        const dd_op *op = s->op;
        const dd_value replaced = replaces(p, i, buffers, home);
        if (replaced) {
            home[op->dst] = home[replaced];
            buffers[home[op->dst]].last = buffers[op->dst].last;
            buffers[op->dst].bytes = 0;
            if (s->winograd && replaced == source(s, 0)) {
                const dd_value_info *src = value(p, replaced);
                s->scratch = dd_winograd_scratch(p->isa, p->dtype, src->c, p->threads, src->w);
            }
        }
        scratch = s->scratch > scratch ? s->scratch : scratch;
    }
    buffers[DD_NONE] = (dd_buffer){.bytes = scratch, .first = 0, .last = p->nsteps};
    DD_TRY(dd_planner_assign(buffers, count + 1, &p->arena_bytes));
    p->arena = dd_alloc(p->arena_bytes + DD_ALIGN);
    if (!p->arena) {
        DD_FAIL(DD_NOMEM, "out of memory for an arena of %zu bytes: use fewer rows or a smaller size", p->arena_bytes);
    }
    p->scratch = p->arena + buffers[DD_NONE].offset;
    for (int v = 1; v <= count; v++) {
        p->data[v] = value(p, v)->name ? NULL : p->arena + buffers[home[v]].offset;
    }
fail:
    dd_free(home);
    dd_free(buffers);
    return status;
}

static void bind_step(const dd_plan *p, const dd_step *s)
{
    const dd_op *op = s->op;
    const dd_view *src = &op->src[0];
    char *first = p->data[src->value];
    dd_primitive_bind(s->primitive, DD_ARG_SRC, s->padded ? (char *)p->scratch + s->padded : first + (size_t)src->offset * dd_dtype_size(p->dtype));
    dd_primitive_bind(s->primitive, DD_ARG_DST, p->data[op->dst]);
    dd_primitive_bind(s->primitive, DD_ARG_SCRATCH, p->scratch);
    dd_primitive_bind(s->primitive, DD_ARG_MULTIPLY, op->src[1].value ? p->data[op->src[1].value] : NULL);
    dd_primitive_bind(s->primitive, DD_ARG_ADD, op->src[2].value ? p->data[op->src[2].value] : NULL);
}

static dd_status list_externals(dd_plan *p)
{
    dd_status status = DD_OK;
    int count = dd_graph_values(p->graph);
    for (int v = 1; v <= count; v++) {
        const dd_value_info *i = value(p, v);
        if (!i->name) {
            continue;
        }
        if (i->output) {
            p->outputs[p->noutputs++] = v;
            continue;
        }
        p->inputs[p->ninputs++] = v;
        if (i->input_kind == DD_INPUT_CONSTANT && !(p->remembered[v] = dd_alloc(value_bytes(p, i)))) {
            DD_FAIL(DD_NOMEM, "out of memory for a plan");
        }
    }
fail:
    return status;
}

dd_status dd_plan_create(dd_plan **out, dd_graph *graph, dd_dtype dtype, int threads)
{
    dd_status status = DD_OK;
    dd_team team;
    int count = dd_graph_values(graph), nops = dd_graph_ops(graph);
    dd_plan *p = NULL;
    if ((status = dd_team_begin(&team, threads)) != DD_OK) {
        dd_graph_destroy(graph);
        return status;
    }
    p = dd_calloc(1, sizeof *p);
    if (!p) {
        dd_graph_destroy(graph);
        DD_FAIL(DD_NOMEM, "out of memory for a plan");
    }
    p->graph = graph;
    p->dtype = dtype;
    p->threads = threads;
    p->isa = dd_onednn_isa();
    if (dtype == DD_BF16 && p->isa < DD_ISA_AVX512_BF16) {
        DD_FAIL(DD_INVALID, "dtype bf16 needs a processor with AVX512-BF16 or AMX (this one: %s): use f32", dd_onednn_isa_name());
    }
    p->steps = dd_calloc((size_t)nops + 1, sizeof *p->steps);
    p->data = dd_calloc((size_t)count + 1, sizeof *p->data);
    p->remembered = dd_calloc((size_t)count + 1, sizeof *p->remembered);
    p->inputs = dd_calloc((size_t)count + 1, sizeof *p->inputs);
    p->outputs = dd_calloc((size_t)count + 1, sizeof *p->outputs);
    if (!p->steps || !p->data || !p->remembered || !p->inputs || !p->outputs) {
        DD_FAIL(DD_NOMEM, "out of memory for a plan");
    }
    for (int constant = 1; constant >= 0; constant--) {
        for (int i = 0; i < nops; i++) {
            const dd_op *op = dd_graph_op(graph, i);
            if (value(p, op->dst)->constant != constant || (i + 1 < nops && takes_upsampling(p, i + 1))) {
                continue;
            }
            p->steps[p->nsteps++] = (dd_step){.op = op, .upsampling = takes_upsampling(p, i) ? dd_graph_op(graph, i - 1) : NULL};
        }
        p->nconstant = constant ? p->nsteps : p->nconstant;
    }
    for (int i = 0; i < p->nsteps; i++) {
        DD_TRY(create_step(p, &p->steps[i]));
    }
    DD_TRY(plan_memory(p));
    DD_TRY(list_externals(p));
    for (int i = 0; i < p->nsteps; i++) {
        if (p->steps[i].primitive) {
            bind_step(p, &p->steps[i]);
        }
    }
    *out = p;
    p = NULL;
fail:
    dd_team_end(&team);
    dd_plan_destroy(p);
    return status;
}

void dd_plan_destroy(dd_plan *p)
{
    if (!p) {
        return;
    }
    for (int i = 0; p->steps && i < p->nsteps; i++) {
        dd_primitive_destroy(p->steps[i].primitive);
        dd_layout_destroy(p->steps[i].winograd);
    }
    for (int v = 1; p->remembered && v <= dd_graph_values(p->graph); v++) {
        dd_free(p->remembered[v]);
    }
    dd_graph_destroy(p->graph);
    dd_free(p->steps);
    dd_free(p->data);
    dd_free(p->remembered);
    dd_free(p->inputs);
    dd_free(p->outputs);
    dd_free(p->arena);
    dd_free(p);
}

int dd_plan_missing(const dd_plan *p, int *parameters, int capacity)
{
    const dd_weights *w = dd_graph_weights(p->graph);
    int missing = 0, total = dd_weights_count(w);
    for (int id = 0; id < total; id++) {
        if (dd_weights_pending(w, id)) {
            if (missing < capacity) {
                parameters[missing] = id;
            }
            missing++;
        }
    }
    return missing;
}

int dd_plan_inputs(const dd_plan *p) { return p->ninputs; }
int dd_plan_outputs(const dd_plan *p) { return p->noutputs; }
const dd_value_info *dd_plan_input(const dd_plan *p, int index) { return value(p, p->inputs[index]); }
const dd_value_info *dd_plan_output(const dd_plan *p, int index) { return value(p, p->outputs[index]); }
size_t dd_plan_arena_bytes(const dd_plan *p) { return p->arena_bytes; }
int dd_plan_profile_rows(const dd_plan *p) { return p->nsteps; }

static dd_status run_add_noise(const dd_plan *p, const dd_op *op, void *dst)
{
    const dd_value_info *src = value(p, op->src[0].value);
    const float *scale = p->data[op->src[1].value], *given = p->data[op->src[2].value];
    const dd_noise_key *keys = p->data[op->src[3].value];
    if (!scale) {
        memcpy(dst, p->data[op->src[0].value], value_bytes(p, src));
        return DD_OK;
    }
    if (!given && !keys) {
        return dd_fail(DD_INVALID, "noise_scale is given, but neither noise nor noise_key");
    }
    _Static_assert(sizeof(dd_noise_key) == 8 * sizeof(uint32_t), "a key is eight words");
    dd_add_noise(p->dtype, dst, p->data[op->src[0].value], scale, given, keys, src->n, src->c, tokens(src), p->scratch);
    return DD_OK;
}

static void run_attention(const dd_plan *p, const dd_op *op, void *dst)
{
    size_t ld[3], size = dd_dtype_size(p->dtype);
    const char *base[3];
    const dd_value_info *q = value(p, op->src[0].value), *k = value(p, op->src[1].value);
    int d = value(p, op->dst)->c / op->heads;
    for (int i = 0; i < 3; i++) {
        ld[i] = (size_t)value(p, op->src[i].value)->c;
        base[i] = (const char *)p->data[op->src[i].value] + (size_t)op->src[i].offset * size;
    }
    dd_attention(p->isa, p->dtype, dst, (size_t)value(p, op->dst)->c, base[0], ld[0], base[1], ld[1], base[2], ld[2], q->n,
                 op->heads, tokens(q), tokens(k), d, 1.f / sqrtf((float)d), op->causal, p->scratch);
}

static dd_status run_step(const dd_plan *p, const dd_step *s)
{
    const dd_op *op = s->op;
    void *dst = p->data[op->dst];
    const void *src = p->data[source(s, 0)];
    const dd_value_info *in = value(p, source(s, 0)), *out = value(p, op->dst);
    const float *weights = s->weights ? dd_pack_data(s->weights) : NULL, *bias = s->bias ? dd_pack_data(s->bias) : NULL;
    if (!dst) {
        return DD_OK; /* an output that is not wanted */
    }
    switch (op->kind) {
    case DD_OP_CONV:
        if (s->winograd) {
            dd_winograd(p->isa, p->dtype, dst, src, weights, bias, op->src[2].value ? p->data[op->src[2].value] : NULL,
                        op->act == DD_ACT_RELU, s->upsampling != NULL, in->n, in->h, in->w, in->c, out->c, p->scratch);
            break;
        }
        return dd_primitive_run(s->primitive);
    case DD_OP_LINEAR:
        if (s->padded) {
            copy_padded((float *)(void *)((char *)p->scratch + s->padded), src, (int64_t)in->n * tokens(in), (size_t)in->c);
        }
        return dd_primitive_run(s->primitive);
    case DD_OP_FROM_NCHW:
        dd_from_nchw(p->dtype, dst, src, in->n, in->c, tokens(in));
        break;
    case DD_OP_TO_NCHW:
        dd_to_nchw(p->dtype, dst, src, in->n, in->c, tokens(in));
        break;
    case DD_OP_CONVERT:
        dd_convert(out->dtype == DD_ACTIVATION ? p->dtype : (dd_dtype)out->dtype, dst,
                   in->dtype == DD_ACTIVATION ? p->dtype : (dd_dtype)in->dtype, src,
                   (size_t)in->n * (size_t)tokens(in) * (size_t)in->c);
        break;
    case DD_OP_TIMESTEP:
        dd_timestep_embedding(p->dtype, dst, src, out->n, out->c, op->flip_sin_to_cos, op->freq_shift);
        break;
    case DD_OP_EMBED:
        dd_embed(p->dtype, dst, src, weights, bias, out->n, tokens(out), out->c);
        break;
    case DD_OP_UPSAMPLE:
        dd_upsample_nearest(p->dtype, dst, src, in->n, in->h, in->w, in->c, out->h, out->w);
        break;
    case DD_OP_GROUP_NORM: {
        const dd_value_info *row_bias = op->src[2].value ? value(p, op->src[2].value) : NULL;
        dd_group_norm(p->isa, p->dtype, dst, src, in->c, op->src[1].value ? p->data[op->src[1].value] : NULL, out->c - in->c,
                      row_bias ? p->data[op->src[2].value] : NULL, row_bias ? (size_t)row_bias->c : 0, weights, bias, in->n,
                      tokens(in), op->groups, op->eps, op->silu, p->scratch);
        break;
    }
    case DD_OP_LAYER_NORM:
        dd_layer_norm(p->isa, p->dtype, dst, src, weights, bias, in->n * tokens(in), in->c, op->eps);
        break;
    case DD_OP_ATTENTION:
        run_attention(p, op, dst);
        break;
    case DD_OP_ADD_NOISE:
        return run_add_noise(p, op, dst);
    case DD_OP_BATCH_NORM:
    case DD_OP_MAX_POOL:
    case DD_OP_GLOBAL_POOL:
        return dd_fail(DD_INVALID, "op '%s' is a trainer's", op->name);
    case DD_OP_COUNT:
        break;
    }
    return DD_OK;
}

/* Token ids index a table: the one input whose values could reach outside of memory. */
static dd_status check_tokens(const dd_plan *p)
{
    for (int i = 0; i < p->nsteps; i++) {
        const dd_op *op = p->steps[i].op;
        if (op->kind != DD_OP_EMBED) {
            continue;
        }
        const dd_value_info *in = value(p, op->src[0].value);
        const int32_t *ids = p->data[op->src[0].value];
        for (int64_t j = 0; j < (int64_t)in->n * in->c; j++) {
            if (ids[j] < 0 || ids[j] >= op->weights[0].rows) {
                return dd_fail(DD_INVALID, "token id %d is outside of the vocabulary (0 to %lld)", ids[j],
                               (long long)op->weights[0].rows - 1);
            }
        }
    }
    return DD_OK;
}

static bool constants_changed(dd_plan *p)
{
    bool changed = !p->constants_known;
    for (int i = 0; i < p->ninputs; i++) {
        int v = p->inputs[i];
        if (p->remembered[v]) {
            size_t bytes = value_bytes(p, value(p, v));
            if (changed || memcmp(p->remembered[v], p->data[v], bytes) != 0) {
                memcpy(p->remembered[v], p->data[v], bytes);
                changed = true;
            }
        }
    }
    return changed;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

dd_status dd_plan_bind(dd_plan *p)
{
    if (p->bound) {
        return DD_OK;
    }
    for (int i = 0; i < p->nsteps; i++) {
        dd_step *s = &p->steps[i];
        if ((s->weights && dd_pack_pending(s->weights)) || (s->bias && dd_pack_pending(s->bias))) {
            return dd_fail(DD_INVALID, "op '%s': its weights are not loaded yet", s->op->name);
        }
        if (s->primitive) {
            dd_primitive_bind(s->primitive, DD_ARG_WEIGHTS, (void *)(uintptr_t)dd_pack_data(s->weights));
            dd_primitive_bind(s->primitive, DD_ARG_BIAS, s->bias ? (void *)(uintptr_t)dd_pack_data(s->bias) : NULL);
        }
    }
    p->bound = true;
    return DD_OK;
}

dd_status dd_plan_run(dd_plan *p, const void *const *inputs, void *const *outputs)
{
    dd_status status = DD_OK;
    dd_team team;
    if ((status = dd_team_begin(&team, p->threads)) != DD_OK) {
        return status;
    }
    for (int i = 0; i < p->ninputs; i++) {
        p->data[p->inputs[i]] = (void *)(uintptr_t)inputs[i];
        if (!inputs[i] && value(p, p->inputs[i])->input_kind != DD_INPUT_OPTIONAL) {
            DD_FAIL(DD_INVALID, "input '%s' is missing", value(p, p->inputs[i])->name);
        }
    }
    for (int i = 0; i < p->noutputs; i++) {
        p->data[p->outputs[i]] = outputs[i];
    }
    DD_TRY(dd_plan_bind(p));
    DD_TRY(check_tokens(p));
    bool changed = p->nconstant && constants_changed(p);
    p->constants_known = false; /* until the run has succeeded */
    double before = now();
    for (int i = 0; i < p->nsteps; i++) {
        dd_step *s = &p->steps[i];
        if (i < p->nconstant && !changed) {
            s->seconds = 0;
            continue;
        }
        DD_TRY(run_step(p, s));
        double after = now();
        s->seconds = after - before;
        before = after;
    }
    p->constants_known = true;
fail:
    dd_team_end(&team);
    return status;
}

dd_profile_row dd_plan_profile(const dd_plan *p, int index)
{
    const dd_step *s = &p->steps[index];
    static const char *const isa_names[] = {
        [DD_ISA_AVX2] = "dreamda:avx2", [DD_ISA_AVX512] = "dreamda:avx512", [DD_ISA_AVX512_BF16] = "dreamda:avx512_bf16",
        [DD_ISA_AMX] = "dreamda:amx"};
    static const char *const winograd_names[] = {
        [DD_ISA_AVX2] = "dreamda:winograd:avx2", [DD_ISA_AVX512] = "dreamda:winograd:avx512",
        [DD_ISA_AVX512_BF16] = "dreamda:winograd:avx512_bf16", [DD_ISA_AMX] = "dreamda:winograd:amx"};
    return (dd_profile_row){.name = s->op->name, .op = dd_op_kind_name(s->op->kind),
                            .implementation = s->primitive  ? dd_primitive_implementation(s->primitive)
                                              : s->winograd ? winograd_names[p->isa]
                                                            : isa_names[p->isa],
                            .seconds = s->seconds, .flops = s->flops};
}
