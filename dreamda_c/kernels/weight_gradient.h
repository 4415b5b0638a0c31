/* The gradient of a convolution's weights: for every place of the window, the product of the source rows that the place
 * sees with the result's gradient. Part of kernels/template.h, compiled once per instruction set.
 *
 * A row is a position of the result in one image. The rows of a position are next to each other, for all images, so
 * that a place that sees the border from this position skips them. Products sum over rows, in steps of one row (f32) or
 * of the rows of two images (bf16, a unit is a pair):
 *
 *     Y: (oc / GRADIENT_COLS, steps, GRADIENT_COLS) units    the result's gradient of some rows, shared by threads
 *     X: (channels / GRADIENT_ROWS, steps, GRADIENT_ROWS)    a few channels of the source at one place of the window; a
 *                                                            thread's own, and its blocks a line further apart, so
 *                                                            that they do not meet in one set of the cache
 *     sums: (kernel, kernel, ic, oc) floats                  added to the gradient, which is oihw, at the end
 *
 * A task is a place of the window and some channels, for a whole stretch. The order of summation depends on the shape
 * alone, so results are bitwise identical for any number of tasks and threads.
 */
#ifndef DD_KERNELS_WEIGHT_GRADIENT_H
#define DD_KERNELS_WEIGHT_GRADIENT_H

#include "kernels/table.h"
#include "kernels/vector.h"

#include <omp.h>

#define GRADIENT_COLS (2 * DD_VECTOR)
#define GRADIENT_ROWS \
    (DD_VECTOR /      \
     2) /* by two vectors of columns: enough accumulators to hide the latency of a product, and whole vectors of X */
#define GRADIENT_STEPS 128    /* of one product: its part of Y stays in L1 */
#define GRADIENT_STRETCH (512 * 1024) /* units of Y at most, unless GRADIENT_STEPS need more */

typedef struct {
    dd_window window;
    const char *src, *d_dst;
    uint32_t *y;
    float *sums;
    int images; /* steps of one position */
} gradient_job;

/* Positions of the result, along one axis, from which a place of the window sees more than the border. */
typedef struct {
    int first, end;
} gradient_range;

INLINE gradient_range gradient_seen(int place, int pad, int stride, int in, int out)
{
    gradient_range r = {0, out};
    while (r.first < r.end && r.first * stride + place - pad < 0) {
        r.first++;
    }
    while (r.end > r.first && (r.end - 1) * stride + place - pad >= in) {
        r.end--;
    }
    return r;
}

/* DD_VECTOR units from channel c on: a row's elements, or pairs of two rows'. NULL is a row of zeros. */
INLINE vf gradient_units(const bool dot, const char *first, const char *second, size_t c)
{
#if DD_BF16_DOT
    if (dot) {
        __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(first + 2 * c)));
        __m512i high = second ? _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(second + 2 * c)))
                              : _mm512_setzero_si512();
        return _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
#endif
    (void)dot, (void)second;
    return load_f32(first + 4 * c);
}

/* sums += X' Y over `steps`; rows of sums are oc apart. */
INLINE void gradient_product(const bool dot, float *sums, size_t oc, bool fresh, const uint32_t *x, const uint32_t *y,
                             size_t steps)
{
    vf acc[GRADIENT_ROWS][2];
#pragma GCC unroll 8
    for (int i = 0; i < GRADIENT_ROWS; i++) {
        acc[i][0] = fresh ? set1(0.0f) : load_f32(sums + (size_t)i * oc);
        acc[i][1] = fresh ? set1(0.0f) : load_f32(sums + (size_t)i * oc + DD_VECTOR);
    }
    for (size_t j = 0; j < steps; j++) {
        const vf y0 = load_f32(y + j * GRADIENT_COLS), y1 = load_f32(y + j * GRADIENT_COLS + DD_VECTOR);
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
        store_f32(sums + (size_t)i * oc + DD_VECTOR, acc[i][1]);
    }
}

