/* The work of a trainer: packing, forward, backward, evaluation. training/plan.c creates the trainer. */
#include "training/plan.h"

#include "base/team.h"
#include "kernels/kernels.h"
#include "kernels/train.h"

#include <math.h>
#include <omp.h>
#include <string.h>

static double add_time(step *s, phase p, double since)
{
    double t = omp_get_wtime();
    s->seconds[p] += t - since;
    s->calls[p]++;
    return t;
}

static char *in_slot(const dd_trainer *t, int slot, size_t offset)
{
    return t->slots + (size_t)slot * t->slot_bytes + offset;
}

static dd_batch_norm norm_of(const dd_trainer *t, const step *s, int slot)
{
    const dd_value_info *dst = value(t, s->op->dst);
    char *saved = in_slot(t, slot, s->saved);
    return (dd_batch_norm){.gamma = t->parameter + s->gamma,
                           .beta = t->parameter + s->beta,
                           .mean = (float *)(void *)saved,
                           .variance = (float *)(void *)(saved + aligned((size_t)dst->c * sizeof(float))),
                           .rows = (int64_t)dst->n * dst->h * dst->w,
                           .c = dst->c,
                           .eps = s->op->eps,
                           .relu = s->op->act == DD_ACT_RELU};
}

/* Packs the weights of forward and backward, unless they are up to date with the parameters. */
static dd_status pack_weights(dd_trainer *t)
{
    dd_status status = DD_OK;
    double since = omp_get_wtime();
    if (t->packed_fresh) {
        return DD_OK;
    }
    for (int i = 0; i < t->nsteps; i++) {
        step *s = &t->steps[i];
        if (s->op->kind != DD_OP_CONV) {
            continue;
        }
        const dd_conv_desc d = dd_trainer_conv(t, s->op);
        const float *plain = t->parameter + s->weight;
        if (s->winograd) {
            dd_winograd_pack(t->isa, t->dtype, t->packed + s->packed_forward, plain, d.ic, d.oc, DD_WINOGRAD_FORWARD);
        } else {
            DD_TRY(dd_primitive_run(s->pack_forward));
        }
        if (s->winograd_backward) {
            dd_winograd_pack(t->isa, t->dtype, t->packed + s->packed_backward, plain, d.ic, d.oc, DD_WINOGRAD_BACKWARD);
        } else if (s->pack_backward) {
            DD_TRY(dd_primitive_run(s->pack_backward));
        }
        since = add_time(s, PHASE_PACK, since);
    }
    t->packed_fresh = true;
fail:
    return status;
}

static dd_status forward_step(dd_trainer *t, step *s, int slot, const float *images, float *features)
{
    const dd_op *op = s->op;
    const dd_value_info *in = value(t, op->src[DD_SRC].value);
    char *src = in_slot(t, slot, t->kept[op->src[DD_SRC].value]), *dst = in_slot(t, slot, t->kept[op->dst]);
    switch (op->kind) {
    case DD_OP_FROM_NCHW:
        dd_from_nchw(t->dtype, dst, images, in->n, in->c, in->h * in->w);
        return DD_OK;
    case DD_OP_BATCH_NORM: {
        dd_batch_norm n = norm_of(t, s, slot);
        dd_value add = op->src[DD_SRC_ADD].value;
        dd_batch_norm_forward(t->isa, t->dtype, &n, dst, src, add ? in_slot(t, slot, t->kept[add]) : NULL, t->scratch);
        dd_running_statistics(t->statistic + s->mean, t->statistic + s->variance, &n, 0.1f);
        return DD_OK;
    }
    case DD_OP_GLOBAL_POOL:
        dd_global_pool(t->dtype, features, src, in->n, in->h * in->w, in->c);
        return DD_OK;
    default:
        if (s->winograd) {
            dd_winograd(t->isa, t->dtype,
                        &(dd_winograd_call){.dst = dst,
                                            .src = src,
                                            .weights = t->packed + s->packed_forward,
                                            .n = in->n,
                                            .h = in->h,
                                            .w = in->w,
                                            .ic = in->c,
                                            .oc = value(t, op->dst)->c,
                                            .scratch = t->scratch});
            return DD_OK;
        }
        dd_primitive_bind(s->forward, DD_ARG_SRC, src);
        dd_primitive_bind(s->forward, DD_ARG_DST, dst);
        dd_primitive_bind(s->forward, DD_ARG_WORKSPACE, in_slot(t, slot, s->saved));
        return dd_primitive_run(s->forward);
    }
}

