/* Batch norm forward and backward, and addition. Part of kernels/template.h, compiled once per instruction set.
 *
 *     batch_norm_forward(DD_F32, &n, dst, src, residual, scratch);
 *
 * Statistics come from chunks of rows whose number follows from the sizes alone, joined in f64. Backward reads
 * everything twice: for the two sums of each channel, then for the gradient.
 */
#ifndef DD_KERNELS_BATCH_NORM_H
#define DD_KERNELS_BATCH_NORM_H

#include "kernels/norm.h"
#include "kernels/table.h"
#include "kernels/vector.h"

#include <math.h>
#include <omp.h>

/* Writes the statistics of each chunk into two rows of the scratch, then those of all chunks into n. */
static void batch_statistics(const dd_dtype t, const dd_batch_norm *n, const void *src, float *partial)
{
    const size_t c = (size_t)n->c, ld = dd_batch_norm_channels(n->c);
    const int64_t chunk = dd_batch_norm_chunk(n->c), chunks = (n->rows + chunk - 1) / chunk;
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < chunks; k++) {
        float *mean = partial + (size_t)k * 2 * ld, *m2 = mean + ld;
        const int64_t start = k * chunk, stop = start + chunk < n->rows ? start + chunk : n->rows;
        for (int64_t row = start; row < stop; row += 8) {
            const int rows = stop - row < 8 ? (int)(stop - row) : 8;
            if (t == DD_BF16) {
                gather(DD_BF16, src, c, (size_t)row, rows, (int)(row - start), mean, m2);
            } else {
                gather(DD_F32, src, c, (size_t)row, rows, (int)(row - start), mean, m2);
            }
        }
    }
#pragma omp parallel for schedule(static)
    for (size_t ch = 0; ch < c; ch++) {
        double mean = 0, m2 = 0, done = 0;
        for (int64_t k = 0; k < chunks; k++) {
            const double rows = (double)(n->rows - k * chunk < chunk ? n->rows - k * chunk : chunk);
            const double e = (double)partial[(size_t)k * 2 * ld + ch] - mean;
            mean += e * rows / (done + rows);
            m2 += (double)partial[((size_t)k * 2 + 1) * ld + ch] + e * e * done * rows / (done + rows);
            done += rows;
        }
        n->mean[ch] = (float)mean;
        n->variance[ch] = (float)(m2 / done);
    }
}

/* y = x gain + shift */
static void normalizer(const dd_batch_norm *n, float *gain, float *shift)
{
    for (int ch = 0; ch < n->c; ch++) {
        const double g = (double)n->gamma[ch] / sqrt((double)n->variance[ch] + (double)n->eps);
        gain[ch] = (float)g;
        shift[ch] = (float)((double)n->beta[ch] - (double)n->mean[ch] * g);
    }
}

INLINE void normalize(const dd_dtype t, const bool relu, const bool residual, const dd_batch_norm *n, void *dst,
                      const void *src, const void *other, const float *gain, const float *shift)
{
    const size_t c = (size_t)n->c;
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < n->rows; row++) {
        for (size_t ch = 0; ch < c; ch += DD_VECTOR) {
            const size_t count = c - ch < DD_VECTOR ? c - ch : DD_VECTOR, at = (size_t)row * c + ch;
            vf y = fma_(load_up_to(t, src, at, count), load_f32(gain + ch), load_f32(shift + ch));
            if (residual) {
                y = add(y, load_up_to(t, other, at, count));
            }
            store_up_to(t, dst, at, relu ? larger(set1(0.0f), y) : y, count);
        }
    }
}

INLINE void normalize_as(const dd_dtype t, const dd_batch_norm *n, void *dst, const void *src, const void *other,
                         const float *gain, const float *shift)
{
    if (n->relu && other) {
        normalize(t, true, true, n, dst, src, other, gain, shift);
    } else if (n->relu) {
        normalize(t, true, false, n, dst, src, other, gain, shift);
    } else {
        normalize(t, false, other != NULL, n, dst, src, other, gain, shift);
    }
}

