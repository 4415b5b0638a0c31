/* The two products of attention on AMX tiles, in bf16 only. Without AMX, scores_tile and values_tile of
 * kernels/attention.h compute them.
 *
 * Each tile is 16 rows of 16 units (a unit is a pair of bf16, or a float of a result), and everything is padded to
 * whole tiles with zeros:
 *     K: (tk, steps) units, tk to 32 and steps to 16
 *     V: (tk / 32, d, 16) units, the pairs of 32 keys beside each other, d to 16
 *     Q: (steps, ATT_QUERIES)     S: (ATT_KEYS, ATT_QUERIES) floats, overwritten by P: (ATT_KEYS / 2, ATT_QUERIES)
 *     O: (d, ATT_QUERIES), d to 16
 *
 *     tiles_begin();                                      // in each thread
 *     tile_scores(s, k, q, keys, steps);
 *     tile_values(o, v, s, keys, d);
 *     tiles_end();
 */
#ifndef DD_KERNELS_TILES_H
#define DD_KERNELS_TILES_H

#include "kernels/vector.h"

#define AMX_ROWS 16
#define AMX_UNITS 16
#define AMX_KEYS 32    /* keys in a tile of pairs */
#define AMX_QUERIES 32 /* queries of two tiles beside each other: ATT_QUERIES */

/* GCC's tile instructions do not say that they read and write memory. */
#define AMX_MEMORY() __asm__ volatile("" ::: "memory")

INLINE void tiles_begin(void)
{
    static const struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } whole_tiles = {
        .palette = 1, .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&whole_tiles);
}

INLINE void tiles_end(void) { _tile_release(); }

/* The results, tiles 0 to 3, form a square of two by two: A (tiles 4 and 5) above each other, B (6 and 7) beside each
   other. */
#define AMX_LOAD_B(from, ld)                       \
    do {                                            \
        _tile_loadd(6, (from), (ld));               \
        _tile_loadd(7, (from) + AMX_UNITS, (ld));  \
    } while (0)
#define AMX_MULTIPLY(row0, row1, a) \
    do {                             \
        _tile_dpbf16ps(row0, a, 6);  \
        _tile_dpbf16ps(row1, a, 7);  \
    } while (0)
#define AMX_STORE(row0, row1, to, ld)                 \
    do {                                               \
        _tile_stored(row0, (to), (ld));                \
        _tile_stored(row1, (to) + AMX_UNITS, (ld));   \
    } while (0)

/* S = K Q' for `keys` keys rounded up to AMX_KEYS. */
INLINE void tile_scores(uint32_t *s, const uint32_t *k, const uint32_t *q, int keys, size_t steps)
{
    const size_t ld_k = steps * 4, ld = AMX_QUERIES * 4;
    AMX_MEMORY();
    for (int row = 0; row < keys; row += AMX_KEYS) {
        const uint32_t *a = k + (size_t)row * steps;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (size_t j = 0; j < steps; j += AMX_UNITS) {
            AMX_LOAD_B(q + j * AMX_QUERIES, ld);
            _tile_loadd(4, a + j, ld_k);
            AMX_MULTIPLY(0, 1, 4);
            _tile_loadd(5, a + AMX_ROWS * steps + j, ld_k);
            AMX_MULTIPLY(2, 3, 5);
        }
        uint32_t *to = s + row * AMX_QUERIES;
        AMX_STORE(0, 1, to, ld);
        AMX_STORE(2, 3, to + AMX_ROWS * AMX_QUERIES, ld);
    }
    AMX_MEMORY();
}

/* O += V' P for `keys` keys, a multiple of AMX_KEYS, and d rows, a multiple of AMX_ROWS. */
INLINE void tile_values(uint32_t *o, const uint32_t *v, const uint32_t *p, int keys, int d)
{
    const size_t ld_v = AMX_UNITS * 4, ld = AMX_QUERIES * 4, chunk = (size_t)d * AMX_UNITS;
    AMX_MEMORY();
    for (int row = 0; row < d; row += 2 * AMX_ROWS) {
        const bool two = row + AMX_ROWS < d;
        const uint32_t *a = v + row * AMX_UNITS;
        uint32_t *to = o + row * AMX_QUERIES, *to_next = to + AMX_ROWS * AMX_QUERIES;
        _tile_loadd(0, to, ld);
        _tile_loadd(1, to + AMX_UNITS, ld);
        if (two) {
            _tile_loadd(2, to_next, ld);
            _tile_loadd(3, to_next + AMX_UNITS, ld);
        }
        for (int key = 0; key < keys; key += AMX_KEYS, a += chunk) {
            AMX_LOAD_B(p + key / 2 * AMX_QUERIES, ld);
            _tile_loadd(4, a, ld_v);
            AMX_MULTIPLY(0, 1, 4);
            if (two) {
                _tile_loadd(5, a + AMX_ROWS * AMX_UNITS, ld_v);
                AMX_MULTIPLY(2, 3, 5);
            }
        }
        AMX_STORE(0, 1, to, ld);
        if (two) {
            AMX_STORE(2, 3, to_next, ld);
        }
    }
    AMX_MEMORY();
}

#endif
