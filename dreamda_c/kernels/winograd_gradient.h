/* The gradient of a 3 x 3 convolution's weights by Winograd's F(3 x 3, 2 x 2): 16 multiplications instead of 36 for
 * the sum over the window. Part of kernels/template.h, compiled once per instruction set.
 *
 * kernels/winograd.h computes A' ((G g G') o (B' d B)) A of a tile's source d; its derivative by the filter g is G'
 * (sum over all tiles of (B' d B) o (A y A')) G, where y is the gradient of the tile's result. The sum is a product of
 * 16 pairs of matrices over tiles, of the kind of kernels/weight_gradient.h, where a step is a tile:
 *
 *     Y: (oc / GRADIENT_COLS, 16, steps, GRADIENT_COLS)      A y A' of some tiles, shared by threads; a step apart, so
 *                                                            that the 16 do not meet in one set of the cache
 *     X: (4, channels / GRADIENT_ROWS, steps, GRADIENT_ROWS) a line of B' d B, a few channels of it; a thread's own
 *     sums: (16, ic, oc) floats                              G' (..) G of them is added to the oihw gradient
 *
 * A task is a line of the 16 and some channels, for a whole stretch. Results are bitwise identical for any number of
 * tasks and threads.
 */
#ifndef DD_KERNELS_WINOGRAD_GRADIENT_H
#define DD_KERNELS_WINOGRAD_GRADIENT_H

#include "kernels/weight_gradient.h"
#include "kernels/winograd.h"

typedef struct {
    dd_window window;
    const float *src, *d_dst;
    float *y, *sums, *zeros; /* zeros: the channels of a border position */
    int across, down; /* tiles in a line, and lines of them in an image */
} winograd_gradient_job;

/* y -> A y */
INLINE void winograd_spread(const vf y[2], vf x[4])
{
    x[0] = y[0];
    x[1] = add(y[0], y[1]);
    x[2] = sub(y[0], y[1]);
    x[3] = sub(set1(0.0f), y[1]);
}

/* m -> G' m */
INLINE void winograd_gather(const vf m[4], vf g[3])
{
    const vf even = mul(set1(0.5f), add(m[1], m[2]));
    g[0] = add(m[0], even);
    g[1] = mul(set1(0.5f), sub(m[1], m[2]));
    g[2] = add(even, m[3]);
}

/* Position (y, x) of an image of h x w and `channels`; zeros beyond its border. */
INLINE const float *winograd_at(const winograd_gradient_job *job, const float *image, int h, int w, int channels, int y,
                                int x)
{
    const bool inside = y >= 0 && y < h && x >= 0 && x < w;
    return inside ? image + ((size_t)y * (size_t)w + (size_t)x) * (size_t)channels : job->zeros;
}

INLINE size_t winograd_gradient_plane(int steps) { return (size_t)(steps + 1) * GRADIENT_COLS; }

/* Tile `first` + `step` of all, step `step` of a stretch of `steps`, into Y. */
INLINE void winograd_gradient_result(const winograd_gradient_job *job, int first, int steps, int step)
{
    const dd_window *s = &job->window;
    const int tile = first + step, y = tile / job->across % job->down * 2, x = tile % job->across * 2;
    const float *image = job->d_dst +
                         (size_t)(tile / job->across / job->down) * (size_t)s->oh * (size_t)s->ow * (size_t)s->oc;
    const size_t plane = winograd_gradient_plane(steps);
    const float *at[2][2];
    for (int i = 0; i < 4; i++) {
        at[i / 2][i % 2] = winograd_at(job, image, s->oh, s->ow, s->oc, y + i / 2, x + i % 2);
    }
    for (int c = 0; c < s->oc; c += DD_VECTOR) {
        float *to = job->y + (size_t)(c / GRADIENT_COLS) * 16 * plane + (size_t)step * GRADIENT_COLS +
                    c % GRADIENT_COLS;
        vf half[2][4];
#pragma GCC unroll 2
        for (int k = 0; k < 2; k++) {
            const vf line[2] = {load_f32(at[k][0] + c), load_f32(at[k][1] + c)};
            winograd_spread(line, half[k]);
        }
#pragma GCC unroll 4
        for (int l = 0; l < 4; l++) {
            const vf column[2] = {half[0][l], half[1][l]};
            vf whole[4];
            winograd_spread(column, whole);
#pragma GCC unroll 4
            for (int k = 0; k < 4; k++) {
                store_f32(to + (size_t)(4 * k + l) * plane, whole[k]);
            }
        }
    }
}