static void batch_norm_forward(dd_dtype t, const dd_batch_norm *n, void *dst, const void *src, const void *residual,
                               void *scratch)
{
    const size_t ld = dd_batch_norm_channels(n->c);
    float *gain = scratch, *shift = gain + ld;
    batch_statistics(t, n, src, gain + 8 * ld);
    normalizer(n, gain, shift);
    if (t == DD_BF16) {
        normalize_as(DD_BF16, n, dst, src, residual, gain, shift);
    } else {
        normalize_as(DD_F32, n, dst, src, residual, gain, shift);
    }
}

/* Where ReLU passed the value: everywhere, where the recomputed value is positive, or where dst is positive. */
typedef enum { PASS_ALL, PASS_COMPUTED, PASS_STORED } bn_pass;

typedef struct {
    void *d_src, *d_dst;
    const void *more, *src, *dst;
    const float *gain, *shift, *a, *b, *e; /* d_src = a g + b (x - mean) + e */
} bn_gradient;

INLINE vf gradient_at(const dd_dtype t, const bn_pass pass, const bool more, const bn_gradient *g, vf x, size_t at,
                      size_t ch, size_t count)
{
    vf d = load_up_to(t, g->d_dst, at, count);
    if (more) {
        d = add(d, load_up_to(t, g->more, at, count));
    }
    if (pass == PASS_ALL) {
        return d;
    }
    vf y = pass == PASS_STORED ? load_up_to(t, g->dst, at, count)
                               : fma_(x, load_f32(g->gain + ch), load_f32(g->shift + ch));
    return where_ge(set1(0.0f), y, set1(0.0f), d);
}

/* Adds up to 8 rows to the sums of g and of g (x - mean); with `keep`, g replaces d_dst. */
INLINE void gradient_sums(const dd_dtype t, const bn_pass pass, const bool more, const bool keep,
                          const dd_batch_norm *n, const bn_gradient *g, int64_t row, int rows, bool first, float *sum,
                          float *product)
{
    const size_t c = (size_t)n->c;
    for (size_t ch = 0; ch < c; ch += DD_VECTOR) {
        const size_t count = c - ch < DD_VECTOR ? c - ch : DD_VECTOR;
        const vf mean = load_up_to(DD_F32, n->mean, ch, count);
        vf s = first ? set1(0.0f) : load_f32(sum + ch), p = first ? set1(0.0f) : load_f32(product + ch);
        for (int r = 0; r < rows; r++) {
            const size_t at = (size_t)(row + r) * c + ch;
            const vf x = load_up_to(t, g->src, at, count), d = gradient_at(t, pass, more, g, x, at, ch, count);
            if (keep) {
                store_up_to(t, g->d_dst, at, d, count);
            }
            s = add(s, d);
            p = fma_(d, sub(x, mean), p);
        }
        store_f32(sum + ch, s);
        store_f32(product + ch, p);
    }
}

INLINE void all_gradient_sums(const dd_dtype t, const bn_pass pass, const bool more, const bool keep,
                              const dd_batch_norm *n, const bn_gradient *g, float *partial)
{
    const size_t ld = dd_batch_norm_channels(n->c);
    const int64_t chunk = dd_batch_norm_chunk(n->c), chunks = (n->rows + chunk - 1) / chunk;
#pragma omp parallel for schedule(static)
    for (int64_t k = 0; k < chunks; k++) {
        float *sum = partial + (size_t)k * 2 * ld, *product = sum + ld;
        const int64_t start = k * chunk, stop = start + chunk < n->rows ? start + chunk : n->rows;
        for (int64_t row = start; row < stop; row += 8) {
            gradient_sums(t, pass, more, keep, n, g, row, stop - row < 8 ? (int)(stop - row) : 8, row == start, sum,
                          product);
        }
    }
}

