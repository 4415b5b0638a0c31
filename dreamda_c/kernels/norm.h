/* GroupNorm with SiLU, and LayerNorm. Part of kernels/template.h, compiled once per instruction set.
 *
 *     group_norm(DD_BF16, &(dd_group_norm_call){.dst = dst, .src = src, ...});
 */
#ifndef DD_KERNELS_NORM_H
#define DD_KERNELS_NORM_H

#include "kernels/table.h"
#include "kernels/vector.h"

#include <math.h>
#include <omp.h>

/* ---- GroupNorm ------------------------------------------------------------------------------------------------ */

/* Adds rows [row, row + rows) of one source, rows <= 8, to the mean and the sum of squared deviations of each channel.
   `done` rows are already included. The two-pass statistics of eight rows stay in registers, then Chan's formula joins
   them. */
INLINE void gather(const dd_dtype t, const void *src, size_t c, size_t row, int rows, int done, float *mean, float *m2)
{
    const vf per_row = set1(1.0f / (float)rows);
    const vf weight = set1((float)rows / (float)(done + rows));
    const vf cross = set1((float)done * ((float)rows / (float)(done + rows)));
    for (size_t ch = 0; ch < c; ch += DD_VECTOR) {
        size_t count = c - ch < DD_VECTOR ? c - ch : DD_VECTOR;
        vf x[8], sum = set1(0.0f), squares = set1(0.0f);
        if (rows == 8 && count == DD_VECTOR) {
#pragma GCC unroll 8
            for (int r = 0; r < 8; r++) {
                x[r] = load(t, src, (row + (size_t)r) * c + ch);
            }
            sum = add(add(add(x[0], x[1]), add(x[2], x[3])), add(add(x[4], x[5]), add(x[6], x[7])));
            sum = mul(sum, per_row);
#pragma GCC unroll 8
            for (int r = 0; r < 8; r++) {
                vf e = sub(x[r], sum);
                squares = fma_(e, e, squares);
            }
        } else {
            for (int r = 0; r < rows; r++) {
                sum = add(sum, load_up_to(t, src, (row + (size_t)r) * c + ch, count));
            }
            sum = mul(sum, per_row);
            for (int r = 0; r < rows; r++) {
                vf e = sub(load_up_to(t, src, (row + (size_t)r) * c + ch, count), sum);
                squares = fma_(e, e, squares);
            }
        }
        if (done) {
            vf old = load_up_to(DD_F32, mean, ch, count), e = sub(sum, old);
            sum = fma_(e, weight, old);
            squares = fma_(mul(e, e), cross, add(squares, load_up_to(DD_F32, m2, ch, count)));
        }
        store_up_to(DD_F32, mean, ch, sum, count);
        store_up_to(DD_F32, m2, ch, squares, count);
    }
}

/* dst = [silu]((src - shift) * gain + beta) for `rows` rows of one source, `ld` channels apart in dst. */
INLINE void apply(const dd_dtype t, const bool silu, void *dst, size_t ld, const void *src, size_t c, size_t row,
                  int rows, size_t first, const float *shift, const float *gain, const float *beta)
{
    for (size_t r = row; r < row + (size_t)rows; r++) {
        for (size_t ch = 0; ch < c; ch += DD_VECTOR) {
            size_t count = c - ch < DD_VECTOR ? c - ch : DD_VECTOR;
            vf x = load_up_to(t, src, r * c + ch, count);
            vf y = fma_(sub(x, load_up_to(DD_F32, shift, ch, count)), load_up_to(DD_F32, gain, ch, count),
                        load_up_to(DD_F32, beta, ch, count));
            store_up_to(t, dst, r * ld + first + ch, silu ? silu_of(t, y) : y, count);
        }
    }
}

static void gather_rows(dd_dtype t, const void *src, size_t c, size_t row, int rows, int done, float *mean, float *m2)
{
    if (t == DD_BF16) {
        gather(DD_BF16, src, c, row, rows, done, mean, m2);
    } else {
        gather(DD_F32, src, c, row, rows, done, mean, m2);
    }
}

static void apply_rows(dd_dtype t, bool silu, void *dst, size_t ld, const void *src, size_t c, size_t row, int rows,
                       size_t first, const float *shift, const float *gain, const float *beta)
{
    if (t == DD_BF16 && silu) {
        apply(DD_BF16, true, dst, ld, src, c, row, rows, first, shift, gain, beta);
    } else if (t == DD_BF16) {
        apply(DD_BF16, false, dst, ld, src, c, row, rows, first, shift, gain, beta);
    } else if (silu) {
        apply(DD_F32, true, dst, ld, src, c, row, rows, first, shift, gain, beta);
    } else {
        apply(DD_F32, false, dst, ld, src, c, row, rows, first, shift, gain, beta);
    }
}

