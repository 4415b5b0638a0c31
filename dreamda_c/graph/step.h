/* The internals of a plan, shared by plan.c (order, memory, running) and operations.c (the kinds of operations). No
 * other file includes it.
 *
 *     const dd_operation *o = &dd_operations[step->op->kind];
 *     DD_TRY(o->create(plan, step));     // once: primitive, packs, scratch
 *     DD_TRY(o->run(plan, step, &call)); // at every run
 */
#ifndef DD_STEP_H
#define DD_STEP_H

#include "graph/plan.h"

typedef struct {
    const dd_op *op;         /* its result is that of the step; for a folded convolution, the batch norm */
    const dd_op *conv;       /* the convolution that a batch norm is folded into; NULL for every other kind */
    const dd_op *upsampling; /* folded into this convolution, whose source is its source; or NULL */
    dd_primitive *primitive; /* NULL: one of our kernels */
    dd_layout *winograd;     /* NULL: not such a convolution */
    dd_pack *weights;        /* NULL: none */
    dd_pack *bias;           /* NULL: none, or beside the folded weights */
    size_t scratch, padded;  /* padded: offset in scratch of a padded copy of the source; 0: no copy */
    double flops, seconds;
} dd_step;

struct dd_plan {
    dd_graph *graph;
    dd_dtype dtype;
    dd_isa isa;
    int threads;
    dd_step *steps;
    int nsteps, nconstant; /* the first nconstant steps depend only on constant inputs */
    char *arena;
    size_t arena_bytes;
    void *scratch;
    void **data; /* by value: into the arena, or the caller's array during a run */
    int *inputs, *outputs;
    int ninputs, noutputs;
    void **remembered; /* by value: the last bytes of a constant input */
    bool constants_known, bound;
};

/* The arrays of a step in this run. */
typedef struct {
    void *dst;
    const void *src;
    const dd_value_info *in, *out;
    const float *weights, *bias;
} dd_call;

/* A kind of operation: one row of dd_operations. */
typedef struct {
    const char *name;
    dd_status (*create)(dd_plan *p, dd_step *s);                               /* NULL: there is nothing to prepare */
    dd_status (*run)(const dd_plan *p, const dd_step *s, const dd_call *call);
} dd_operation;

extern const dd_operation dd_operations[DD_OP_COUNT];

/* Whether ops[index], a convolution, can take over the upsampling before it. */
bool dd_takes_upsampling(const dd_plan *p, int index);

static inline const dd_value_info *dd_step_value(const dd_plan *p, dd_value v)
{
    return dd_graph_value(p->graph, v);
}

/* The value in a slot of the step's sources, including the sources of operations that are folded into the step. */
static inline dd_value dd_step_source(const dd_step *s, int slot)
{
    const dd_op *first = s->upsampling ? s->upsampling : s->conv ? s->conv : s->op;
    return (slot == DD_SRC ? first : s->op)->src[slot].value;
}

/* DD_NONE gives NULL. */
static inline void *dd_step_data(const dd_plan *p, const dd_step *s, int slot)
{
    const dd_value v = dd_step_source(s, slot);
    return v == DD_NONE ? NULL : p->data[v];
}

static inline dd_dtype dd_step_dtype(const dd_plan *p, const dd_value_info *v)
{
    return v->dtype == DD_ACTIVATION ? p->dtype : (dd_dtype)v->dtype;
}

static inline int dd_tokens(const dd_value_info *v)
{
    return v->h * v->w;
}

#endif