dd_status dd_trainer_forward(dd_trainer *t, int slot, const float *images, float *features)
{
    dd_status status = DD_OK;
    dd_team team;
    if ((status = dd_team_begin(&team, t->threads)) != DD_OK) {
        return status;
    }
    t->alive[slot] = false;
    DD_TRY(pack_weights(t));
    t->folded_fresh = false; /* the running statistics change */
    double since = omp_get_wtime();
    for (int i = 0; i < t->nsteps; i++) {
        DD_TRY(forward_step(t, &t->steps[i], slot, images, features));
        since = add_time(&t->steps[i], PHASE_FORWARD, since);
    }
    t->alive[slot] = true;
fail:
    dd_team_end(&team);
    return status;
}

static void *part(const dd_trainer *t, int buffer)
{
    return buffer < 0 ? NULL : t->gradients + t->buffers[buffer].offset;
}

static dd_status backward_step(dd_trainer *t, step *s, int slot, const float *d_features)
{
    dd_status status = DD_OK;
    const dd_op *op = s->op;
    const dd_value_info *in = value(t, op->src[DD_SRC].value);
    char *src = in_slot(t, slot, t->kept[op->src[DD_SRC].value]);
    double since = omp_get_wtime();
    switch (op->kind) {
    case DD_OP_FROM_NCHW:
        break;
    case DD_OP_BATCH_NORM: {
        dd_batch_norm n = norm_of(t, s, slot);
        const dd_batch_norm_gradient g = {.d_src = part(t, s->d_src),
                                          .d_gamma = t->gradient + s->gamma,
                                          .d_beta = t->gradient + s->beta,
                                          .d_dst = part(t, s->d_dst[0]),
                                          .d_dst_more = part(t, s->d_dst[1]),
                                          .src = src,
                                          .dst = in_slot(t, slot, t->kept[op->dst]),
                                          .residual = op->src[DD_SRC_ADD].value != DD_NONE};
        dd_batch_norm_backward(t->isa, t->dtype, &n, &g, t->scratch);
        break;
    }
    case DD_OP_GLOBAL_POOL:
        dd_global_pool_backward(t->dtype, part(t, s->d_src), d_features, in->n, in->h * in->w, in->c);
        break;
    case DD_OP_CONV:
        if (s->own_weights) {
            const dd_window window = window_of(t, op);
            dd_weight_gradient(t->isa, t->dtype, t->gradient + s->weight, src, part(t, s->d_dst[0]), &window,
                               t->scratch);
            since = add_time(s, PHASE_WEIGHTS, since);
        } else {
            dd_primitive_bind(s->weights, DD_ARG_SRC, src);
            DD_TRY(dd_primitive_run(s->weights));
            since = add_time(s, PHASE_WEIGHTS, since);
            DD_TRY(dd_primitive_run(s->unpack));
            since = add_time(s, PHASE_UNPACK, since);
        }
        if (s->winograd_backward) {
            dd_winograd(t->isa, t->dtype,
                        &(dd_winograd_call){.dst = part(t, s->d_src),
                                            .src = part(t, s->d_dst[0]),
                                            .weights = t->packed + s->packed_backward,
                                            .n = in->n,
                                            .h = in->h,
                                            .w = in->w,
                                            .ic = value(t, op->dst)->c,
                                            .oc = in->c,
                                            .scratch = t->scratch});
        } else if (s->backward) {
            DD_TRY(dd_primitive_run(s->backward));
        }
        break;
    default:
        if (s->d_dst[1] >= 0) {
            dd_accumulate(t->isa, t->dtype, part(t, s->d_dst[0]), part(t, s->d_dst[1]),
                          dd_value_elements(value(t, op->dst)));
        }
        dd_primitive_bind(s->backward, DD_ARG_WORKSPACE, in_slot(t, slot, s->saved));
        DD_TRY(dd_primitive_run(s->backward));
    }
    add_time(s, PHASE_BACKWARD, since);
fail:
    return status;
}