INLINE void source_gradient(const dd_dtype t, const bn_pass pass, const dd_batch_norm *n, const bn_gradient *g)
{
    const size_t c = (size_t)n->c;
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < n->rows; row++) {
        for (size_t ch = 0; ch < c; ch += DD_VECTOR) {
            const size_t count = c - ch < DD_VECTOR ? c - ch : DD_VECTOR, at = (size_t)row * c + ch;
            const vf x = load_up_to(t, g->src, at, count), d = gradient_at(t, pass, false, g, x, at, ch, count);
            const vf deviation = sub(x, load_up_to(DD_F32, n->mean, ch, count));
            store_up_to(t, g->d_src, at,
                        fma_(d, load_f32(g->a + ch), fma_(deviation, load_f32(g->b + ch), load_f32(g->e + ch))), count);
        }
    }
}

INLINE void batch_norm_backward_as(const dd_dtype t, const dd_batch_norm *n, bn_gradient *g, float *d_gamma,
                                   float *d_beta, bool residual, float *scratch)
{
    const size_t ld = dd_batch_norm_channels(n->c);
    float *gain = scratch, *shift = gain + ld, *a = gain + 2 * ld, *b = gain + 3 * ld, *e = gain + 4 * ld,
          *partial = gain + 8 * ld;
    const int64_t chunk = dd_batch_norm_chunk(n->c), chunks = (n->rows + chunk - 1) / chunk;
    normalizer(n, gain, shift);
    g->gain = gain, g->shift = shift, g->a = a, g->b = b, g->e = e;
    bool kept = true; /* whether d_dst now holds the finished g */
    if (n->relu && residual && g->more) {
        all_gradient_sums(t, PASS_STORED, true, true, n, g, partial);
    } else if (n->relu && residual) {
        all_gradient_sums(t, PASS_STORED, false, true, n, g, partial);
    } else if (n->relu && g->more) {
        all_gradient_sums(t, PASS_COMPUTED, true, true, n, g, partial);
    } else if (n->relu) {
        all_gradient_sums(t, PASS_COMPUTED, false, false, n, g, partial);
        kept = false;
    } else {
        all_gradient_sums(t, PASS_ALL, g->more != NULL, g->more != NULL, n, g, partial);
    }
#pragma omp parallel for schedule(static)
    for (int ch = 0; ch < n->c; ch++) {
        double sum = 0, product = 0;
        for (int64_t k = 0; k < chunks; k++) {
            sum += (double)partial[(size_t)k * 2 * ld + (size_t)ch];
            product += (double)partial[((size_t)k * 2 + 1) * ld + (size_t)ch];
        }
        const double inverse = 1.0 / sqrt((double)n->variance[ch] + (double)n->eps),
                     scale = (double)n->gamma[ch] * inverse;
        d_beta[ch] += (float)sum;
        d_gamma[ch] += (float)(product * inverse);
        a[ch] = (float)scale;
        b[ch] = (float)(-scale * inverse * inverse * product / (double)n->rows);
        e[ch] = (float)(-scale * sum / (double)n->rows);
    }
    if (kept) {
        source_gradient(t, PASS_ALL, n, g);
    } else {
        source_gradient(t, PASS_COMPUTED, n, g);
    }
}

static void batch_norm_backward(dd_dtype t, const dd_batch_norm *n, const dd_batch_norm_gradient *of, void *scratch)
{
    bn_gradient g = {.d_src = of->d_src, .d_dst = of->d_dst, .more = of->d_dst_more, .src = of->src, .dst = of->dst};
    if (t == DD_BF16) {
        batch_norm_backward_as(DD_BF16, n, &g, of->d_gamma, of->d_beta, of->residual, scratch);
    } else {
        batch_norm_backward_as(DD_F32, n, &g, of->d_gamma, of->d_beta, of->residual, scratch);
    }
}

static void accumulate(dd_dtype t, void *dst, const void *src, size_t count)
{
#pragma omp parallel for schedule(static)
    for (ptrdiff_t v = 0; v < (ptrdiff_t)((count + DD_VECTOR - 1) / DD_VECTOR); v++) {
        const size_t i = (size_t)v * DD_VECTOR, some = count - i < DD_VECTOR ? count - i : DD_VECTOR;
        store_up_to(t, dst, i, add(load_up_to(t, dst, i, some), load_up_to(t, src, i, some)), some);
    }
}

#endif
