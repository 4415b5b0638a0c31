/* The choice of instruction set for batch norm, and the loops that memory alone bounds. */
#include "kernels/train.h"

#include "kernels/table.h"

#include <math.h>
#include <omp.h>
#include <string.h>

size_t dd_batch_norm_scratch(int64_t rows, int c)
{
    const int64_t chunk = dd_batch_norm_chunk(c), chunks = (rows + chunk - 1) / chunk;
    return (8 + 2 * (size_t)chunks) * dd_batch_norm_channels(c) * sizeof(float);
}

void dd_batch_norm_forward(dd_isa isa, dd_dtype dtype, const dd_batch_norm *n, void *dst, const void *src,
                           const void *residual, void *scratch)
{
    dd_kernels(isa)->batch_norm_forward(dtype, n, dst, src, residual, scratch);
}

void dd_batch_norm_backward(dd_isa isa, dd_dtype dtype, const dd_batch_norm *n, const dd_batch_norm_gradient *g,
                            void *scratch)
{
    dd_kernels(isa)->batch_norm_backward(dtype, n, g, scratch);
}

void dd_accumulate(dd_isa isa, dd_dtype dtype, void *dst, const void *src, size_t count)
{
    dd_kernels(isa)->accumulate(dtype, dst, src, count);
}

void dd_weight_gradient(dd_isa isa, dd_dtype dtype, float *gradient, const void *src, const void *d_dst,
                        const dd_window *window, void *scratch)
{
    if (isa == DD_ISA_AMX && dtype == DD_BF16) {
        dd_weight_gradient_amx(gradient, src, d_dst, window, scratch);
    } else {
        dd_kernels(isa)->weight_gradient(dtype, gradient, src, d_dst, window, scratch);
    }
}

size_t dd_weight_gradient_scratch(dd_isa isa, dd_dtype dtype, const dd_window *window, int threads)
{
    return isa == DD_ISA_AMX && dtype == DD_BF16
               ? dd_weight_gradient_amx_scratch(window)
               : dd_kernels(isa)->weight_gradient_scratch(dtype, window, threads);
}

void dd_running_statistics(float *mean, float *variance, const dd_batch_norm *n, float momentum)
{
    const double unbiased = n->rows > 1 ? (double)n->rows / (double)(n->rows - 1) : 1.0;
    for (int ch = 0; ch < n->c; ch++) {
        mean[ch] = (1.0f - momentum) * mean[ch] + momentum * n->mean[ch];
        variance[ch] = (1.0f - momentum) * variance[ch] + momentum * (float)((double)n->variance[ch] * unbiased);
    }
}

void dd_global_pool(dd_dtype dtype, float *dst, const void *src, int n, int hw, int c)
{
    const float scale = 1.0f / (float)hw;
#pragma omp parallel for schedule(static)
    for (int i = 0; i < n; i++) {
        float *sum = dst + (size_t)i * (size_t)c;
        memset(sum, 0, (size_t)c * sizeof *sum);
        for (int p = 0; p < hw; p++) {
            const size_t row = ((size_t)i * (size_t)hw + (size_t)p) * (size_t)c;
            const float *f32 = (const float *)src + row;
            const uint16_t *bf16 = (const uint16_t *)src + row;
            for (int ch = 0; ch < c; ch++) {
                sum[ch] += dtype == DD_BF16 ? dd_bf16_to_f32(bf16[ch]) : f32[ch];
            }
        }
        for (int ch = 0; ch < c; ch++) {
            sum[ch] *= scale;
        }
    }
}

void dd_global_pool_backward(dd_dtype dtype, void *d_src, const float *d_dst, int n, int hw, int c)
{
    const float scale = 1.0f / (float)hw;
#pragma omp parallel for schedule(static)
    for (int i = 0; i < n * hw; i++) {
        const float *from = d_dst + (size_t)(i / hw) * (size_t)c;
        float *f32 = (float *)d_src + (size_t)i * (size_t)c;
        uint16_t *bf16 = (uint16_t *)d_src + (size_t)i * (size_t)c;
        for (int ch = 0; ch < c; ch++) {
            if (dtype == DD_BF16) {
                bf16[ch] = dd_f32_to_bf16(from[ch] * scale);
            } else {
                f32[ch] = from[ch] * scale;
            }
        }
    }
}

void dd_fold_batch_norm(float *weights, float *bias, const float *plain, const dd_batch_norm *n, int oc, size_t cols)
{
#pragma omp parallel for schedule(static)
    for (int o = 0; o < oc; o++) {
        const double gain = (double)n->gamma[o] / sqrt((double)n->variance[o] + (double)n->eps);
        bias[o] = (float)((double)n->beta[o] - (double)n->mean[o] * gain);
        for (size_t i = 0; i < cols; i++) {
            weights[(size_t)o * cols + i] = plain[(size_t)o * cols + i] * (float)gain;
        }
    }
}

void dd_sgd_step(float *p, float *m, const float *g, size_t count, const dd_sgd *sgd)
{
    const float lr = sgd->lr, momentum = sgd->momentum, decay = sgd->weight_decay, scale = sgd->scale;
    const float own = sgd->nesterov ? 1.0f : 0.0f, followed = sgd->nesterov ? momentum : 1.0f;
#pragma omp parallel for simd schedule(static) if (count > 1 << 16) /* waking threads costs more than a smaller block */
    for (size_t i = 0; i < count; i++) {
        const float d = g[i] * scale + decay * p[i], v = momentum * m[i] + d;
        m[i] = v;
        p[i] -= lr * (own * d + followed * v);
    }
}

/* Partial results of fixed parts, joined in order: bitwise identical for any number of threads. */
enum { PARTS = 256 };

double dd_sum_of_squares(const float *x, size_t count)
{
    double part[PARTS], sum = 0;
    const size_t length = (count + PARTS - 1) / PARTS;
#pragma omp parallel for schedule(static)
    for (int k = 0; k < PARTS; k++) {
        const size_t start = (size_t)k * length, stop = start + length < count ? start + length : count;
        double s[8] = {0};
        for (size_t i = start; i < stop; i++) {
            s[i & 7] += (double)x[i] * (double)x[i];
        }
        part[k] = ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
    }
    for (int k = 0; k < PARTS; k++) {
        sum += part[k];
    }
    return sum;
}
