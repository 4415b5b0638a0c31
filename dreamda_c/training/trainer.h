/* A network in training: one flat block of f32 parameters with gradients and momentum of the same layout, forward and
 * backward passes in f32 or mixed bf16, the optimiser, and evaluation with batch norm folded into the convolutions.
 *
 *     dd_trainer *t;
 *     DD_TRY(dd_graph_create(&g, weights));                        // weights: only a table of names here
 *     DD_TRY(dd_resnet_build(g, &config, 64, 32, 32));
 *     DD_TRY(dd_trainer_create(&t, weights, g, DD_BF16, 2, 1));    // takes both; 2 threads, 1 slot
 *     dd_trainer_get(t, 0).value[0] = 1;                           // and so on: initial weights
 *     DD_TRY(dd_trainer_forward(t, 0, images, features));
 *     DD_TRY(dd_trainer_backward(t, 0, d_features));               // adds to the gradients
 *     dd_trainer_step(t, &(dd_trainer_options){.lr = 0.1f, .momentum = 0.9f, .nesterov = true});
 *     DD_TRY(dd_trainer_evaluate(t, images, rows, features));
 *     dd_trainer_destroy(t);
 *
 * One call at a time for each trainer, from any thread. Everything is allocated at creation. A slot keeps the
 * values that the backward pass needs from its forward pass. The same calls with the same number of threads give
 * bitwise identical results.
 */
#ifndef DD_TRAINER_H
#define DD_TRAINER_H

#include "models/models.h"

typedef struct dd_trainer dd_trainer;

enum { DD_MAX_SLOTS = 4 };

/* `graph` has one input of NCHW images and one output of pooled features; every convolution feeds a batch norm. The
   trainer takes ownership of weights and graph, also on failure. */
dd_status dd_trainer_create(dd_trainer **out, dd_weights *weights, dd_graph *graph, dd_dtype dtype, int threads,
                            int slots);
void dd_trainer_destroy(dd_trainer *t);

/* Parameters and running statistics. They may be read and written between calls, and live as long as the trainer. */
typedef struct {
    const dd_parameter *about;
    float *value, *gradient, *moment; /* the latter two NULL for running statistics */
} dd_trainer_array;
int dd_trainer_arrays(const dd_trainer *t);
dd_trainer_array dd_trainer_get(const dd_trainer *t, int index);

/* Tells the trainer that values of this kind may have been written since the last call. The next pass that depends on
   them packs its weights again: forward and backward depend only on parameters, evaluation on both. */
typedef enum { DD_TRAINER_PARAMETERS, DD_TRAINER_STATISTICS, DD_TRAINER_PARTS } dd_trainer_part;
void dd_trainer_touched(dd_trainer *t, dd_trainer_part part);

const dd_value_info *dd_trainer_input(const dd_trainer *t); /* dims: (batch, channels, height, width) */
int dd_trainer_features(const dd_trainer *t);
int dd_trainer_slots(const dd_trainer *t);

/* features: (batch, features) f32. Updates the running statistics. */
dd_status dd_trainer_forward(dd_trainer *t, int slot, const float *images, float *features);
/* DD_INVALID if the slot holds no forward pass made since the last step. Uses it up. */
dd_status dd_trainer_backward(dd_trainer *t, int slot, const float *d_features);

void dd_trainer_zero_gradients(dd_trainer *t);
double dd_trainer_gradient_norm(const dd_trainer *t);

typedef struct {
    float lr, momentum, weight_decay; /* no decay on norms and biases */
    bool nesterov;
    double clip_norm; /* gradients are scaled down to this global norm; 0: never */
} dd_trainer_options;
void dd_trainer_step(dd_trainer *t, const dd_trainer_options *options);

/* Features of 1 .. batch images with the running statistics. */
dd_status dd_trainer_evaluate(dd_trainer *t, const float *images, int rows, float *features);

size_t dd_trainer_bytes(const dd_trainer *t);

/* Calls and time since creation or the last reset, by operation and phase ("forward", "backward", ...). */
typedef struct {
    const char *name, *phase, *implementation;
    int calls;
    double seconds;
} dd_trainer_row;
int dd_trainer_profile_rows(const dd_trainer *t);
dd_trainer_row dd_trainer_profile(const dd_trainer *t, int index);
void dd_trainer_profile_reset(dd_trainer *t);

#endif
