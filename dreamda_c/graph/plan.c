/* The stages of a plan: order the operations (constant ones first), create primitives and packs, plan lifetimes,
 * allocate one arena, bind every pointer. Weights are bound at the first run, when they have been loaded. */
#include "graph/plan.h"

#include "base/arena.h"
#include "base/planner.h"
#include "base/team.h"
#include "graph/step.h"
#include "kernels/kernels.h"

#include <omp.h>
#include <string.h>

static const dd_value_info *value(const dd_plan *p, dd_value v)
{
    return dd_graph_value(p->graph, v);
}

/* Finds the convolution into which each batch norm is folded: folded[v] is the convolution that
   computes v, if the only reader of v is a batch norm; else NULL. */
static dd_status find_folded(const dd_plan *p, const dd_op **folded)
{
    dd_status status = DD_OK;
    const int nops = dd_graph_ops(p->graph);
    int *readers = dd_calloc((size_t)dd_graph_values(p->graph) + 1, sizeof *readers);
    if (!readers) {
        DD_FAIL(DD_NOMEM, "out of memory for a plan");
    }
    for (int i = 0; i < nops; i++) {
        const dd_op *op = dd_graph_op(p->graph, i);
        for (int j = 0; j < op->nsrc; j++) {
            readers[op->src[j].value]++;
        }
    }
    for (int i = 0; i < nops; i++) {
        const dd_op *op = dd_graph_op(p->graph, i);
        const dd_value src = op->src[DD_SRC].value;
        for (int j = i - 1; op->kind == DD_OP_BATCH_NORM && !folded[src] && j >= 0; j--) {
            const dd_op *conv = dd_graph_op(p->graph, j);
            if (conv->dst == src && conv->kind == DD_OP_CONV && !conv->nbias && conv->act == DD_ACT_NONE &&
                !conv->src[DD_SRC_ADD].value && readers[src] == 1 && !value(p, src)->name) {
                folded[src] = conv;
            }
        }
        if (op->kind == DD_OP_BATCH_NORM && !folded[src]) {
            DD_FAIL(DD_INVALID, "'%s' does not follow a convolution without bias of its own", op->name);
        }
    }
fail:
    dd_free(readers);
    return status;
}

/* Lists the steps, constant ones first. An upsampling or a convolution that is folded into another step has no step of
   its own. */
static dd_status order_steps(dd_plan *p)
{
    dd_status status = DD_OK;
    const int nops = dd_graph_ops(p->graph);
    const dd_op **folded = dd_calloc((size_t)dd_graph_values(p->graph) + 1, sizeof *folded);
    if (!folded) {
        DD_FAIL(DD_NOMEM, "out of memory for a plan");
    }
    DD_TRY(find_folded(p, folded));
    for (int constant = 1; constant >= 0; constant--) {
        for (int i = 0; i < nops; i++) {
            const dd_op *op = dd_graph_op(p->graph, i);
            if (value(p, op->dst)->constant != constant || folded[op->dst] ||
                (i + 1 < nops && dd_takes_upsampling(p, i + 1))) {
                continue;
            }
            p->steps[p->nsteps++] = (dd_step){
                .op = op,
                .conv = op->kind == DD_OP_BATCH_NORM ? folded[op->src[DD_SRC].value] : NULL,
                .upsampling = dd_takes_upsampling(p, i) ? dd_graph_op(p->graph, i - 1) : NULL};
        }
        p->nconstant = constant ? p->nsteps : p->nconstant;
    }
fail:
    dd_free(folded);
    return status;
}

static dd_status create_step(dd_plan *p, dd_step *s)
{
    const dd_operation *operation = &dd_operations[s->op->kind];
    dd_status status = operation->create ? operation->create(p, s) : DD_OK;
    if (status == DD_ONEDNN) {
        char reason[400];
        size_t length = strlen(dd_message());
        memcpy(reason, dd_message(), length < sizeof reason ? length + 1 : sizeof reason);
        reason[sizeof reason - 1] = '\0';
        dd_fail(status, "op '%s': %s", s->op->name, reason);
    }
    if (s->primitive && !s->padded) {
        s->scratch = dd_primitive_scratch(s->primitive);
    }
    return status;
}

