/* The loops of training that oneDNN 3.2 lacks or has only without the fusion we need: batch norm with residual and
 * ReLU, pooling over all positions, the optimiser. Activations are channels-last rows of `dtype`; statistics,
 * parameters and their gradients are f32. All run in OpenMP over the caller's thread count, allocate nothing, and cut
 * their work by size alone, so results are bitwise identical for any number of threads.
 *
 *     size_t bytes = dd_batch_norm_scratch(rows, c);         // of `scratch`, from the caller's arena, 64-byte aligned
 *     dd_batch_norm n = {.gamma = gamma, .beta = beta, .mean = mean, .variance = variance, .rows = rows, .c = c,
 *                        .eps = 1e-5f, .relu = true};
 *     dd_batch_norm_forward(isa, DD_BF16, &n, dst, src, residual, scratch);
 *     dd_batch_norm_gradient g = {.d_src = d_src, .d_gamma = d_gamma, .d_beta = d_beta, .d_dst = d_dst, .src = src,
 *                                 .dst = dst, .residual = true};
 *     dd_batch_norm_backward(isa, DD_BF16, &n, &g, scratch);
 */
#ifndef DD_KERNELS_TRAIN_H
#define DD_KERNELS_TRAIN_H

#include "base/dtype.h"

#include <stdbool.h>

typedef struct {
    const float *gamma, *beta; /* c each */
    float *mean, *variance;    /* c each, of the batch (biased): written by forward, read by backward */
    int64_t rows;              /* images x positions */
    int c;
    float eps;
    bool relu;
} dd_batch_norm;

size_t dd_batch_norm_scratch(int64_t rows, int c);

/* dst = [relu]((src - mean) / sqrt(variance + eps) * gamma + beta [+ residual]); all (rows, c), residual may be
   NULL. */
void dd_batch_norm_forward(dd_isa isa, dd_dtype dtype, const dd_batch_norm *n, void *dst, const void *src,
                           const void *residual, void *scratch);

/* The gradient of dst is d_dst + d_dst_more (NULL: d_dst alone). */
typedef struct {
    void *d_src;                 /* written; may be d_dst or d_dst_more */
    float *d_gamma, *d_beta;     /* added to */
    void *d_dst;                 /* with `residual` it becomes the residual's gradient */
    const void *d_dst_more;
    const void *src, *dst; /* of the forward pass; dst shows where ReLU passed values; unused without `residual` */
    bool residual;
} dd_batch_norm_gradient;
void dd_batch_norm_backward(dd_isa isa, dd_dtype dtype, const dd_batch_norm *n, const dd_batch_norm_gradient *g,
                            void *scratch);

/* running = (1 - momentum) running + momentum x the batch's mean and unbiased variance, as PyTorch does it. */
void dd_running_statistics(float *mean, float *variance, const dd_batch_norm *n, float momentum);

/* dst (n, c) f32 = mean over the positions of src (n, hw, c); and back: d_src = d_dst / hw everywhere. */
void dd_global_pool(dd_dtype dtype, float *dst, const void *src, int n, int hw, int c);
void dd_global_pool_backward(dd_dtype dtype, void *d_src, const float *d_dst, int n, int hw, int c);

/* dst += src */
void dd_accumulate(dd_isa isa, dd_dtype dtype, void *dst, const void *src, size_t count);

/* Weights (oc rows of `cols`) and bias of the single convolution that replaces a convolution without bias and a batch
   norm with running statistics. */
void dd_fold_batch_norm(float *weights, float *bias, const float *plain, const dd_batch_norm *n, int oc, size_t cols);

/* A convolution: its source is (n, h, w, ic), its result (n, oh, ow, oc). */
typedef struct {
    int n, h, w, ic, oh, ow, oc, kernel, stride, pad;
} dd_window;

/* gradient (oc, ic, kernel, kernel) += the gradient of a channels-last convolution's weights, from its source and the
   gradient of its result. The window has at most DD_WEIGHT_GRADIENT_TAPS places; bf16 needs DD_ISA_AVX512_BF16. On
   DD_ISA_AMX bf16 takes any channels; otherwise 16 divides ic, and dd_winograd_columns divides oc. In f32 a 3 x 3
   window of stride 1 uses Winograd's F(3 x 3, 2 x 2) on more than four positions. The thread count may be at most
   that given to dd_weight_gradient_scratch. */
enum { DD_WEIGHT_GRADIENT_TAPS = 49 };
void dd_weight_gradient(dd_isa isa, dd_dtype dtype, float *gradient, const void *src, const void *d_dst,
                        const dd_window *window, void *scratch);
size_t dd_weight_gradient_scratch(dd_isa isa, dd_dtype dtype, const dd_window *window, int threads);

typedef struct {
    float lr, momentum, weight_decay;
    bool nesterov;
    float scale; /* of the gradients: clipping */
} dd_sgd;
/* torch.optim.SGD: g = scale g + weight_decay p; m = momentum m + g; p -= lr (nesterov ? g + momentum m : m). */
void dd_sgd_step(float *p, float *m, const float *g, size_t count, const dd_sgd *sgd);

double dd_sum_of_squares(const float *x, size_t count);

#endif