static void group_norm(dd_dtype t, const dd_group_norm_call *call)
{
    const int n = call->n, hw = call->hw, groups = call->groups, c0 = call->c, c1 = call->beside ? call->beside_c : 0;
    const void *src0 = call->src, *src1 = call->beside;
    const float *row_bias = call->row_bias, *scale_shift = call->scale_shift, eps = call->eps;
    const float *gamma = call->gamma, *beta = call->beta;
    const size_t row_bias_ld = call->row_bias_ld, scale_shift_ld = call->scale_shift_ld;
    const bool silu = call->silu;
    void *dst = call->dst;
    const int c = c0 + c1, chunk = dd_group_norm_chunk(c), chunks = (hw + chunk - 1) / chunk;
    const size_t pad = dd_group_norm_channels(c);
    float *partial = call->scratch; /* (n, chunks, 2, pad): mean, sum of squared deviations */
    /* (n, 3, pad): first the image's statistics, then what to subtract, to multiply by and, with scales, to add */
    float *shift = partial + (size_t)n * (size_t)chunks * 2 * pad;
    const ptrdiff_t tasks = (ptrdiff_t)n * chunks;

#pragma omp parallel
    {
        /* Not `omp for`: this way each thread gets its own chunks again, starting with those still in its cache. */
        const ptrdiff_t me = omp_get_thread_num(), team = omp_get_num_threads();
        const ptrdiff_t begin = tasks * me / team, end = tasks * (me + 1) / team;
        for (ptrdiff_t i = begin; i < end; i++) {
            const int start = (int)(i % chunks) * chunk, rows = hw - start < chunk ? hw - start : chunk;
            const size_t base = (size_t)(i / chunks) * (size_t)hw + (size_t)start;
            float *mean = partial + (size_t)i * 2 * pad, *m2 = mean + pad;
            for (int r = 0; r < rows; r += 8) {
                const int some = rows - r < 8 ? rows - r : 8;
                gather_rows(t, src0, (size_t)c0, base + (size_t)r, some, r, mean, m2);
                if (c1) {
                    gather_rows(t, src1, (size_t)c1, base + (size_t)r, some, r, mean + c0, m2 + c0);
                }
            }
        }
#pragma omp barrier
        /* Chunks to image, channel by channel. */
#pragma omp for collapse(2) schedule(static)
        for (int i = 0; i < n; i++) {
            for (int tile = 0; tile < (c + 63) / 64; tile++) {
                const int ch0 = tile * 64, ch1 = ch0 + 64 < c ? ch0 + 64 : c;
                float *mean = shift + (size_t)i * 3 * pad, *m2 = mean + pad;
                for (int k = 0, done = 0; k < chunks; k++) {
                    const float *part = partial + ((size_t)i * (size_t)chunks + (size_t)k) * 2 * pad;
                    const int rows = hw - done < chunk ? hw - done : chunk;
                    const float weight = (float)rows / (float)(done + rows), cross = (float)done * weight;
                    for (int ch = ch0; ch < ch1; ch++) {
                        const float old = done ? mean[ch] : 0.0f, old_m2 = done ? m2[ch] : 0.0f;
                        const float e = part[ch] - old;
                        mean[ch] = old + e * weight;
                        m2[ch] = old_m2 + part[pad + (size_t)ch] + e * e * cross;
                    }
                    done += rows;
                }
            }
        }
        /* Channels to groups, in double: a few thousand numbers. */
#pragma omp for collapse(2) schedule(static)
        for (int i = 0; i < n; i++) {
            for (int g = 0; g < groups; g++) {
                const int size = c / groups, ch0 = g * size;
                const float *bias = row_bias ? row_bias + (size_t)i * row_bias_ld : NULL;
                const float *scales = scale_shift ? scale_shift + (size_t)i * scale_shift_ld : NULL;
                float *mean = shift + (size_t)i * 3 * pad, *m2 = mean + pad, *added = m2 + pad;
                double centre = 0, squares = 0;
                for (int ch = ch0; ch < ch0 + size; ch++) {
                    centre += (double)mean[ch] + (bias ? (double)bias[ch] : 0.0);
                }
                centre /= size;
                for (int ch = ch0; ch < ch0 + size; ch++) {
                    const double e = (double)mean[ch] + (bias ? (double)bias[ch] : 0.0) - centre;
                    squares += (double)m2[ch] + (double)hw * e * e;
                }
                const double scale = 1.0 / sqrt(squares / ((double)hw * size) + (double)eps);
                for (int ch = ch0; ch < ch0 + size; ch++) {
                    mean[ch] = (float)(centre - (bias ? (double)bias[ch] : 0.0));
                    m2[ch] = (float)((double)gamma[ch] * scale);
                    if (scales) {
                        const double factor = 1.0 + (double)scales[ch];
                        m2[ch] = (float)((double)gamma[ch] * scale * factor);
                        added[ch] = (float)((double)beta[ch] * factor + (double)scales[c + ch]);
                    }
                }
            }
        }
        for (ptrdiff_t i = end - 1; i >= begin; i--) {
            const int start = (int)(i % chunks) * chunk, rows = hw - start < chunk ? hw - start : chunk;
            const size_t base = (size_t)(i / chunks) * (size_t)hw + (size_t)start;
            const float *shifts = shift + (size_t)(i / chunks) * 3 * pad, *gain = shifts + pad;
            const float *added = scale_shift ? gain + pad : beta;
            apply_rows(t, silu, dst, (size_t)c, src0, (size_t)c0, base, rows, 0, shifts, gain, added);
            if (c1) {
                apply_rows(t, silu, dst, (size_t)c, src1, (size_t)c1, base, rows, (size_t)c0, shifts + c0, gain + c0,
                           added + c0);
            }
        }
    }
}