/* X of `count` tiles from `first` on: line `k` of their B' d B, `channels` of it from `channel` on. */
INLINE void winograd_gradient_source(const int k, const winograd_gradient_job *job, int first, int count, int channel,
                                     int channels, float *x)
{
    static const int plus[4] = {0, 1, 2, 1},
                     other[4] = {2, 2, 1, 3}; /* lines of d whose sum or difference is a line of B' d */
    const dd_window *s = &job->window;
    for (int j = 0; j < count; j++) {
        const int tile = first + j, y = tile / job->across % job->down * 2 - 1, left = tile % job->across * 2 - 1;
        const float *image = job->src +
                             (size_t)(tile / job->across / job->down) * (size_t)s->h * (size_t)s->w * (size_t)s->ic;
        const float *at[2][4];
        for (int l = 0; l < 4; l++) {
            at[0][l] = winograd_at(job, image, s->h, s->w, s->ic, y + plus[k], left + l) + channel;
            at[1][l] = winograd_at(job, image, s->h, s->w, s->ic, y + other[k], left + l) + channel;
        }
        for (int c = 0; c < channels; c += DD_VECTOR) {
            vf line[4];
#pragma GCC unroll 4
            for (int l = 0; l < 4; l++) {
                const vf one = load_f32(at[0][l] + c), two = load_f32(at[1][l] + c);
                line[l] = k == 1 ? add(one, two) : sub(one, two);
            }
            winograd_in(false, line);
#pragma GCC unroll 4
            for (int l = 0; l < 4; l++) {
                gradient_store((uint32_t *)x + (size_t)l * gradient_blocks(channels, count), count, j, c, line[l]);
            }
        }
    }
}

INLINE void winograd_gradient_task(const int k, const winograd_gradient_job *job, int first, int steps, int channel,
                                   int channels, float *x)
{
    const dd_window *s = &job->window;
    const size_t ic = (size_t)s->ic, oc = (size_t)s->oc;
    for (int from = 0; from < steps; from += GRADIENT_STEPS) {
        const int count = steps - from < GRADIENT_STEPS ? steps - from : GRADIENT_STEPS;
        winograd_gradient_source(k, job, first + from, count, channel, channels, x);
        for (size_t panel = 0; panel < oc / GRADIENT_COLS; panel++) {
            for (size_t l = 0; l < 4; l++) {
                const size_t point = (size_t)(4 * k) + l;
                const float *y = job->y + (panel * 16 + point) * winograd_gradient_plane(steps) +
                                 (size_t)from * GRADIENT_COLS;
                float *sums = job->sums + (point * ic + (size_t)channel) * oc + panel * GRADIENT_COLS;
                for (int c = 0; c < channels; c += GRADIENT_ROWS) {
                    const float *rows = x + l * gradient_blocks(channels, count) + gradient_blocks(c, count);
                    gradient_product(false, sums + (size_t)c * oc, oc, first + from == 0, (const uint32_t *)rows,
                                     (const uint32_t *)y, (size_t)count);
                }
            }
        }
    }
}

/* gradient (oihw) += G' sums G for DD_VECTOR output channels from o on. */
INLINE void winograd_gradient_add(const winograd_gradient_job *job, float *gradient, int o)
{
    const size_t ic = (size_t)job->window.ic, oc = (size_t)job->window.oc;
    for (size_t c = 0; c < ic; c++) {
        vf half[4][3];
        float g[9][DD_VECTOR];
#pragma GCC unroll 4
        for (size_t k = 0; k < 4; k++) {
            vf line[4];
#pragma GCC unroll 4
            for (size_t l = 0; l < 4; l++) {
                line[l] = load_f32(job->sums + ((4 * k + l) * ic + c) * oc + (size_t)o);
            }
            winograd_gather(line, half[k]);
        }
#pragma GCC unroll 3
        for (int l = 0; l < 3; l++) {
            const vf column[4] = {half[0][l], half[1][l], half[2][l], half[3][l]};
            vf whole[3];
            winograd_gather(column, whole);
#pragma GCC unroll 3
            for (int k = 0; k < 3; k++) {
                store_f32(g[3 * k + l], whole[k]);
            }
        }
        for (size_t first = 0; first < DD_VECTOR;
             first += 8) { /* filters are nine floats: eight at once, and the last */
            float *to = gradient + (((size_t)o + first) * ic + c) * 9;
            __m256 filters[8];
#pragma GCC unroll 8
            for (int tap = 0; tap < 8; tap++) {
                filters[tap] = _mm256_loadu_ps(g[tap] + first);
            }
            transpose8(filters);
#pragma GCC unroll 8
            for (size_t i = 0; i < 8; i++) {
                float *filter = to + i * ic * 9;
                _mm256_storeu_ps(filter, _mm256_add_ps(_mm256_loadu_ps(filter), filters[i]));
                filter[8] += g[8][first + i];
            }
        }
    }
}

