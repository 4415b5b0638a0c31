/* The gradient of a convolution's weights in bf16 on AMX tiles, for any number of channels. Without AMX,
 * kernels/weight_gradient.h computes it.
 *
 * For every place of the window it is a product of the result's gradient with the source as that place sees it. The sum
 * goes over positions and over pairs of images (a unit is a pair of bf16). Both operands are packed into whole tiles of
 * 16 rows of 16 units, so that every place of the window reads the same ones:
 *
 *     Y: (oc / 16, positions, tiles, 16 channels, 16 pairs)    of some rows of the result
 *     X: (ic / 16, positions, tiles, 16 pairs, 16 channels)    of the rows of the source that they see, border included
 *     sums: (kernel, kernel, oc, ic) floats                          added to the gradient, which is oihw, at the end
 *
 * Channels and images are padded to 32 with zeros. The order of summation depends on the shape alone,
 * so results are bitwise identical for any number of threads.
 */
#ifndef DD_KERNELS_TILE_GRADIENT_H
#define DD_KERNELS_TILE_GRADIENT_H

#include "kernels/table.h"
#include "kernels/tiles.h"

#include <omp.h>

#define TILE_UNITS 256                   /* of a tile: 1 KiB */
#define TILE_BLOCK 32                    /* channels of two tiles beside each other */
#define TILE_STRETCH (2 * 1024 * 1024)   /* units of X and Y together, unless one row of the result needs more */
#define TILE_NEAR (256 * 1024)           /* units of a task's part of X and Y: half of L2 */

/* How a batch fills the tiles. Few images are cut into segments of some rows of the result, which count as images. */
typedef struct {
    int segments, rows; /* of an image; of the result in a segment: the last segment may have fewer */
    int tiles;          /* of 32 segments */
    int lines;          /* rows of every segment in a stretch */
} tile_shape;

typedef struct {
    dd_window window;
    tile_shape shape;
    uint32_t *x, *y;
    float *sums;
    int ic, oc;       /* channels as they are padded */
    int first, lines; /* the rows of every segment in this stretch */
} tile_job;

INLINE int tile_padded(int channels) { return (channels + TILE_BLOCK - 1) / TILE_BLOCK * TILE_BLOCK; }

/* Rows of the source, its border too, that `lines` rows of the result see. */
INLINE int tile_source_lines(const dd_window *s, int lines) { return (lines - 1) * s->stride + s->kernel; }

INLINE size_t tile_source_units(const dd_window *s, int tiles, int lines)
{
    return (size_t)tile_source_lines(s, lines) * (size_t)s->w * (size_t)tiles * AMX_UNITS * (size_t)tile_padded(s->ic);
}

INLINE size_t tile_result_units(const dd_window *s, int tiles, int lines)
{
    return (size_t)lines * (size_t)s->ow * (size_t)tiles * AMX_UNITS * (size_t)tile_padded(s->oc);
}

/* The smallest number of segments for which more of them would save less than a tenth of the products. */
INLINE tile_shape tile_shape_of(const dd_window *s)
{
    tile_shape best = {0};
    for (int segments = 1; segments <= s->oh && segments <= 2 * AMX_UNITS; segments++) {
        const int rows = (s->oh + segments - 1) / segments,
                  tiles = (int)(((int64_t)s->n * segments + 2 * AMX_UNITS - 1) / (2 * AMX_UNITS));
        if (!best.tiles || 10 * (int64_t)tiles * rows < 9 * (int64_t)best.tiles * best.rows) {
            best = (tile_shape){.segments = segments, .rows = rows, .tiles = tiles};
        }
    }
    best.lines = best.rows;
    while (best.lines > 1 &&
           tile_source_units(s, best.tiles, best.lines) + tile_result_units(s, best.tiles, best.lines) > TILE_STRETCH) {
        best.lines = (best.lines + 1) / 2;
    }
    return best;
}

INLINE size_t tile_sums(const dd_window *s)
{
    return (size_t)s->kernel * (size_t)s->kernel * (size_t)tile_padded(s->ic) * (size_t)tile_padded(s->oc);
}

/* Two vectors of 16 units: channels c to c + 31 of one position of two images. NULL is zeros, as are channels from
   `channels` on. */
INLINE void tile_units(const uint16_t *first, const uint16_t *second, int c, int channels, __m512i units[2])
{
    const int left = channels - c;
    const __mmask32 mask = left >= TILE_BLOCK ? 0xffffffffu : (1u << left) - 1;
    const __m512i one = first ? _mm512_maskz_loadu_epi16(mask, first + c) : _mm512_setzero_si512();
    const __m512i two = second ? _mm512_maskz_loadu_epi16(mask, second + c) : _mm512_setzero_si512();
    const __m512i low1 = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(one)),
                  low2 = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(two)),
                  high1 = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(one, 1)),
                  high2 = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(two, 1));
    units[0] = _mm512_or_si512(low1, _mm512_slli_epi32(low2, 16));
    units[1] = _mm512_or_si512(high1, _mm512_slli_epi32(high2, 16));
}

