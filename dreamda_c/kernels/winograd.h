/* 3 x 3 convolutions by Winograd's F(2 x 2, 3 x 3) (Lavin & Gray, 2015): 16 multiplications instead of 36 for the sum
 * over the window. Part of kernels/template.h, compiled once per instruction set.
 *
 * A tile is 4 x 4 positions of the source around 2 x 2 of the result. For every tile, B' d B gives 16 numbers per
 * channel (V). 16 matrix products multiply them by the transformed weights U; A' (..) A of their sums is the result. A
 * task is a group of neighbouring tiles of the batch:
 *
 *     V: (16, tiles, ic) of the data's type          filled once per task, read once per panel: L2 and L3
 *     U: (panels, 16, steps, WIN_COLS) units         a panel: WIN_COLS output channels; a unit: a float or two bf16
 *     M: (16, tiles, WIN_COLS) floats                one panel's sums, in L2; transformed back before the next panel
 *
 * `up`: the window slides over the source enlarged twice by nearest neighbours, which is never stored. The middle two
 * of a tile's four lines are the same line of the source, so their difference is zero, and 9 of the 16 products are
 * left: in both directions lines 0, 1 and 3.
 *
 * A tile's result depends only on its own window. Rounding V and U to bf16 costs about twice the error of
 * rounding plain weights.
 *
 *     winograd(DD_BF16, &(dd_winograd_call){.dst = dst, .src = src, .weights = u, ...});
 */
#ifndef DD_KERNELS_WINOGRAD_H
#define DD_KERNELS_WINOGRAD_H

#include "kernels/table.h"
#include "kernels/vector.h"

#include <omp.h>

#define WIN_COLS (2 * DD_VECTOR) /* output channels of a panel */
#if DD_VECTOR == 16
#define WIN_ROWS 12 /* tiles of a micro-kernel: 2 WIN_ROWS accumulators, all registers but the operands' */
#else
#define WIN_ROWS 6
#endif
#define WIN_TASK_TILES 48 /* tiles of a task: U is read once for all of them */