dd_status dd_trainer_backward(dd_trainer *t, int slot, const float *d_features)
{
    dd_status status = DD_OK;
    dd_team team;
    if ((status = dd_team_begin(&team, t->threads)) != DD_OK) {
        return status;
    }
    if (!t->alive[slot]) {
        DD_FAIL(DD_INVALID,
                "backward: slot %d holds no forward pass that was made since the last step and not used yet", slot);
    }
    t->alive[slot] = false;
    for (int i = t->nsteps - 1; i >= 0; i--) {
        DD_TRY(backward_step(t, &t->steps[i], slot, d_features));
    }
fail:
    dd_team_end(&team);
    return status;
}

/* Makes the weights and biases of evaluation, unless they are up to date with parameters and statistics. */
static dd_status fold_weights(dd_trainer *t)
{
    dd_status status = DD_OK;
    double since = omp_get_wtime();
    if (t->folded_fresh) {
        return DD_OK;
    }
    for (int i = 0; i < t->nsteps; i++) {
        step *s = &t->steps[i];
        if (s->op->kind == DD_OP_BATCH_NORM) {
            const step *conv = &t->steps[s->convolution];
            const dd_value_info *in = value(t, conv->op->src[DD_SRC].value);
            dd_batch_norm n = {.gamma = t->parameter + s->gamma,
                               .beta = t->parameter + s->beta,
                               .mean = t->statistic + s->mean,
                               .variance = t->statistic + s->variance,
                               .c = value(t, s->op->dst)->c,
                               .eps = s->op->eps};
            dd_fold_batch_norm(t->folded, (float *)(void *)(t->packed + s->bias_evaluate), t->parameter + conv->weight,
                               &n, n.c, (size_t)in->c * (size_t)conv->op->kernel * (size_t)conv->op->kernel);
            if (s->winograd_evaluate) {
                dd_winograd_pack(t->isa, t->dtype, t->packed + s->packed_evaluate, t->folded, in->c, n.c,
                                 DD_WINOGRAD_FORWARD);
            } else {
                DD_TRY(dd_primitive_run(s->pack_evaluate));
            }
            since = add_time(s, PHASE_FOLD, since);
        }
    }
    t->folded_fresh = true;
fail:
    return status;
}

dd_status dd_trainer_evaluate(dd_trainer *t, const float *images, int rows, float *features)
{
    dd_status status = DD_OK;
    dd_team team;
    if ((status = dd_team_begin(&team, t->threads)) != DD_OK) {
        return status;
    }
    DD_TRY(fold_weights(t));
    double since = omp_get_wtime();
    for (int i = 0; i < t->nsteps; i++) {
        step *s = &t->steps[i];
        if (s->op->kind == DD_OP_CONV) {
            continue; /* part of the batch norm that it feeds */
        }
        const dd_value_info *in = value(t, s->op->src[DD_SRC].value);
        char *src = t->activations + t->evaluated[s->op->src[DD_SRC].value],
             *dst = t->activations + t->evaluated[s->op->dst];
        if (s->op->kind == DD_OP_FROM_NCHW) {
            dd_from_nchw(t->dtype, dst, images, rows, in->c, in->h * in->w);
            size_t row = value_bytes(t, s->op->dst) / (size_t)in->n;
            memset(dst + (size_t)rows * row, 0, (size_t)(in->n - rows) * row);
        } else if (s->op->kind == DD_OP_GLOBAL_POOL) {
            dd_global_pool(t->dtype, features, src, rows, in->h * in->w, in->c);
        } else if (s->winograd_evaluate) {
            dd_value from = t->steps[s->convolution].op->src[DD_SRC].value, add = s->op->src[DD_SRC_ADD].value;
            dd_winograd(t->isa, t->dtype,
                        &(dd_winograd_call){.dst = dst,
                                            .src = t->activations + t->evaluated[from],
                                            .weights = t->packed + s->packed_evaluate,
                                            .bias = (float *)(void *)(t->packed + s->bias_evaluate),
                                            .residual = add ? t->activations + t->evaluated[add] : NULL,
                                            .relu = s->op->act == DD_ACT_RELU,
                                            .n = in->n,
                                            .h = in->h,
                                            .w = in->w,
                                            .ic = value(t, from)->c,
                                            .oc = value(t, s->op->dst)->c,
                                            .scratch = t->scratch});
        } else {
            DD_TRY(dd_primitive_run(s->evaluate));
        }
        since = add_time(s, PHASE_EVALUATE, since);
    }
fail:
    dd_team_end(&team);
    return status;
}