/* Whether the buffer of `v` is unused after that step. */
static bool ends_with(const dd_plan *p, int index, const dd_buffer *buffers, dd_value v)
{
    return v && !value(p, v)->name && !value(p, v)->constant && buffers[v].last == index;
}

/* The source whose buffer the result of a step takes over, or DD_NONE: the source of a norm, the residual of a Winograd
   convolution, or its source if that is at least twice as large. */
static dd_value replaces(const dd_plan *p, int index, const dd_buffer *buffers, const dd_value *home)
{
    const dd_step *s = &p->steps[index];
    const dd_op *op = s->op;
    const dd_value first = dd_step_source(s, DD_SRC), residual = op->src[DD_SRC_ADD].value;
    const dd_value_info *src = value(p, first), *dst = value(p, op->dst);
    if (dst->name) {
        return DD_NONE;
    }
    if (op->kind == DD_OP_GROUP_NORM) {
        return !op->src[DD_SRC_BESIDE].value && ends_with(p, index, buffers, first) ? first : DD_NONE;
    }
    if (!s->winograd) {
        return DD_NONE;
    }
    if (ends_with(p, index, buffers, residual) && home[residual] != home[first]) {
        return residual;
    }
    return !s->upsampling && src->h % 2 == 0 && 2 * dst->c <= src->c && ends_with(p, index, buffers, first) ? first
                                                                                                            : DD_NONE;
}