/* M[0 .. m) = V[0 .. m) U: rows of V are `steps` units apart. */
INLINE void winograd_product(const bool dot, const int m, float *sums, const uint32_t *v, const uint32_t *u,
                             size_t steps)
{
    vf acc[WIN_ROWS][2];
#pragma GCC unroll 12
    for (int i = 0; i < m; i++) {
        acc[i][0] = acc[i][1] = set1(0.0f);
    }
    for (size_t j = 0; j < steps; j++) {
        vf u0 = load_f32(u + j * WIN_COLS), u1 = load_f32(u + j * WIN_COLS + DD_VECTOR);
#pragma GCC unroll 12
        for (int i = 0; i < m; i++) {
            vf a = broadcast(v + (size_t)i * steps + j);
            acc[i][0] = multiply_add(dot, acc[i][0], a, u0);
            acc[i][1] = multiply_add(dot, acc[i][1], a, u1);
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < m; i++) {
        store_f32(sums + i * WIN_COLS, acc[i][0]);
        store_f32(sums + i * WIN_COLS + DD_VECTOR, acc[i][1]);
    }
}

/* x -> B' x: four lines, or the three of the source that they repeat to the three that are left. */
INLINE void winograd_in(const bool up, vf x[4])
{
    if (up) {
        x[0] = sub(x[0], x[1]);
        x[2] = sub(x[1], x[2]);
        x[1] = add(x[1], x[1]);
        return;
    }
    vf first = sub(x[0], x[2]), second = add(x[1], x[2]), third = sub(x[2], x[1]);
    x[3] = sub(x[1], x[3]);
    x[0] = first;
    x[1] = second;
    x[2] = third;
}

/* m -> A' m: the four or three lines of a tile's sums to two of the result. */
INLINE void winograd_out(const bool up, const vf m[4], vf result[2])
{
    result[0] = up ? add(m[0], m[1]) : add(add(m[0], m[1]), m[2]);
    result[1] = up ? sub(m[1], m[2]) : sub(sub(m[1], m[2]), m[3]);
}

typedef struct {
    char *dst;
    const char *src, *add;
    const uint32_t *u;
    const float *bias;
    bool relu;
    int h, w, ic, oh, ow, oc, across, down; /* tiles in a line, and lines of them in an image */
} winograd_job;

/* V of `count` tiles from `first` on. */
INLINE void winograd_source(const bool up, const dd_dtype t, const winograd_job *job, int first, int count, char *v)
{
    const int lines = up ? 3 : 4, stride = up ? 1 : 2;
    const size_t pixel = (size_t)job->ic * dd_dtype_size(t);
    for (int i = 0; i < count; i++) {
        const int tile = first + i, y = tile / job->across % job->down * stride, x = tile % job->across * stride;
        const char *image = job->src +
                            (size_t)(tile / job->across / job->down) * (size_t)job->h * (size_t)job->w * pixel;
        for (int c = 0; c < job->ic; c += DD_VECTOR) {
            vf d[4][4];
#pragma GCC unroll 4
            for (int k = 0; k < lines; k++) {
#pragma GCC unroll 4
                for (int l = 0; l < lines; l++) {
                    const int yy = y + k - 1, xx = x + l - 1;
                    const bool inside = yy >= 0 && yy < job->h && xx >= 0 && xx < job->w;
                    d[k][l] = inside ? load(t, image + ((size_t)yy * (size_t)job->w + (size_t)xx) * pixel, (size_t)c)
                                     : set1(0.0f);
                }
                winograd_in(up, d[k]);
            }
#pragma GCC unroll 4
            for (int l = 0; l < lines; l++) {
                vf column[4];
#pragma GCC unroll 4
                for (int k = 0; k < lines; k++) {
                    column[k] = d[k][l];
                }
                winograd_in(up, column);
#pragma GCC unroll 4
                for (int k = 0; k < lines; k++) {
                    char *to = v + ((size_t)(lines * k + l) * (size_t)count + (size_t)i) * pixel;
                    store(t, to, (size_t)c, column[k]);
                }
            }
        }
    }
}

/* The results of one panel: A' M A, bias, residual, ReLU. */
INLINE void winograd_result(const bool up, const dd_dtype t, const winograd_job *job, int first, int count, int panel,
                            const float *sums)
{
    const int lines = up ? 3 : 4;
    const size_t pixel = (size_t)job->oc * dd_dtype_size(t);
    for (int i = 0; i < count; i++) {
        const int tile = first + i, y = tile / job->across % job->down * 2, x = tile % job->across * 2;
        const size_t row = (size_t)(tile / job->across / job->down) * (size_t)job->oh * (size_t)job->ow;
        for (int c = 0; c < WIN_COLS; c += DD_VECTOR) {
            const float *from = sums + (size_t)i * WIN_COLS + (size_t)c;
            const size_t channel = (size_t)panel * WIN_COLS + (size_t)c;
            const vf bias = job->bias ? load_f32(job->bias + channel) : set1(0.0f);
            vf half[2][4];
#pragma GCC unroll 4
            for (int l = 0; l < lines; l++) {
                vf m[4], both[2];
#pragma GCC unroll 4
                for (int k = 0; k < lines; k++) {
                    m[k] = load_f32(from + (size_t)(lines * k + l) * (size_t)count * WIN_COLS);
                }
                winograd_out(up, m, both);
                half[0][l] = both[0];
                half[1][l] = both[1];
            }
#pragma GCC unroll 2
            for (int k = 0; k < 2; k++) {
                vf result[2];
                winograd_out(up, half[k], result);
#pragma GCC unroll 2
                for (int l = 0; l < 2; l++) {
                    if (y + k < job->oh && x + l < job->ow) {
                        const size_t at = (row + (size_t)(y + k) * (size_t)job->ow + (size_t)(x + l)) * pixel;
                        vf sum = add(result[l], bias);
                        if (job->add) {
                            sum = add(sum, load(t, job->add + at, channel));
                        }
                        store(t, job->dst + at, channel, job->relu ? larger(set1(0.0f), sum) : sum);
                    }
                }
            }
        }
    }
}

/* Bytes of V and of M for one thread. */
INLINE size_t winograd_v_bytes(dd_dtype t, int ic)
{
    return (size_t)16 * WIN_TASK_TILES * (size_t)ic * dd_dtype_size(t);
}
INLINE size_t winograd_thread_bytes(dd_dtype t, int ic)
{
    return winograd_v_bytes(t, ic) + (size_t)16 * WIN_TASK_TILES * WIN_COLS * sizeof(float);
}

INLINE void winograd_task(const bool dot, const bool up, const dd_dtype t, const winograd_job *job, int first,
                          int count, char *own)
{
    const int points = dd_winograd_points(up);
    const size_t steps = (size_t)(dot ? job->ic / 2 : job->ic);
    uint32_t *v = (uint32_t *)(void *)own;
    float *sums = (float *)(void *)(own + winograd_v_bytes(t, job->ic));
    winograd_source(up, t, job, first, count, own);
    for (int panel = 0; panel < job->oc / WIN_COLS; panel++) {
        for (int p = 0; p < points; p++) {
            const uint32_t *u = job->u + ((size_t)panel * (size_t)points + (size_t)p) * steps * WIN_COLS,
                           *rows = v + (size_t)p * (size_t)count * steps;
            float *to = sums + (size_t)p * (size_t)count * WIN_COLS;
            int i = 0;
            for (; i + WIN_ROWS <= count; i += WIN_ROWS) {
                winograd_product(dot, WIN_ROWS, to + i * WIN_COLS, rows + (size_t)i * steps, u, steps);
            }
            for (; i + 4 <= count; i += 4) {
                winograd_product(dot, 4, to + i * WIN_COLS, rows + (size_t)i * steps, u, steps);
            }
            for (; i < count; i++) {
                winograd_product(dot, 1, to + i * WIN_COLS, rows + (size_t)i * steps, u, steps);
            }
        }
        winograd_result(up, t, job, first, count, panel, sums);
    }
}

/* Tiles [begin, end) of the batch. */
static void winograd_tiles(dd_dtype dtype, bool up, const winograd_job *job, int begin, int end, char *scratch)
{
    const int tiles = end - begin, threads = omp_get_max_threads();
    /* The same number of tasks for every thread, each of whole micro-kernels. */
    const int rounds = (tiles - 1) / (threads * WIN_TASK_TILES) + 1, share = (tiles - 1) / (threads * rounds) + 1;
    const int size = (share + WIN_ROWS - 1) / WIN_ROWS * WIN_ROWS;
#pragma omp parallel
    {
        char *own = scratch + (size_t)omp_get_thread_num() * winograd_thread_bytes(dtype, job->ic);
#pragma omp for schedule(dynamic)
        for (int first = begin; first < end; first += size) {
            const int count = end - first < size ? end - first : size;
#if DD_BF16_DOT
            if (dtype == DD_BF16 && up) {
                winograd_task(true, true, DD_BF16, job, first, count, own);
                continue;
            }
            if (dtype == DD_BF16) {
                winograd_task(true, false, DD_BF16, job, first, count, own);
                continue;
            }
#endif
            if (up) {
                winograd_task(false, true, DD_F32, job, first, count, own);
            } else {
                winograd_task(false, false, DD_F32, job, first, count, own);
            }
        }
    }
}

/* Of the lines that an in-place convolution copies, to a whole number of cache lines. */
INLINE size_t winograd_copy_bytes(dd_dtype t, int ic, int width)
{
    return (5 * (size_t)width * (size_t)ic * dd_dtype_size(t) + 63) / 64 * 64;
}

/* In place, for at most half as many output channels and an even height. Lines of tiles, of all images, write over
   source lines [s, e) at most while lines [s, e) of tiles read source lines from 2 s - 1 on: nothing is lost as long as
   e < 2 s. The first two lines read a copy. */
static void winograd_in_place(dd_dtype dtype, winograd_job *job, int n, char *scratch)
{
    const char *src = job->src;
    const size_t line = (size_t)job->w * (size_t)job->ic * dd_dtype_size(dtype),
                 read = (size_t)(n * job->h < 5 ? n * job->h : 5);
    memcpy(scratch, src, read * line);
    job->src = scratch;
    scratch += winograd_copy_bytes(dtype, job->ic, job->w);
    for (int begin = 0, end = 2, lines = n * job->down; begin < lines; begin = end, end = 2 * begin - 1) {
        winograd_tiles(dtype, false, job, begin * job->across, (end < lines ? end : lines) * job->across, scratch);
        job->src = src;
    }
}

static void winograd(dd_dtype dtype, const dd_winograd_call *call)
{
    const int scale = call->up ? 2 : 1;
    winograd_job job = {.dst = call->dst,
                        .src = call->src,
                        .add = call->residual,
                        .u = call->weights,
                        .bias = call->bias,
                        .relu = call->relu,
                        .h = call->h,
                        .w = call->w,
                        .ic = call->ic,
                        .oh = scale * call->h,
                        .ow = scale * call->w,
                        .oc = call->oc};
    job.down = (job.oh + 1) / 2;
    job.across = (job.ow + 1) / 2;
    if (call->dst == call->src) {
        winograd_in_place(dtype, &job, call->n, call->scratch);
    } else {
        winograd_tiles(dtype, call->up, &job, 0, call->n * job.down * job.across, call->scratch);
    }
}

static size_t winograd_scratch(dd_dtype dtype, int ic, int threads, int in_place_width)
{
    return winograd_copy_bytes(dtype, ic, in_place_width) + (size_t)threads * winograd_thread_bytes(dtype, ic);
}

#endif
