/* The weights of kernels/winograd.h: U = G g G' of every filter g. Part of kernels/template.h, compiled once per
 * instruction set.
 *
 *     winograd_pack(DD_BF16, u, plain, ic, oc, DD_WINOGRAD_FORWARD);
 */
#ifndef DD_KERNELS_WINOGRAD_PACK_H
#define DD_KERNELS_WINOGRAD_PACK_H

#include "kernels/winograd.h"

/* One input channel's filters of a panel, `stride` floats apart, as one vector per place of the window;
   `turned`: rotated by 180 degrees. */
INLINE void winograd_filters(float g[9][WIN_COLS], const float *from, size_t stride, bool turned)
{
    for (int o = 0; o < WIN_COLS; o += 4) {
        const float *row[4] = {from, from + stride, from + 2 * stride, from + 3 * stride};
        for (int i = 0; i < 8; i += 4) {
            __m128 x[4] = {_mm_loadu_ps(row[0] + i), _mm_loadu_ps(row[1] + i), _mm_loadu_ps(row[2] + i),
                           _mm_loadu_ps(row[3] + i)};
            _MM_TRANSPOSE4_PS(x[0], x[1], x[2], x[3]);
            for (int j = 0; j < 4; j++) {
                _mm_storeu_ps(g[turned ? 8 - i - j : i + j] + o, x[j]);
            }
        }
        for (int k = 0; k < 4; k++) {
            g[turned ? 0 : 8][o + k] = row[k][8];
        }
        from += 4 * stride;
    }
}

/* G g G' of DD_VECTOR filters, from lane `o` on. */
INLINE void winograd_transform(vf u[16], float g[9][WIN_COLS], int o)
{
    const vf half = set1(0.5f);
    vf x[4][3];
#pragma GCC unroll 3
    for (int l = 0; l < 3; l++) {
        const vf first = load_f32(g[l] + o), last = load_f32(g[6 + l] + o);
        const vf even = mul(half, add(first, last)), odd = mul(half, load_f32(g[3 + l] + o));
        x[0][l] = first;
        x[1][l] = add(even, odd);
        x[2][l] = sub(even, odd);
        x[3][l] = last;
    }
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
        const vf even = mul(half, add(x[k][0], x[k][2])), odd = mul(half, x[k][1]);
        u[4 * k] = x[k][0];
        u[4 * k + 1] = add(even, odd);
        u[4 * k + 2] = sub(even, odd);
        u[4 * k + 3] = x[k][2];
    }
}

/* A step of a panel: one channel of floats, or two of bf16 whose units are pairs. */
INLINE void winograd_pack_step(const bool pairs, uint32_t *dst, size_t next, const float *from, size_t stride,
                               size_t next_channel, dd_winograd_kind kind)
{
    const bool turned = kind == DD_WINOGRAD_BACKWARD;
    float g[2][9][WIN_COLS];
    winograd_filters(g[0], from, stride, turned);
    if (pairs) {
        winograd_filters(g[1], from + next_channel, stride, turned);
    }
    for (int o = 0; o < WIN_COLS; o += DD_VECTOR) {
        uint32_t *to = dst + o;
        vf u[2][16];
        winograd_transform(u[0], g[0], o);
        if (pairs) {
            winograd_transform(u[1], g[1], o);
        }
        for (int p = 0; p < 16; p++) {
            if (kind == DD_WINOGRAD_UP && (p / 4 == 2 || p % 4 == 2)) {
                continue; /* multiplied by zeros */
            }
            store_f32(to, pairs ? bf16_pairs(u[0][p], u[1][p]) : u[0][p]);
            to += next;
        }
    }
}

#define WIN_PACK_CHANNELS 16 /* of a task; divides every number of channels that dd_winograd takes */

static void winograd_pack(dd_dtype dtype, void *dst, const float *plain, int ic, int oc, dd_winograd_kind kind)
{
    const bool backward = kind == DD_WINOGRAD_BACKWARD;
    const size_t points = (size_t)dd_winograd_points(kind == DD_WINOGRAD_UP);
    const int from = backward ? oc : ic, to = backward ? ic : oc, pair = dtype == DD_BF16 ? 2 : 1;
    const size_t next_output = backward ? 9 : (size_t)ic * 9, next_channel = backward ? (size_t)ic * 9 : 9;
    const size_t steps = (size_t)(from / pair);
#pragma omp parallel for collapse(2) schedule(static)
    for (int panel = 0; panel < to / WIN_COLS; panel++) {
        for (int first = 0; first < from; first += WIN_PACK_CHANNELS) {
            for (int c = first; c < first + WIN_PACK_CHANNELS; c += pair) {
                uint32_t *step = (uint32_t *)dst + ((size_t)panel * points * steps + (size_t)(c / pair)) * WIN_COLS;
                const float *filters = plain + (size_t)panel * WIN_COLS * next_output + (size_t)c * next_channel;
                if (pair == 2) {
                    winograd_pack_step(true, step, steps * WIN_COLS, filters, next_output, next_channel, kind);
                } else {
                    winograd_pack_step(false, step, steps * WIN_COLS, filters, next_output, next_channel, kind);
                }
            }
        }
    }
}

#endif