/* ---- optimiser */

void dd_trainer_zero_gradients(dd_trainer *t)
{
    memset(t->gradient, 0, t->parameters * sizeof *t->gradient);
}

double dd_trainer_gradient_norm(const dd_trainer *t)
{
    dd_team team;
    dd_team_ask(&team, t->threads);
    double norm = sqrt(dd_sum_of_squares(t->gradient, t->parameters));
    dd_team_end(&team);
    return norm;
}

void dd_trainer_step(dd_trainer *t, const dd_trainer_options *o)
{
    dd_team team;
    dd_sgd sgd = {
        .lr = o->lr, .momentum = o->momentum, .weight_decay = o->weight_decay, .nesterov = o->nesterov, .scale = 1.0f};
    if (o->clip_norm > 0) {
        double ratio = o->clip_norm / (dd_trainer_gradient_norm(t) + 1e-6); /* as torch.nn.utils.clip_grad_norm_ */
        sgd.scale = ratio < 1 ? (float)ratio : 1.0f;
    }
    dd_team_ask(&team, t->threads);
    dd_sgd_step(t->parameter, t->moment, t->gradient, t->decayed, &sgd);
    sgd.weight_decay = 0;
    dd_sgd_step(t->parameter + t->decayed, t->moment + t->decayed, t->gradient + t->decayed, t->parameters - t->decayed,
                &sgd);
    dd_team_end(&team);
    memset(t->alive, 0, sizeof t->alive);
    dd_trainer_touched(t, DD_TRAINER_PARAMETERS);
}

/* ---- queries */

int dd_trainer_arrays(const dd_trainer *t) { return dd_weights_count(t->table); }
int dd_trainer_features(const dd_trainer *t) { return value(t, t->steps[t->nsteps - 1].op->dst)->c; }
int dd_trainer_slots(const dd_trainer *t) { return t->nslots; }
size_t dd_trainer_bytes(const dd_trainer *t) { return t->bytes; }
const dd_value_info *dd_trainer_input(const dd_trainer *t) { return value(t, t->steps[0].op->src[DD_SRC].value); }

void dd_trainer_touched(dd_trainer *t, dd_trainer_part part)
{
    t->packed_fresh = t->packed_fresh && part != DD_TRAINER_PARAMETERS;
    t->folded_fresh = false;
}

dd_trainer_array dd_trainer_get(const dd_trainer *t, int index)
{
    size_t at = t->offset[index];
    dd_trainer_array a = {.about = dd_weights_get(t->table, index)};
    if (t->running[index]) {
        a.value = t->statistic + at;
    } else {
        a.value = t->parameter + at;
        a.gradient = t->gradient + at;
        a.moment = t->moment + at;
    }
    return a;
}

int dd_trainer_profile_rows(const dd_trainer *t) { return t->nsteps * PHASES; }

dd_trainer_row dd_trainer_profile(const dd_trainer *t, int index)
{
    static const char *const phases[PHASES] = {"forward", "backward", "weights", "pack", "unpack", "evaluate", "fold"};
    const step *s = &t->steps[index / PHASES];
    const dd_primitive *by_phase[PHASES] = {s->forward, s->backward, s->weights,      s->pack_forward,
                                            s->unpack,  s->evaluate, s->pack_evaluate};
    const dd_primitive *p = by_phase[index % PHASES];
    const char *ours = index % PHASES == PHASE_WEIGHTS ? "dreamda:weight_gradient"
                       : s->winograd                   ? "dreamda:winograd"
                                                       : "dreamda";
    return (dd_trainer_row){.name = s->op->name, .phase = phases[index % PHASES],
                            .implementation = p ? dd_primitive_implementation(p) : ours,
                            .calls = s->calls[index % PHASES], .seconds = s->seconds[index % PHASES]};
}

void dd_trainer_profile_reset(dd_trainer *t)
{
    for (int i = 0; i < t->nsteps; i++) {
        memset(t->steps[i].seconds, 0, sizeof t->steps[i].seconds);
        memset(t->steps[i].calls, 0, sizeof t->steps[i].calls);
    }
}
