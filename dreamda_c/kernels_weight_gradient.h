/* The gradient of a convolution's weights: for every place of the window a product of the source's rows, as that place sees them, with the
 * result's gradient. Part of kernels_impl.h, compiled once per instruction set.
 *
 * A row is a position of the result. Products go over rows, in steps of one row (f32) or of two (bf16, a unit is a pair):
 *
 *     Y: (oc / GRADIENT_COLS, steps, GRADIENT_COLS) units    the result's gradient of a stretch of rows, shared by all threads
 *     X: (channels / GRADIENT_ROWS, steps, GRADIENT_ROWS)    a few channels of the source at one place of the window; a thread's own
 *     sums: (kernel, kernel, ic, oc) floats                  added to the gradient, which is oihw, at the end
 *
 * A task is a place of the window and some channels, for a whole stretch. The order of summation depends on the shape alone, so the bits
 * depend neither on the tasks nor on the threads.
 */
#ifndef DD_KERNELS_WEIGHT_GRADIENT_H
#define DD_KERNELS_WEIGHT_GRADIENT_H

#include "kernels_vector.h"

#include <omp.h>

#define GRADIENT_COLS (2 * W)
#define GRADIENT_ROWS (W / 2) /* by two vectors of columns: enough accumulators to hide the latency of a product, and whole vectors of X */
#define GRADIENT_STEPS 128    /* of one product: its part of Y stays in L1 */
#define GRADIENT_STRETCH (512 * 1024) /* units of Y at most, unless GRADIENT_STEPS need more */

typedef struct {
    const char *src, *d_dst;
    uint32_t *y;
    float *sums;
    int h, w, ic, oh, ow, oc, kernel, stride, pad;
    int rows; /* of the batch's result */
} gradient_job;

/* A position of the result. */
typedef struct {
    int image, y, x;
} gradient_place;

INLINE void gradient_next(const gradient_job *job, gradient_place *at)
{
    if (++at->x == job->ow) {
        at->x = 0;
        if (++at->y == job->oh) {
            at->y = 0;
            at->image++;
        }
    }
}

/* The channels of the source that place (ky, kx) of the window sees from there; NULL beyond the image's border. */
INLINE const char *gradient_source(const gradient_job *job, const gradient_place *at, int ky, int kx, size_t size)
{
    const int y = at->y * job->stride + ky - job->pad, x = at->x * job->stride + kx - job->pad;
    if (y < 0 || y >= job->h || x < 0 || x >= job->w) {
        return NULL;
    }
    return job->src + (((size_t)at->image * (size_t)job->h + (size_t)y) * (size_t)job->w + (size_t)x) * (size_t)job->ic * size;
}

/* W units from channel c on: a row's elements, or pairs of two rows'. NULL is a row of zeros. */
INLINE vf gradient_units(const bool dot, const char *first, const char *second, size_t c)
{
#if DD_BF16_DOT
    if (dot) {
        __m512i low = first ? _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(first + 2 * c))) : _mm512_setzero_si512();
        __m512i high = second ? _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(second + 2 * c))) : _mm512_setzero_si512();
        return _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
#endif
    (void)dot, (void)second;
    return first ? load_f32(first + 4 * c) : set1(0.0f);
}