/* ---- LayerNorm ------------------------------------------------------------------------------------------------ */

INLINE void layer_norm_row(const dd_dtype t, void *dst, const void *src, const float *gamma, const float *beta,
                           size_t c, float eps)
{
    /* Four accumulators hide the latency of the additions. */
    vf sum[4], squares[4];
    for (int i = 0; i < 4; i++) {
        sum[i] = squares[i] = set1(0.0f);
    }
    size_t ch = 0;
    for (; ch + 4 * DD_VECTOR <= c; ch += 4 * DD_VECTOR) {
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; i++) {
            sum[i] = add(sum[i], load(t, src, ch + i * DD_VECTOR));
        }
    }
    for (; ch < c; ch += DD_VECTOR) {
        sum[0] = add(sum[0], load_up_to(t, src, ch, c - ch < DD_VECTOR ? c - ch : DD_VECTOR));
    }
    const float mean = horizontal_sum(add(add(sum[0], sum[1]), add(sum[2], sum[3]))) / (float)c;
    for (ch = 0; ch + 4 * DD_VECTOR <= c; ch += 4 * DD_VECTOR) {
#pragma GCC unroll 4
        for (size_t i = 0; i < 4; i++) {
            vf e = sub(load(t, src, ch + i * DD_VECTOR), set1(mean));
            squares[i] = fma_(e, e, squares[i]);
        }
    }
    for (; ch < c; ch += DD_VECTOR) {
        vf e = sub(load_up_to(t, src, ch, c - ch < DD_VECTOR ? c - ch : DD_VECTOR), set1(mean));
        e = where_ge(lanes(), set1((float)(c - ch)), set1(0.0f), e); /* lanes past the end do not count */
        squares[0] = fma_(e, e, squares[0]);
    }
    const float variance = horizontal_sum(add(add(squares[0], squares[1]), add(squares[2], squares[3]))) / (float)c;
    const float scale = 1.0f / sqrtf(variance + eps);
    for (ch = 0; ch < c; ch += DD_VECTOR) {
        size_t count = c - ch < DD_VECTOR ? c - ch : DD_VECTOR;
        vf e = mul(sub(load_up_to(t, src, ch, count), set1(mean)), set1(scale));
        store_up_to(t, dst, ch, fma_(e, load_up_to(DD_F32, gamma, ch, count), load_up_to(DD_F32, beta, ch, count)),
                    count);
    }
}

static void layer_norm(dd_dtype dtype, void *dst, const void *src, const float *gamma, const float *beta,
                       int rows, int c, float eps)
{
    const size_t stride = (size_t)c * dd_dtype_size(dtype);
#pragma omp parallel for schedule(static)
    for (int r = 0; r < rows; r++) {
        char *to = (char *)dst + (size_t)r * stride;
        const char *from = (const char *)src + (size_t)r * stride;
        if (dtype == DD_BF16) {
            layer_norm_row(DD_BF16, to, from, gamma, beta, (size_t)c, eps);
        } else {
            layer_norm_row(DD_F32, to, from, gamma, beta, (size_t)c, eps);
        }
    }
}

#endif