/* Units from block to block of X, and units of X for a number of channels. */
INLINE size_t gradient_block(int steps) { return (size_t)steps * GRADIENT_ROWS + 16; }
INLINE size_t gradient_blocks(int channels, int steps)
{
    return (size_t)(channels / GRADIENT_ROWS) * gradient_block(steps);
}

/* Step j of `steps`, DD_VECTOR units from channel c of a task on, into X. */
INLINE void gradient_store(uint32_t *x, int steps, int j, int c, vf units)
{
    uint32_t *to = x + gradient_blocks(c, steps) + (size_t)j * GRADIENT_ROWS;
    store_halves(to, to + gradient_block(steps), units);
}

/* Step `step` of a stretch of `steps`, which begins at step `first` of all, into Y. */
INLINE void gradient_result_step(const bool dot, const gradient_job *job, int first, int steps, int step)
{
    const dd_window *s = &job->window;
    const size_t pixel = (size_t)s->oc * (dot ? 2 : 4), image_bytes = (size_t)s->oh * (size_t)s->ow * pixel;
    const int image = (first + step) % job->images * (dot ? 2 : 1);
    const char *one = job->d_dst + (size_t)image * image_bytes + (size_t)((first + step) / job->images) * pixel;
    const char *two = dot && image + 1 < s->n ? one + image_bytes : NULL;
    for (int c = 0; c < s->oc; c += DD_VECTOR) {
        uint32_t *to = job->y + ((size_t)(c / GRADIENT_COLS) * (size_t)steps + (size_t)step) * GRADIENT_COLS +
                       c % GRADIENT_COLS;
        store_f32(to, gradient_units(dot, one, two, (size_t)c));
    }
}

/* X of `count` steps from `from` on, all of which place (ky, kx) of the window sees: `channels` of them, from `channel`
   on. */
INLINE void gradient_source(const bool dot, const gradient_job *job, int from, int count, int ky, int kx, int channel,
                            int channels, uint32_t *x)
{
    const dd_window *s = &job->window;
    const size_t pixel = (size_t)s->ic * (dot ? 2 : 4), image_bytes = (size_t)s->h * (size_t)s->w * pixel;
    for (int j = 0; j < count; j++) {
        const int position = (from + j) / job->images, image = (from + j) % job->images * (dot ? 2 : 1);
        const int iy = position / s->ow * s->stride + ky - s->pad, ix = position % s->ow * s->stride + kx - s->pad;
        const char *one = job->src + (size_t)image * image_bytes + ((size_t)iy * (size_t)s->w + (size_t)ix) * pixel;
        const char *two = dot && image + 1 < s->n ? one + image_bytes : NULL;
        for (int c = 0; c < channels; c += DD_VECTOR) {
            gradient_store(x, count, j, c, gradient_units(dot, one, two, (size_t)(channel + c)));
        }
    }
}

INLINE void gradient_task(const bool dot, const gradient_job *job, int first, int steps, int tap, int channel,
                          int channels, uint32_t *x)
{
    const dd_window *s = &job->window;
    const int ky = tap / s->kernel, kx = tap % s->kernel;
    const gradient_range rows = gradient_seen(ky, s->pad, s->stride, s->h, s->oh),
                         cols = gradient_seen(kx, s->pad, s->stride, s->w, s->ow);
    float *sums = job->sums + ((size_t)tap * (size_t)s->ic + (size_t)channel) * (size_t)s->oc;
    const int begin = (rows.first * s->ow + cols.first) * job->images; /* the first step that the place sees */
    const int lines = cols.first == 0 && cols.end == s->ow ? rows.end - rows.first : 1; /* of the result at once */
    for (int row = rows.first; row < rows.end; row += lines) {
        const int low = (row * s->ow + cols.first) * job->images,
                  high = ((row + lines - 1) * s->ow + cols.end) * job->images;
        const int end = high < first + steps ? high : first + steps;
        for (int from = low > first ? low : first; from < end; from += GRADIENT_STEPS) {
            const int count = end - from < GRADIENT_STEPS ? end - from : GRADIENT_STEPS;
            gradient_source(dot, job, from, count, ky, kx, channel, channels, x);
            for (int panel = 0; panel < s->oc / GRADIENT_COLS; panel++) {
                const uint32_t *y = job->y + ((size_t)panel * (size_t)steps + (size_t)(from - first)) * GRADIENT_COLS;
                for (int c = 0; c < channels; c += GRADIENT_ROWS) {
                    gradient_product(dot, sums + (size_t)c * (size_t)s->oc + (size_t)panel * GRADIENT_COLS,
                                     (size_t)s->oc, from == begin, x + gradient_blocks(c, count), y, (size_t)count);
                }
            }
        }
    }
}