/* sums += X' Y over `steps`; rows of sums are oc apart. */
INLINE void gradient_product(const bool dot, float *sums, size_t oc, bool fresh, const uint32_t *x, const uint32_t *y, size_t steps)
{
    vf acc[GRADIENT_ROWS][2];
#pragma GCC unroll 8
    for (int i = 0; i < GRADIENT_ROWS; i++) {
        acc[i][0] = fresh ? set1(0.0f) : load_f32(sums + (size_t)i * oc);
        acc[i][1] = fresh ? set1(0.0f) : load_f32(sums + (size_t)i * oc + W);
    }
    for (size_t j = 0; j < steps; j++) {
        const vf y0 = load_f32(y + j * GRADIENT_COLS), y1 = load_f32(y + j * GRADIENT_COLS + W);
#pragma GCC unroll 8
        for (int i = 0; i < GRADIENT_ROWS; i++) {
            const vf a = broadcast(x + j * GRADIENT_ROWS + i);
            acc[i][0] = multiply_add(dot, acc[i][0], a, y0);
            acc[i][1] = multiply_add(dot, acc[i][1], a, y1);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < GRADIENT_ROWS; i++) {
        store_f32(sums + (size_t)i * oc, acc[i][0]);
        store_f32(sums + (size_t)i * oc + W, acc[i][1]);
    }
}

/* Step `step` of a stretch of `steps`, which begins at row `first`, into Y. */
INLINE void gradient_result_step(const bool dot, const gradient_job *job, int first, int steps, int step)
{
    const size_t pixel = (size_t)job->oc * (dot ? 2 : 4);
    const int row = first + (dot ? 2 : 1) * step;
    const char *one = job->d_dst + (size_t)row * pixel, *two = dot && row + 1 < job->rows ? one + pixel : NULL;
    for (int c = 0; c < job->oc; c += W) {
        uint32_t *to = job->y + ((size_t)(c / GRADIENT_COLS) * (size_t)steps + (size_t)step) * GRADIENT_COLS + c % GRADIENT_COLS;
        store_f32(to, gradient_units(dot, one, two, (size_t)c));
    }
}

/* X of `steps` steps from row `first` on: `channels` of them, from `channel` on. */
INLINE void gradient_window(const bool dot, const gradient_job *job, int first, int steps, int ky, int kx, int channel, int channels, uint32_t *x)
{
    const size_t size = dot ? 2 : 4;
    gradient_place at = {first / (job->oh * job->ow), first / job->ow % job->oh, first % job->ow};
    for (int j = 0; j < steps; j++) {
        const char *one = gradient_source(job, &at, ky, kx, size), *two = NULL;
        gradient_next(job, &at);
        if (dot) {
            two = first + 2 * j + 1 < job->rows ? gradient_source(job, &at, ky, kx, size) : NULL;
            gradient_next(job, &at);
        }
        for (int c = 0; c < channels; c += W) {
            const vf units = gradient_units(dot, one, two, (size_t)(channel + c));
            uint32_t pair[W];
            store_f32(pair, units);
            memcpy(x + ((size_t)(c / GRADIENT_ROWS) * (size_t)steps + (size_t)j) * GRADIENT_ROWS, pair, sizeof pair / 2);
            memcpy(x + ((size_t)(c / GRADIENT_ROWS + 1) * (size_t)steps + (size_t)j) * GRADIENT_ROWS, pair + GRADIENT_ROWS, sizeof pair / 2);
        }
    }
}

INLINE void gradient_task(const bool dot, const gradient_job *job, int first, int steps, int tap, int channel, int channels, uint32_t *x)
{
    const int pair = dot ? 2 : 1;
    float *sums = job->sums + ((size_t)tap * (size_t)job->ic + (size_t)channel) * (size_t)job->oc;
    for (int from = 0; from < steps; from += GRADIENT_STEPS) {
        const int count = steps - from < GRADIENT_STEPS ? steps - from : GRADIENT_STEPS;
        gradient_window(dot, job, first + pair * from, count, tap / job->kernel, tap % job->kernel, channel, channels, x);
        for (int panel = 0; panel < job->oc / GRADIENT_COLS; panel++) {
            const uint32_t *y = job->y + ((size_t)panel * (size_t)steps + (size_t)from) * GRADIENT_COLS;
            for (int c = 0; c < channels; c += GRADIENT_ROWS) {
                gradient_product(dot, sums + (size_t)c * (size_t)job->oc + (size_t)panel * GRADIENT_COLS, (size_t)job->oc, first + from == 0,
                                 x + (size_t)c * (size_t)count, y, (size_t)count);
            }
        }
    }
}

/* Whether a place of the window sees anything but the border. */
INLINE bool gradient_sees(int place, int pad, int stride, int in, int out)
{
    for (int i = 0; i < out; i++) {
        const int at = i * stride + place - pad;
        if (at >= 0 && at < in) {
            return true;
        }
    }
    return false;
}

/* gradient (oihw) += sums (hwio) for W output channels from o on. */
INLINE void gradient_add(const gradient_job *job, float *gradient, const bool *seen, int o)
{
    const size_t taps = (size_t)job->kernel * (size_t)job->kernel, oc = (size_t)job->oc, ic = (size_t)job->ic;
    for (size_t c = 0; c < ic; c++) {
        for (size_t tap = 0; tap < taps; tap++) {
            if (seen[tap]) {
                const float *from = job->sums + (tap * ic + c) * oc + (size_t)o;
                float *to = gradient + ((size_t)o * ic + c) * taps + tap;
                for (size_t i = 0; i < W; i++) {
                    to[i * ic * taps] += from[i];
                }
            }
        }
    }
}

INLINE int gradient_stretch(int oc)
{
    const int steps = GRADIENT_STRETCH / oc / GRADIENT_STEPS * GRADIENT_STEPS;
    return steps < GRADIENT_STEPS ? GRADIENT_STEPS : steps;
}

/* Channels of a task: so few that every thread has some tasks. */
INLINE int gradient_channels(int ic, int taps, int threads)
{
    int channels = 64;
    while (channels > 16 && (ic % channels || taps * (ic / channels) < 4 * threads)) {
        channels /= 2;
    }
    return channels;
}

static void weight_gradient(dd_dtype dtype, float *gradient, const void *src, const void *d_dst, int n, int h, int w, int ic, int oh, int ow, int oc,
                            int kernel, int stride, int pad, void *scratch)
{
    const int taps = kernel * kernel, stretch = gradient_stretch(oc), pair = dtype == DD_BF16 ? 2 : 1, rows = n * oh * ow;
    gradient_job job = {.src = src, .d_dst = d_dst, .sums = scratch, .h = h, .w = w, .ic = ic, .oh = oh, .ow = ow, .oc = oc, .kernel = kernel,
                        .stride = stride, .pad = pad, .rows = rows};
    job.y = (uint32_t *)scratch + (size_t)taps * (size_t)ic * (size_t)oc;
    uint32_t *windows = job.y + (size_t)stretch * (size_t)oc;
    bool seen[DD_WEIGHT_GRADIENT_TAPS];
    for (int tap = 0; tap < taps; tap++) {
        seen[tap] = gradient_sees(tap / kernel, pad, stride, h, oh) && gradient_sees(tap % kernel, pad, stride, w, ow);
    }
#pragma omp parallel
    {
        uint32_t *x = windows + (size_t)omp_get_thread_num() * 64 * GRADIENT_STEPS;
        const int channels = gradient_channels(ic, taps, omp_get_num_threads()), blocks = ic / channels;
        for (int first = 0; first < rows; first += pair * stretch) {
            const int left = (rows - first + pair - 1) / pair, steps = left < stretch ? left : stretch;
#pragma omp for schedule(static)
            for (int j = 0; j < steps; j++) {
#if DD_BF16_DOT
                if (dtype == DD_BF16) {
                    gradient_result_step(true, &job, first, steps, j);
                    continue;
                }
#endif
                gradient_result_step(false, &job, first, steps, j);
            }
#pragma omp for schedule(dynamic)
            for (int task = 0; task < taps * blocks; task++) {
                const int tap = task / blocks, channel = task % blocks * channels;
                if (!seen[tap]) {
                    continue;
                }
#if DD_BF16_DOT
                if (dtype == DD_BF16) {
                    gradient_task(true, &job, first, steps, tap, channel, channels, x);
                    continue;
                }
#endif
                gradient_task(false, &job, first, steps, tap, channel, channels, x);
            }
        }
#pragma omp for schedule(static)
        for (int o = 0; o < oc; o += W) {
            gradient_add(&job, gradient, seen, o);
        }
    }
}

static size_t weight_gradient_scratch(int ic, int oc, int kernel, int threads)
{
    return ((size_t)kernel * (size_t)kernel * (size_t)ic * (size_t)oc + (size_t)gradient_stretch(oc) * (size_t)oc +
            (size_t)threads * 64 * GRADIENT_STEPS) * sizeof(float);
}

#endif
