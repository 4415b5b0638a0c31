/* From features to labels: linear heads, softmax losses with their gradients, and the pseudo-labels of AMST. All arrays
 * are f32 and row-major; nothing is allocated. Rows (or classes, or parameters) are distributed over OpenMP threads,
 * and sums have a fixed order: results are bitwise identical for any number of threads.
 *
 *     dd_affine(y, x, w, b, n, f, c);
 *     double loss = dd_softmax_cross_entropy(dy, rows, y, labels, NULL, n, c, 0.1f);
 *     dd_affine_backward(dx, dw, db, dy, x, w, n, f, c);
 */
#ifndef DD_LOSSES_H
#define DD_LOSSES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* y (n, c) = x (n, f) w^T + b; w: (c, f), b: (c). */
void dd_affine(float *y, const float *x, const float *w, const float *b, size_t n, size_t f, size_t c);

/* dx (n, f) = dy (n, c) w; dw (c, f) += dy^T x; db (c) += sum over rows of dy. */
void dd_affine_backward(float *dx, float *dw, float *db, const float *dy, const float *x, const float *w, size_t n,
                        size_t f, size_t c);

/* p (n, c) = softmax of each row of z. */
void dd_softmax(float *p, const float *z, size_t n, size_t c);

/* Returns (sum_i weight_i loss_i) / n, loss_i = -sum_k t_ik log softmax(z_i)_k with t = (1 - smoothing) onehot(label) +
   smoothing / c, and sets dz (n, c) to its gradient. weights NULL: all 1. Labels are checked by the caller. `rows`:
   scratch for n doubles. */
double dd_softmax_cross_entropy(float *dz, double *rows, const float *z, const int64_t *labels, const float *weights,
                                size_t n, size_t c, float smoothing);

/* FixMatch: if the weak view's largest probability is >= threshold and only one class has it, the cross-entropy of the
   strong view against that class; else 0. Returns the mean over all n rows and sets dz (n, c), the gradient to
   `strong`; `weak` gets none. *used: the number of rows that counted. */
double dd_consistency(float *dz, double *rows, size_t *used, const float *strong, const float *weak, size_t n, size_t c,
                      float threshold);

/* z (heads, n, c). labels[i] = the class that is the one largest logit of row i in every head, if the mean over heads
   of its probability is >= threshold; else -1. confidence[i] = the mean over heads of the largest probability; 0 where
   a head has NaN. */
void dd_pseudo_label(int32_t *labels, float *confidence, const float *z, size_t heads, size_t n, size_t c,
                     float threshold);

#endif
