/* A plan runs a graph at its one shape, for one dtype and thread count. It creates primitives once and allocates all
 * buffers in one arena, by their lifetimes; then it runs many times without allocating.
 *
 *     dd_plan *plan;
 *     DD_TRY(dd_plan_create(&plan, graph, DD_BF16, 2));          // takes the graph
 *     int ids[1000], missing = dd_plan_missing(plan, ids, 1000);
 *     for (int i = 0; i < missing; i++) {
 *         DD_TRY(dd_weights_load(weights, ids[i], DD_F32, parameters[ids[i]]));
 *     }
 *     const void *inputs[] = {sample, timestep, context};          // in the order of dd_plan_input
 *     void *outputs[] = {eps};
 *     DD_TRY(dd_plan_run(plan, inputs, outputs));
 *     dd_plan_destroy(plan);
 *
 * One run at a time for each plan (the caller locks); different plans, also with the same weights, may run at the same
 * time, from any thread. Inputs and outputs are the caller's C-ordered arrays, never kept and never written beyond
 * their size. The results do not depend on earlier runs.
 */
#ifndef DD_PLAN_H
#define DD_PLAN_H

#include "graph/graph.h"

typedef struct dd_plan dd_plan;

/* On success the plan owns the graph; on failure the graph is destroyed. The weights must outlive the plan. Packed
   weights stay when their plan is destroyed; those that neither the new plan nor another existing one uses are freed
   here. */
dd_status dd_plan_create(dd_plan **out, dd_graph *graph, dd_dtype dtype, int threads);
void dd_plan_destroy(dd_plan *plan);

/* Number of parameters not loaded yet; the first `capacity` of their ids are written to `parameters`. */
int dd_plan_missing(const dd_plan *plan, int *parameters, int capacity);

int dd_plan_inputs(const dd_plan *plan);
int dd_plan_outputs(const dd_plan *plan);
const dd_value_info *dd_plan_input(const dd_plan *plan, int index);
const dd_value_info *dd_plan_output(const dd_plan *plan, int index);

/* Binds the weights after they are loaded. DD_INVALID: the message names an op whose weights are not loaded yet. Must
   not run at the same time as a load. dd_plan_run calls it if necessary. */
dd_status dd_plan_bind(dd_plan *plan);

/* inputs[i] may be NULL for optional inputs; outputs[i] NULL means not wanted. */
dd_status dd_plan_run(dd_plan *plan, const void *const *inputs, void *const *outputs);

size_t dd_plan_arena_bytes(const dd_plan *plan);

typedef struct {
    const char *name, *op, *implementation;
    double seconds; /* in the last run; 0 if the op did not run in it */
    double flops;   /* 0 for ops that only move memory */
} dd_profile_row;
int dd_plan_profile_rows(const dd_plan *plan);
dd_profile_row dd_plan_profile(const dd_plan *plan, int index);

#endif