static void winograd_gradient(float *gradient, const void *src, const void *d_dst, const dd_window *s, void *scratch)
{
    winograd_gradient_job job = {
        .window = *s, .src = src, .d_dst = d_dst, .sums = scratch, .across = (s->ow + 1) / 2, .down = (s->oh + 1) / 2};
    const int tiles = s->n * job.down * job.across, stretch = gradient_stretch(16 * s->oc);
    job.y = job.sums + (size_t)16 * (size_t)s->ic * (size_t)s->oc;
    job.zeros = job.y + (size_t)16 * (size_t)(s->oc / GRADIENT_COLS) * winograd_gradient_plane(stretch);
    memset(job.zeros, 0, (size_t)(s->ic > s->oc ? s->ic : s->oc) * sizeof *job.zeros);
    float *sources = job.zeros + (s->ic > s->oc ? s->ic : s->oc);
#pragma omp parallel
    {
        float *x = sources + (size_t)omp_get_thread_num() * 4 * gradient_blocks(64, GRADIENT_STEPS);
        const int channels = gradient_channels(s->ic, 4, omp_get_num_threads()), blocks = s->ic / channels;
        for (int first = 0; first < tiles; first += stretch) {
            const int steps = tiles - first < stretch ? tiles - first : stretch;
#pragma omp for schedule(static)
            for (int j = 0; j < steps; j++) {
                winograd_gradient_result(&job, first, steps, j);
            }
#pragma omp for schedule(dynamic)
            for (int task = 0; task < 4 * blocks; task++) {
                const int channel = task % blocks * channels;
                switch (task / blocks) { /* constants, so that each line has loads of its own */
                case 0: winograd_gradient_task(0, &job, first, steps, channel, channels, x); break;
                case 1: winograd_gradient_task(1, &job, first, steps, channel, channels, x); break;
                case 2: winograd_gradient_task(2, &job, first, steps, channel, channels, x); break;
                default: winograd_gradient_task(3, &job, first, steps, channel, channels, x);
                }
            }
        }
#pragma omp for schedule(static)
        for (int o = 0; o < s->oc; o += DD_VECTOR) {
            winograd_gradient_add(&job, gradient, o);
        }
    }
}

static size_t winograd_gradient_scratch(const dd_window *s, int threads)
{
    const size_t planes = 16 * (size_t)(s->oc / GRADIENT_COLS) * winograd_gradient_plane(gradient_stretch(16 * s->oc));
    const size_t zeros = (size_t)(s->ic > s->oc ? s->ic : s->oc);
    return (16 * (size_t)s->oc * (size_t)s->ic + planes + zeros +
            (size_t)threads * 4 * gradient_blocks(64, GRADIENT_STEPS)) *
           sizeof(float);
}

/* Whether to use this form: the plain one skips the border, and small images consist mostly of border. */
INLINE bool gradient_by_winograd(dd_dtype dtype, const dd_window *s)
{
    return dtype == DD_F32 && s->kernel == 3 && s->stride == 1 && s->pad == 1 && s->oh * s->ow > 4;
}

static void weight_gradient(dd_dtype dtype, float *gradient, const void *src, const void *d_dst, const dd_window *s,
                            void *scratch)
{
    if (gradient_by_winograd(dtype, s)) {
        winograd_gradient(gradient, src, d_dst, s, scratch);
    } else {
        plain_gradient(dtype, gradient, src, d_dst, s, scratch);
    }
}

static size_t weight_gradient_scratch(dd_dtype dtype, const dd_window *s, int threads)
{
    return gradient_by_winograd(dtype, s) ? winograd_gradient_scratch(s, threads) : plain_gradient_scratch(s, threads);
}

#endif