/* gradient (oihw) += sums (hwio) for DD_VECTOR output channels from o on. */
INLINE void gradient_add(const gradient_job *job, float *gradient, const bool *seen, int o)
{
    const size_t taps = (size_t)job->window.kernel * (size_t)job->window.kernel, oc = (size_t)job->window.oc,
                 ic = (size_t)job->window.ic;
    for (size_t c = 0; c < ic; c++) {
        for (size_t tap = 0; tap < taps; tap++) {
            if (seen[tap]) {
                const float *from = job->sums + (tap * ic + c) * oc + (size_t)o;
                float *to = gradient + ((size_t)o * ic + c) * taps + tap;
                for (size_t i = 0; i < DD_VECTOR; i++) {
                    to[i * ic * taps] += from[i];
                }
            }
        }
    }
}

/* Number of steps of a stretch whose steps have `units` units each. */
INLINE int gradient_stretch(int units)
{
    const int steps = GRADIENT_STRETCH / units / GRADIENT_STEPS * GRADIENT_STEPS;
    return steps < GRADIENT_STEPS ? GRADIENT_STEPS : steps;
}

/* Number of channels per task: small enough that every thread has tasks. */
INLINE int gradient_channels(int ic, int tasks, int threads)
{
    int channels = 64;
    while (channels > 16 && (ic % channels || tasks * (ic / channels) < 4 * threads)) {
        channels /= 2;
    }
    return channels;
}

static void plain_gradient(dd_dtype dtype, float *gradient, const void *src, const void *d_dst, const dd_window *s,
                           void *scratch)
{
    const int taps = s->kernel * s->kernel, stretch = gradient_stretch(s->oc),
              images = dtype == DD_BF16 ? (s->n + 1) / 2 : s->n;
    const int all = s->oh * s->ow * images;
    gradient_job job = {.window = *s, .src = src, .d_dst = d_dst, .sums = scratch, .images = images};
    job.y = (uint32_t *)scratch + (size_t)taps * (size_t)s->ic * (size_t)s->oc;
    uint32_t *sources = job.y + (size_t)stretch * (size_t)s->oc;
    bool seen[DD_WEIGHT_GRADIENT_TAPS];
    for (int tap = 0; tap < taps; tap++) {
        const gradient_range rows = gradient_seen(tap / s->kernel, s->pad, s->stride, s->h, s->oh);
        const gradient_range cols = gradient_seen(tap % s->kernel, s->pad, s->stride, s->w, s->ow);
        seen[tap] = rows.first < rows.end && cols.first < cols.end;
    }
#pragma omp parallel
    {
        uint32_t *x = sources + (size_t)omp_get_thread_num() * gradient_blocks(64, GRADIENT_STEPS);
        const int channels = gradient_channels(s->ic, taps, omp_get_num_threads()), blocks = s->ic / channels;
        for (int first = 0; first < all; first += stretch) {
            const int steps = all - first < stretch ? all - first : stretch;
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
        for (int o = 0; o < s->oc; o += DD_VECTOR) {
            gradient_add(&job, gradient, seen, o);
        }
    }
}

static size_t plain_gradient_scratch(const dd_window *s, int threads)
{
    return ((size_t)s->kernel * (size_t)s->kernel * (size_t)s->ic * (size_t)s->oc +
            (size_t)gradient_stretch(s->oc) * (size_t)s->oc + (size_t)threads * gradient_blocks(64, GRADIENT_STEPS)) *
           sizeof(float);
}

#endif