/* Stores the transpose of 16 vectors of 16 units. */
INLINE void tile_transpose(uint32_t *to, const __m512i rows[16])
{
    __m512i a[16], b[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) { /* b[i + k]: columns k, 4 + k, 8 + k, 12 + k of rows i to i + 3 */
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        const __m512i low_even = _mm512_shuffle_i32x4(b[k], b[4 + k], 0x88),
                      low_odd = _mm512_shuffle_i32x4(b[k], b[4 + k], 0xdd),
                      high_even = _mm512_shuffle_i32x4(b[8 + k], b[12 + k], 0x88),
                      high_odd = _mm512_shuffle_i32x4(b[8 + k], b[12 + k], 0xdd);
        _mm512_storeu_si512(to + 16 * k, _mm512_shuffle_i32x4(low_even, high_even, 0x88));
        _mm512_storeu_si512(to + 16 * (4 + k), _mm512_shuffle_i32x4(low_odd, high_odd, 0x88));
        _mm512_storeu_si512(to + 16 * (8 + k), _mm512_shuffle_i32x4(low_even, high_even, 0xdd));
        _mm512_storeu_si512(to + 16 * (12 + k), _mm512_shuffle_i32x4(low_odd, high_odd, 0xdd));
    }
}

/* The source of a pack: an image of (rows, cols, channels) elements, whose segments begin `step` rows apart. */
typedef struct {
    const uint16_t *data;
    int rows, cols, channels, step;
} tile_image;

/* Position (row, col) of segment `index`; NULL outside of the image. */
INLINE const uint16_t *tile_pixel(const tile_job *job, const tile_image *m, int index, int row, int col)
{
    const int image = index % job->window.n, y = index / job->window.n * m->step + row;
    return index >= job->window.n * job->shape.segments || y < 0 || y >= m->rows
               ? NULL
               : m->data + (((size_t)image * (size_t)m->rows + (size_t)y) * (size_t)m->cols + (size_t)col) *
                               (size_t)m->channels;
}

/* Packs position (row, col) of all segments into its tiles, from `to` on; those of the next 16 channels are `panel`
   units further. */
INLINE void tile_pack(const tile_job *job, const tile_image *m, const bool transposed, uint32_t *to, size_t panel,
                      int row, int col)
{
    for (int c = 0; c < m->channels; c += TILE_BLOCK) {
        uint32_t *first = to + (size_t)(c / AMX_UNITS) * panel, *second = first + panel;
        for (int tile = 0; tile < job->shape.tiles; tile++, first += TILE_UNITS, second += TILE_UNITS) {
            __m512i low[AMX_UNITS], high[AMX_UNITS];
            for (int pair = 0; pair < AMX_UNITS; pair++) {
                __m512i units[2];
                const int index = 2 * (tile * AMX_UNITS + pair);
                tile_units(tile_pixel(job, m, index, row, col), tile_pixel(job, m, index + 1, row, col), c, m->channels,
                           units);
                low[pair] = units[0];
                high[pair] = units[1];
            }
            if (transposed) {
                tile_transpose(first, low);
                tile_transpose(second, high);
            } else {
                for (int pair = 0; pair < AMX_UNITS; pair++) {
                    _mm512_storeu_si512(first + pair * AMX_UNITS, low[pair]);
                    _mm512_storeu_si512(second + pair * AMX_UNITS, high[pair]);
                }
            }
        }
    }
}

/* sums += Y X' at one place of the window over rows [begin, end) of the stretch, for 32 channels of the result from o
   and of the source from c on. */
INLINE void tile_product(const tile_job *job, int begin, int end, int ky, int kx, int o, int c)
{
    const dd_window *s = &job->window;
    const size_t tiles = (size_t)job->shape.tiles, ld = (size_t)job->ic * sizeof(float),
                 row = AMX_UNITS * sizeof(uint32_t);
    const size_t x_panel = (size_t)tile_source_lines(s, job->lines) * (size_t)s->w * tiles * TILE_UNITS,
                 y_panel = (size_t)job->lines * (size_t)s->ow * tiles * TILE_UNITS;
    const uint32_t *x = job->x + (size_t)(c / AMX_UNITS) * x_panel, *y = job->y + (size_t)(o / AMX_UNITS) * y_panel;
    float *to = job->sums + ((size_t)(ky * s->kernel + kx) * (size_t)job->oc + (size_t)o) * (size_t)job->ic + (size_t)c;
    float *below = to + AMX_ROWS * (size_t)job->ic;
    AMX_MEMORY();
    if (job->first + begin == 0) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, to, ld);
        _tile_loadd(1, to + AMX_UNITS, ld);
        _tile_loadd(2, below, ld);
        _tile_loadd(3, below + AMX_UNITS, ld);
    }
    for (int oy = begin; oy < end; oy++) {
        for (int ox = 0; ox < s->ow; ox++) {
            const int ix = ox * s->stride + kx - s->pad;
            if (ix < 0 || ix >= s->w) {
                continue;
            }
            const uint32_t *a = y + ((size_t)oy * (size_t)s->ow + (size_t)ox) * tiles * TILE_UNITS,
                           *b = x + ((size_t)(oy * s->stride + ky) * (size_t)s->w + (size_t)ix) * tiles * TILE_UNITS;
            for (size_t k = 0; k < tiles; k++, a += TILE_UNITS, b += TILE_UNITS) {
                _tile_loadd(6, b, row);
                _tile_loadd(7, b + x_panel, row);
                _tile_loadd(4, a, row);
                AMX_MULTIPLY(0, 1, 4);
                _tile_loadd(5, a + y_panel, row);
                AMX_MULTIPLY(2, 3, 5);
            }
        }
    }
    AMX_STORE(0, 1, to, ld);
    AMX_STORE(2, 3, below, ld);
    AMX_MEMORY();
}

