/* A trainer's state: training/plan.c lays it out once, and trainer.c runs it. No other file includes this one.
 *
 *     const dd_value_info *out = value(t, t->steps[0].op->dst);
 *     dd_conv_desc d = dd_trainer_conv(t, t->steps[1].op);
 */
#ifndef DD_TRAINER_PLAN_H
#define DD_TRAINER_PLAN_H

#include "training/trainer.h"

#include "base/arena.h"
#include "base/planner.h"
#include "kernels/train.h"

typedef enum {
    PHASE_FORWARD,
    PHASE_BACKWARD,
    PHASE_WEIGHTS,
    PHASE_PACK,
    PHASE_UNPACK,
    PHASE_EVALUATE,
    PHASE_FOLD,
    PHASES
} phase;

/* Indices below are into t->buffers or offsets into a block; -1: none. */
typedef struct {
    const dd_op *op;
    dd_primitive *forward, *backward, *weights, *evaluate; /* convolutions and pools; backward NULL: unused */
    dd_primitive *pack_forward, *pack_backward, *pack_evaluate, *unpack;
    size_t packed_forward, packed_backward, packed_evaluate, bias_evaluate; /* in t->packed */
    size_t weight;                                                          /* in parameters and gradients */
    size_t gamma, beta, mean, variance; /* of a batch norm; the latter two in running statistics */
    size_t saved;                       /* in a slot: statistics, or a pool's workspace */
    bool winograd, winograd_backward, winograd_evaluate,
        own_weights; /* ours in place of `forward`, `backward`, `evaluate`, `weights` */
    int convolution; /* of a batch norm: the step that feeds it */
    int d_dst[2], d_src;                                                    /* gradient buffers */
    double seconds[PHASES];
    int calls[PHASES];
} step;

struct dd_trainer {
    dd_weights *table;
    dd_graph *graph;
    dd_dtype dtype;
    dd_isa isa;
    int threads, nslots, nsteps;
    step *steps;
    size_t *offset;                  /* by parameter: into parameters, or into running statistics */
    bool *running;                   /* by parameter */
    size_t parameters, decayed, statistics; /* floats; the first `decayed` parameters are those that decay */
    float *parameter, *gradient, *moment, *statistic;
    char *packed, *arena, *slots, *gradients, *activations, *scratch;
    float *folded;                   /* plain or packed f32 weights of one convolution, in the arena */
    size_t *kept, slot_bytes;        /* by value: in a slot */
    size_t *evaluated;               /* by value: in activations */
    dd_buffer *buffers;              /* gradients of activations */
    int nbuffers;
    size_t bytes;
    bool alive[DD_MAX_SLOTS];
    bool packed_fresh,
        folded_fresh; /* up to date with the values: packed weights of forward and backward, of evaluation */
};

static inline const dd_value_info *value(const dd_trainer *t, dd_value v)
{
    return dd_graph_value(t->graph, v);
}

static inline size_t value_bytes(const dd_trainer *t, dd_value v)
{
    return dd_value_bytes(value(t, v), t->dtype);
}

static inline size_t aligned(size_t bytes)
{
    return (bytes + DD_ALIGN - 1) / DD_ALIGN * DD_ALIGN;
}

/* The convolution of an op, its window cropped to the places that see more than the border. */
dd_conv_desc dd_trainer_conv(const dd_trainer *t, const dd_op *op);

/* The same with the whole window, for dd_weight_gradient, which itself leaves the border out. */
static inline dd_window window_of(const dd_trainer *t, const dd_op *op)
{
    const dd_value_info *in = value(t, op->src[DD_SRC].value), *out = value(t, op->dst);
    return (dd_window){.n = in->n,
                       .h = in->h,
                       .w = in->w,
                       .ic = in->c,
                       .oh = out->h,
                       .ow = out->w,
                       .oc = out->c,
                       .kernel = op->kernel,
                       .stride = op->stride,
                       .pad = op->pad_before};
}

#endif