/* Lifetimes from first and last use; inputs and outputs are the caller's memory. */
static dd_status plan_memory(dd_plan *p)
{
    dd_status status = DD_OK;
    int count = dd_graph_values(p->graph);
    size_t scratch = 0;
    dd_buffer *buffers = dd_calloc((size_t)count + 1, sizeof *buffers);
    dd_value *home = dd_calloc((size_t)count + 1,
                               sizeof *home); /* by value: the value whose buffer it uses, usually itself */
    if (!buffers || !home) {
        DD_FAIL(DD_NOMEM, "out of memory for a plan");
    }
    for (int i = 0; i < p->nsteps; i++) {
        const dd_op *op = p->steps[i].op;
        dd_buffer *dst = &buffers[op->dst];
        dst->bytes = value(p, op->dst)->name ? 0 : dd_value_bytes(value(p, op->dst), p->dtype);
        dst->first = dst->last = i;
        for (int j = 0; j < op->nsrc; j++) {
            dd_value v = dd_step_source(&p->steps[i], j);
            if (v == DD_NONE) {
                continue;
            }
            /* Results of constant steps that other steps read must survive every later run. */
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
            if (s->winograd && replaced == dd_step_source(s, DD_SRC)) {
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
    char *src = dd_step_data(p, s, DD_SRC);
    const size_t offset = (size_t)s->op->src[DD_SRC].offset * dd_dtype_size(p->dtype);
    dd_primitive_bind(s->primitive, DD_ARG_SRC, s->padded ? (char *)p->scratch + s->padded : src + offset);
    dd_primitive_bind(s->primitive, DD_ARG_DST, p->data[s->op->dst]);
    dd_primitive_bind(s->primitive, DD_ARG_SCRATCH, p->scratch);
    dd_primitive_bind(s->primitive, DD_ARG_MULTIPLY, dd_step_data(p, s, DD_SRC_MULTIPLY));
    dd_primitive_bind(s->primitive, DD_ARG_ADD, dd_step_data(p, s, DD_SRC_ADD));
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
        if (i->input_kind == DD_INPUT_CONSTANT && !(p->remembered[v] = dd_alloc(dd_value_bytes(i, p->dtype)))) {
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
    DD_TRY(dd_onednn_check_dtype(dtype));
    p->steps = dd_calloc((size_t)nops + 1, sizeof *p->steps);
    p->data = dd_calloc((size_t)count + 1, sizeof *p->data);
    p->remembered = dd_calloc((size_t)count + 1, sizeof *p->remembered);
    p->inputs = dd_calloc((size_t)count + 1, sizeof *p->inputs);
    p->outputs = dd_calloc((size_t)count + 1, sizeof *p->outputs);
    if (!p->steps || !p->data || !p->remembered || !p->inputs || !p->outputs) {
        DD_FAIL(DD_NOMEM, "out of memory for a plan");
    }
    DD_TRY(order_steps(p));
    for (int i = 0; i < p->nsteps; i++) {
        DD_TRY(create_step(p, &p->steps[i]));
    }
    dd_weights_trim(dd_graph_weights(graph)); /* after the packs that this plan shares with earlier ones are found */
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
        dd_pack_release(p->steps[i].weights);
        dd_pack_release(p->steps[i].bias);
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

static const float *bias_of(const dd_step *s)
{
    return s->bias ? dd_pack_data(s->bias) : s->weights ? dd_pack_bias(s->weights) : NULL;
}

static dd_status run_step(const dd_plan *p, const dd_step *s)
{
    const dd_call call = {.dst = p->data[s->op->dst],
                          .src = dd_step_data(p, s, DD_SRC),
                          .in = value(p, dd_step_source(s, DD_SRC)),
                          .out = value(p, s->op->dst),
                          .weights = s->weights ? dd_pack_data(s->weights) : NULL,
                          .bias = bias_of(s)};
    return call.dst ? dd_operations[s->op->kind].run(p, s, &call) : DD_OK; /* NULL: an output that is not wanted */
}

static bool constants_changed(dd_plan *p)
{
    bool changed = !p->constants_known;
    for (int i = 0; i < p->ninputs; i++) {
        int v = p->inputs[i];
        if (p->remembered[v]) {
            size_t bytes = dd_value_bytes(value(p, v), p->dtype);
            if (changed || memcmp(p->remembered[v], p->data[v], bytes) != 0) {
                memcpy(p->remembered[v], p->data[v], bytes);
                changed = true;
            }
        }
    }
    return changed;
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
        if (s->primitive && s->weights) {
            dd_primitive_bind(s->primitive, DD_ARG_WEIGHTS, (void *)(uintptr_t)dd_pack_data(s->weights));
            dd_primitive_bind(s->primitive, DD_ARG_BIAS, (void *)(uintptr_t)bias_of(s));
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
    bool changed = p->nconstant && constants_changed(p);
    p->constants_known = false; /* until the run has succeeded */
    double before = omp_get_wtime();
    for (int i = 0; i < p->nsteps; i++) {
        dd_step *s = &p->steps[i];
        if (i < p->nconstant && !changed) {
            s->seconds = 0;
            continue;
        }
        DD_TRY(run_step(p, s));
        double after = omp_get_wtime();
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
    static const char *const isa_names[] = {[DD_ISA_AVX2] = "dreamda:avx2",
                                            [DD_ISA_AVX512] = "dreamda:avx512",
                                            [DD_ISA_AVX512_BF16] = "dreamda:avx512_bf16",
                                            [DD_ISA_AMX] = "dreamda:amx"};
    static const char *const winograd_names[] = {
        [DD_ISA_AVX2] = "dreamda:winograd:avx2", [DD_ISA_AVX512] = "dreamda:winograd:avx512",
        [DD_ISA_AVX512_BF16] = "dreamda:winograd:avx512_bf16", [DD_ISA_AMX] = "dreamda:winograd:amx"};
    return (dd_profile_row){.name = s->op->name, .op = dd_operations[s->op->kind].name,
                            .implementation = s->primitive  ? dd_primitive_implementation(s->primitive)
                                              : s->winograd ? winograd_names[p->isa]
                                                            : isa_names[p->isa],
                            .seconds = s->seconds, .flops = s->flops};
}