/* `count` places of the window from `tap` on, a few rows at a time, so that X and Y are read from L2 for all but the
   first place. */
INLINE void tile_task(const tile_job *job, int tap, int count, int o, int c)
{
    const dd_window *s = &job->window;
    const int wanted = TILE_NEAR / (s->ow * job->shape.tiles * 4 * TILE_UNITS), rows = wanted < 1 ? 1 : wanted;
    for (int begin = 0; begin < job->lines; begin += rows) {
        const int end = begin + rows < job->lines ? begin + rows : job->lines;
        for (int i = tap; i < tap + count; i++) {
            tile_product(job, begin, end, i / s->kernel, i % s->kernel, o, c);
        }
    }
}

/* Number of places of the window per task, so that every thread has a task. */
INLINE int tile_places(int kernel, int blocks, int threads)
{
    return blocks >= threads ? kernel * kernel : blocks * kernel >= threads ? kernel : 1;
}

/* gradient (oihw) += sums (hwoi) of result channel o. */
INLINE void tile_add(const tile_job *job, float *gradient, int o)
{
    const dd_window *s = &job->window;
    const size_t taps = (size_t)s->kernel * (size_t)s->kernel, plane = (size_t)job->oc * (size_t)job->ic;
    const float *from = job->sums + (size_t)o * (size_t)job->ic;
    float *to = gradient + (size_t)o * (size_t)s->ic * taps;
    for (size_t c = 0; c < (size_t)s->ic; c++) {
        for (size_t tap = 0; tap < taps; tap++) {
            to[c * taps + tap] += from[tap * plane + c];
        }
    }
}

static void tile_gradient(float *gradient, const void *src, const void *d_dst, const dd_window *s, void *scratch)
{
    const tile_shape shape = tile_shape_of(s);
    tile_job all = {.window = *s,
                    .shape = shape,
                    .sums = scratch,
                    .ic = tile_padded(s->ic),
                    .oc = tile_padded(s->oc)};
    all.x = (uint32_t *)scratch + tile_sums(s);
    all.y = all.x + tile_source_units(s, shape.tiles, shape.lines);
    const tile_image result = {.data = d_dst, .rows = s->oh, .cols = s->ow, .channels = s->oc, .step = shape.rows};
    const tile_image source = {
        .data = src, .rows = s->h, .cols = s->w, .channels = s->ic, .step = shape.rows * s->stride};
#pragma omp parallel
    {
        const int across = all.ic / TILE_BLOCK, blocks = all.oc / TILE_BLOCK * across;
        const int places = tile_places(s->kernel, blocks, omp_get_num_threads());
        const int parts = s->kernel * s->kernel / places; /* of the window */
        const size_t position = (size_t)shape.tiles * TILE_UNITS;
        tiles_begin();
        for (int first = 0; first < shape.rows; first += shape.lines) {
            tile_job job = all;
            job.first = first;
            job.lines = first + shape.lines < shape.rows ? shape.lines : shape.rows - first;
            const int x_count = tile_source_lines(s, job.lines) * s->w, y_count = job.lines * s->ow;
#pragma omp for schedule(static) nowait
            for (int i = 0; i < x_count; i++) {
                tile_pack(&job, &source, false, job.x + (size_t)i * position, (size_t)x_count * position,
                          first * s->stride - s->pad + i / s->w, i % s->w);
            }
#pragma omp for schedule(static)
            for (int i = 0; i < y_count; i++) {
                tile_pack(&job, &result, true, job.y + (size_t)i * position, (size_t)y_count * position,
                          first + i / s->ow, i % s->ow);
            }
#pragma omp for schedule(dynamic)
            for (int task = 0; task < blocks * parts; task++) {
                const int block = task / parts;
                tile_task(&job, task % parts * places, places, block / across * TILE_BLOCK,
                          block % across * TILE_BLOCK);
            }
        }
        tiles_end();
#pragma omp for schedule(static)
        for (int o = 0; o < s->oc; o++) {
            tile_add(&all, gradient, o);
        }
    }
}

static size_t tile_gradient_scratch(const dd_window *s)
{
    const tile_shape shape = tile_shape_of(s);
    return (tile_sums(s) + tile_source_units(s, shape.tiles, shape.lines) +
            tile_result_units(s, shape.tiles, shape.lines)) *
           sizeof(float);
}

#endif
