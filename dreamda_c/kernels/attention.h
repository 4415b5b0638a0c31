/* Attention without the matrix of scores. Part of kernels/template.h, compiled once per instruction set.
 *
 * Everything is transposed, so that each element of a vector belongs to another *query*: scores S' = K Q' (keys x
 * queries), weights P' = 2^(..), result O' = V' P' (d x queries). Maxima, sums and rescaling are then plain vector
 * operations, K and V are read as broadcast scalars in their natural order, and no head size is padded.
 *
 * The 32-bit unit: a float, or (`dot`: AVX512-BF16 and bf16 data) two neighbouring bf16 along the dimension summed
 * over:
 *     K: (tk, steps) units, steps = d or (d + 1) / 2      V: (tk, d) units or ((tk + 1) / 2, d), pairs of keys
 *     Q: (steps, ATT_QUERIES)     S: (ATT_KEYS, ATT_QUERIES) floats, overwritten by P: (ATT_KEYS [/ 2], ATT_QUERIES)
 *     O: (d, ATT_QUERIES)
 * On AMX (DD_AMX, bf16 alone) tiles do the products, and K and V lie as kernels/tiles.h has it.
 *
 * The running maximum that softmax subtracts is rounded to an integer power of two: rescaling is then exact.
 *
 *     attention(DD_BF16, &(dd_attention_call){.dst = dst, .q = q, .k = k, .v = v, ...});
 */
#ifndef DD_KERNELS_ATTENTION_H
#define DD_KERNELS_ATTENTION_H

#include "kernels/kernels.h"
#include "kernels/vector.h"
#if DD_AMX
#include "kernels/tiles.h"
#endif

#include <math.h>
#include <omp.h>

#define ATT_QUERIES (2 * DD_VECTOR) /* queries a micro-kernel works on */
#define ATT_KEYS 256        /* keys between two updates of the maximum: S (32 KiB) and its operands stay in L2 */
#define ATT_STRIPS 2        /* strips of ATT_QUERIES in a task: they share a block of K and V while it is in cache */
#if DD_VECTOR == 16
#define ATT_ROWS 8 /* rows of a micro-kernel: 2 ATT_ROWS accumulators hide the latency of the multiply-add */
#else
#define ATT_ROWS 6 /* likewise: 4 would be enough only if no multiply-add ever waited */
#endif

/* Counts are padded to multiples of these: keys with bf16 pairs, units of a key, rows of V' and O. */
#if DD_AMX
#define ATT_WHOLE_KEYS AMX_KEYS
#define ATT_WHOLE_STEPS AMX_UNITS
#define ATT_WHOLE_ROWS AMX_ROWS
#else
#define ATT_WHOLE_KEYS 2
#define ATT_WHOLE_STEPS 1
#define ATT_WHOLE_ROWS 1
#endif

INLINE int whole(int count, int part) { return (count + part - 1) / part * part; }
INLINE int keys_of(bool dot, int tk) { return whole(tk, dot ? ATT_WHOLE_KEYS : 1); }
INLINE size_t steps_of(bool dot, int d) { return (size_t)whole(dot ? (d + 1) / 2 : d, ATT_WHOLE_STEPS); }
INLINE int rows_of(int d) { return whole(d, ATT_WHOLE_ROWS); }

/* S[0 .. m) = K[0 .. m) Q, and `top` is raised to the largest score of each query. */
INLINE void scores_tile(const bool dot, const int m, const uint32_t *k, const uint32_t *q, size_t steps, uint32_t *s,
                        vf top[2])
{
    vf acc[ATT_ROWS][2];
#pragma GCC unroll 8
    for (int i = 0; i < m; i++) {
        acc[i][0] = acc[i][1] = set1(0.0f);
    }
    for (size_t j = 0; j < steps; j++) {
        vf q0 = load_f32(q + j * ATT_QUERIES), q1 = load_f32(q + j * ATT_QUERIES + DD_VECTOR);
#pragma GCC unroll 8
        for (int i = 0; i < m; i++) {
            vf a = broadcast(k + (size_t)i * steps + j);
            acc[i][0] = multiply_add(dot, acc[i][0], a, q0);
            acc[i][1] = multiply_add(dot, acc[i][1], a, q1);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < m; i++) {
        store_f32(s + i * ATT_QUERIES, acc[i][0]);
        store_f32(s + i * ATT_QUERIES + DD_VECTOR, acc[i][1]);
        top[0] = larger(top[0], acc[i][0]);
        top[1] = larger(top[1], acc[i][1]);
    }
}

/* O[0 .. m) += V'[0 .. m) P. The block is summed by itself first: short chains of additions round less. */
INLINE void values_tile(const bool dot, const int m, const uint32_t *v, size_t d, const uint32_t *p, size_t steps,
                        uint32_t *o)
{
    vf acc[ATT_ROWS][2];
#pragma GCC unroll 8
    for (int i = 0; i < m; i++) {
        acc[i][0] = acc[i][1] = set1(0.0f);
    }
    for (size_t j = 0; j < steps; j++) {
        vf p0 = load_f32(p + j * ATT_QUERIES), p1 = load_f32(p + j * ATT_QUERIES + DD_VECTOR);
#pragma GCC unroll 8
        for (int i = 0; i < m; i++) {
            vf a = broadcast(v + j * d + i);
            acc[i][0] = multiply_add(dot, acc[i][0], a, p0);
            acc[i][1] = multiply_add(dot, acc[i][1], a, p1);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < m; i++) {
        store_f32(o + i * ATT_QUERIES, add(load_f32(o + i * ATT_QUERIES), acc[i][0]));
        store_f32(o + i * ATT_QUERIES + DD_VECTOR, add(load_f32(o + i * ATT_QUERIES + DD_VECTOR), acc[i][1]));
    }
}

/* The state of one strip between two blocks of keys: per query, the subtracted power of two and the sum of weights. */
typedef struct {
    vf power[2], sum[2];
} running;

INLINE vf pair_weights(vf even, vf odd)
{
#if DD_BF16_DOT
    static const uint16_t interleave[32] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
                                            8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    __m512i both = (__m512i)_mm512_cvtne2ps_pbh(odd, even);
    return _mm512_castsi512_ps(_mm512_permutexvar_epi16(_mm512_loadu_si512(interleave), both));
#else
    (void)odd;
    return even;
#endif
}

/* Turns the scores of `keys` keys into weights, in place, and brings O and the sums to the new maximum. The sums
   are of the weights as rounded for the product with V, so that the weights in that product add up to one. */
INLINE void weigh(const bool dot, uint32_t *s, int keys, float c, bool first, const vf top[2], running *run,
                  uint32_t *o, int d)
{
    vf power[2], factor[2];
    for (int v = 0; v < 2; v++) {
        power[v] = nearest(mul(top[v], set1(c)));
        power[v] = first ? power[v] : larger(run->power[v], power[v]);
    }
    if (!first && (any_less(run->power[0], power[0]) || any_less(run->power[1], power[1]))) {
        for (int v = 0; v < 2; v++) {
            vf shifted = add(larger(set1(-127.0f), sub(run->power[v], power[v])), set1(ROUND_BY_ADDING));
            factor[v] = scale_by_bits(set1(1.0f), shifted);
            run->sum[v] = mul(run->sum[v], factor[v]);
        }
        for (int i = 0; i < d; i++) {
            store_f32(o + i * ATT_QUERIES, mul(load_f32(o + i * ATT_QUERIES), factor[0]));
            store_f32(o + i * ATT_QUERIES + DD_VECTOR, mul(load_f32(o + i * ATT_QUERIES + DD_VECTOR), factor[1]));
        }
    }
    const uint32_t one = dot ? 0x3f803f80u : 0x3f800000u;
    const vf ones = broadcast(&one), log2_scale = set1(c);
    vf least[2], base[2];
    for (int v = 0; v < 2; v++) {
        /* Weights below 2^-120 of the largest are raised to that: it keeps the exponent in range, masked keys
           included. */
        least[v] = mul(sub(power[v], set1(120.0f)), set1(1.0f / c));
        base[v] = sub(set1(ROUND_BY_ADDING), power[v]);
        run->power[v] = power[v];
    }
    vf sum[2] = {set1(0.0f), set1(0.0f)};
    const int step = dot ? 2 : 1;
    for (int j = 0; j < keys; j += step) {
#pragma GCC unroll 2
        for (int v = 0; v < 2; v++) {
            vf w[2];
#pragma GCC unroll 2
            for (int i = 0; i < step; i++) {
                vf x = load_f32(s + (j + i) * ATT_QUERIES + v * DD_VECTOR);
#if DD_BF16_DOT
                if (dot) {
                    w[i] = exp2_for_bf16(fms(x, log2_scale, power[v]));
                    continue;
                }
#endif
                x = larger(least[v], x);
                vf shifted = fma_(x, log2_scale, base[v]);
                vf f = fms(x, log2_scale, sub(shifted, base[v]));
                w[i] = exp2_reduced(f, shifted, 6);
            }
            vf p = dot ? pair_weights(w[0], w[1]) : w[0];
            sum[v] = multiply_add(dot, sum[v], p, ones);
            store_f32(s + j / step * ATT_QUERIES + v * DD_VECTOR, p);
        }
    }
    run->sum[0] = add(run->sum[0], sum[0]);
    run->sum[1] = add(run->sum[1], sum[1]);
}

#if DD_AMX
INLINE void find_top(const uint32_t *s, int keys, vf top[2])
{
    for (int j = 0; j < keys; j++) {
        top[0] = larger(top[0], load_f32(s + j * ATT_QUERIES));
        top[1] = larger(top[1], load_f32(s + j * ATT_QUERIES + DD_VECTOR));
    }
}
#endif

/* Sets the scores of keys after their query to -inf, and computes `top` again. */
INLINE void mask_future(uint32_t *s, int keys, int key, int query, vf top[2])
{
    top[0] = top[1] = set1(-INFINITY);
    for (int j = 0; j < keys; j++) {
        for (int v = 0; v < 2; v++) {
            vf position = add(set1((float)(query + v * DD_VECTOR)), lanes());
            vf x = load_f32(s + j * ATT_QUERIES + v * DD_VECTOR);
            x = where_ge(position, set1((float)(key + j)), x, set1(-INFINITY));
            top[v] = larger(top[v], x);
            store_f32(s + j * ATT_QUERIES + v * DD_VECTOR, x);
        }
    }
}

/* `f(m, row)` for the rows 0 .. count in tiles of ATT_ROWS, then 4, 2, 1: each is compiled for its m. */
#define ATT_FOR_ROWS(count, f)                               \
    do {                                                  \
        int row_ = 0;                                     \
        for (; row_ + ATT_ROWS <= (count); row_ += ATT_ROWS) {    \
            f(ATT_ROWS, row_);                                \
        }                                                 \
        if (ATT_ROWS > 4 && row_ + 4 <= (count)) {            \
            f(4, row_);                                   \
            row_ += 4;                                    \
        }                                                 \
        if (row_ + 2 <= (count)) {                        \
            f(2, row_);                                   \
            row_ += 2;                                    \
        }                                                 \
        if (row_ < (count)) {                             \
            f(1, row_);                                   \
        }                                                 \
    } while (0)

/* One strip of queries attends to one block of keys. */
INLINE void attend(const bool dot, const uint32_t *k, const uint32_t *v, const uint32_t *q, int keys, int key,
                   int query, size_t steps, int d, float c, bool causal, uint32_t *s, uint32_t *o, running *run)
{
    vf top[2] = {set1(-INFINITY), set1(-INFINITY)};
#if DD_AMX
    tile_scores(s, k, q, keys, steps);
    find_top(s, keys, top);
#else
#define SCORES(m, row) scores_tile(dot, m, k + (size_t)(row) * steps, q, steps, s + (row) * ATT_QUERIES, top)
    ATT_FOR_ROWS(keys, SCORES);
#undef SCORES
#endif
    if (causal && key + keys - 1 > query) {
        mask_future(s, keys, key, query, top);
    }
    const int rows = keys_of(dot, keys);
    for (int j = keys; j < rows; j++) { /* the missing keys of the last pair or tile */
        store_f32(s + j * ATT_QUERIES, set1(-INFINITY));
        store_f32(s + j * ATT_QUERIES + DD_VECTOR, set1(-INFINITY));
    }
    weigh(dot, s, rows, c, key == 0, top, run, o, d);
#if DD_AMX
    tile_values(o, v, s, rows, rows_of(d));
#else
    const size_t sums = (size_t)(dot ? rows / 2 : rows);
#define VALUES(m, row) values_tile(dot, m, v + (row), (size_t)d, s, sums, o + (row) * ATT_QUERIES)
    ATT_FOR_ROWS(d, VALUES);
#undef VALUES
#endif
}

/* One row of d elements as `steps` units: bf16 pairs (`dot`; a missing element is zero), or floats. */
INLINE void units_of_row(const bool dot, const dd_dtype t, uint32_t *dst, const void *src, int d, size_t steps)
{
    if (dot) {
        for (size_t j = (size_t)d / 2; j < steps; j++) {
            dst[j] = 0;
        }
        memcpy(dst, src, (size_t)d * 2);
    } else if (t == DD_BF16) {
        const uint16_t *x = src;
        for (int i = 0; i < d; i++) {
            dst[i] = (uint32_t)x[i] << 16;
        }
    } else {
        memcpy(dst, src, (size_t)d * 4);
    }
}

/* Two rows of V as pairs (key, key + 1), `apart` from unit to unit. */
INLINE void units_of_two_rows(uint32_t *dst, size_t apart, const uint16_t *even, const uint16_t *odd, int d)
{
    for (int i = 0; i < d; i++) {
        dst[(size_t)i * apart] = even[i] | (odd ? (uint32_t)odd[i] << 16 : 0);
    }
}

/* Units [j, j + 8) of a row of d elements; past its end they are zero. */
INLINE __m256 load_units8(const bool dot, const dd_dtype t, const char *row, size_t j, size_t d)
{
    const size_t size = !dot && t == DD_BF16 ? 2 : 4, all = d * dd_dtype_size(t),
                 bytes = j * size < all ? all - j * size : 0; /* of a unit; of the row; left */
    uint32_t buffer[8] = {0};
    row += j * size;
    if (bytes < 8 * size) {
        memcpy(buffer, row, bytes);
        row = (const char *)buffer;
    }
    if (size == 2) {
        __m256i x = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)row));
        return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16));
    }
    return _mm256_loadu_ps((const float *)(const void *)row);
}

/* Q (steps, ATT_QUERIES) from ATT_QUERIES rows; rows past the end repeat the last one; their results are unused. */
INLINE void pack_queries(const bool dot, const dd_dtype t, uint32_t *dst, const char *src, size_t ld_bytes, int rows,
                         int d, size_t steps)
{
    for (int q = 0; q < ATT_QUERIES; q += 8) {
        for (size_t j = 0; j < steps; j += 8) {
            __m256 x[8];
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                const int r = q + i < rows ? q + i : rows - 1;
                x[i] = load_units8(dot, t, src + (size_t)r * ld_bytes, j, (size_t)d);
            }
            transpose8(x);
#pragma GCC unroll 8
            for (size_t i = 0; i < 8; i++) {
                if (j + i < steps) {
                    _mm256_storeu_ps((float *)(void *)(dst + (j + i) * ATT_QUERIES + (size_t)q), x[i]);
                }
            }
        }
    }
}

/* dst rows = O' / sum. */
INLINE void write_result(const dd_dtype t, char *dst, size_t ld_bytes, const uint32_t *o, const running *run, int rows,
                         int d)
{
    float inverse[ATT_QUERIES];
    store_f32(inverse, divide(set1(1.0f), run->sum[0]));
    store_f32(inverse + DD_VECTOR, divide(set1(1.0f), run->sum[1]));
    for (int q = 0; q < rows; q += 8) {
        const __m256 f = _mm256_loadu_ps(inverse + q);
        for (int j = 0; j < d; j += 8) {
            const int some = d - j < 8 ? d - j : 8;
            __m256 x[8];
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                const int last = i < some ? i : some - 1;
                x[i] = _mm256_mul_ps(_mm256_loadu_ps((const float *)(const void *)(o + (j + last) * ATT_QUERIES + q)),
                                     f);
            }
            transpose8(x);
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                if (q + i < rows) {
                    char *to = dst + (size_t)(q + i) * ld_bytes + (size_t)j * dd_dtype_size(t);
                    uint32_t buffer[8];
                    char *full = some == 8 ? to : (char *)buffer;
                    if (t == DD_BF16) {
                        _mm_storeu_si128((__m128i *)(void *)full, bf16_of_8(x[i]));
                    } else {
                        _mm256_storeu_ps((float *)(void *)full, x[i]);
                    }
                    if (some < 8) {
                        memcpy(to, buffer, (size_t)some * dd_dtype_size(t));
                    }
                }
            }
        }
    }
}

INLINE size_t whole_lines(size_t units) { return (units + 15) / 16 * 16; }
INLINE size_t head_units_k(bool dot, int tk, int d) { return whole_lines((size_t)keys_of(dot, tk) * steps_of(dot, d)); }
INLINE size_t head_units_v(bool dot, int tk, int d)
{
    return whole_lines((size_t)keys_of(dot, tk) / (dot ? 2 : 1) * (size_t)rows_of(d));
}

/* Units of a thread's own scratch: S, then Q and O of each strip. */
INLINE size_t thread_units(bool dot, int d)
{
    return ATT_KEYS * ATT_QUERIES + ATT_STRIPS * ATT_QUERIES * (steps_of(dot, d) + (size_t)rows_of(d));
}

typedef struct {
    char *dst;
    const char *q, *k, *v;
    size_t dst_ld, q_ld, k_ld, v_ld; /* bytes from row to row */
    int heads, tq, tk, d;
    float c; /* scale, for powers of two */
    bool causal;
    size_t steps, k_units, v_units;
    uint32_t *packed_k, *packed_v, *own;
} attention_job;

/* Packs keys [block * ATT_KEYS, ..) of one head (`nh` = row * heads + head). */
INLINE void pack_keys(const bool dot, const dd_dtype t, const attention_job *job, int nh, int block)
{
    const size_t size = dd_dtype_size(t), d = (size_t)job->d;
    const size_t row0 = (size_t)(nh / job->heads) * (size_t)job->tk, column = (size_t)(nh % job->heads) * d * size;
    const int end = job->tk - block * ATT_KEYS < ATT_KEYS ? job->tk : (block + 1) * ATT_KEYS;
    uint32_t *to_k = job->packed_k + (size_t)nh * job->k_units, *to_v = job->packed_v + (size_t)nh * job->v_units;
#if DD_AMX
    const size_t rows = (size_t)rows_of(job->d), missing = (size_t)(keys_of(dot, end) - end),
                 begin = (size_t)block * ATT_KEYS;
    memset(to_k + (size_t)end * job->steps, 0, missing * job->steps * 4);
    memset(to_v + begin / 2 * rows, 0, ((size_t)end + missing - begin) / 2 * rows * 4);
#endif
    for (int j = block * ATT_KEYS; j < end; j++) {
        const char *from_k = job->k + (row0 + (size_t)j) * job->k_ld + column;
        const char *from_v = job->v + (row0 + (size_t)j) * job->v_ld + column;
        units_of_row(dot, t, to_k + (size_t)j * job->steps, from_k, job->d, job->steps);
        if (!dot) {
            units_of_row(false, t, to_v + (size_t)j * d, from_v, job->d, d);
        } else if (j % 2 == 0) {
            const uint16_t *even = (const uint16_t *)(const void *)from_v;
            const uint16_t *odd = j + 1 < job->tk ? (const uint16_t *)(const void *)(from_v + job->v_ld) : NULL;
#if DD_AMX
            uint32_t *tile = to_v + (size_t)(j / AMX_KEYS) * rows * AMX_UNITS;
            units_of_two_rows(tile + j % AMX_KEYS / 2, AMX_UNITS, even, odd, job->d);
#else
            units_of_two_rows(to_v + (size_t)(j / 2) * d, 1, even, odd, job->d);
#endif
        }
    }
}

/* The results of queries [block * ATT_STRIPS * ATT_QUERIES, ..) of one head, with scratch of thread_units. */
INLINE void attend_queries(const bool dot, const dd_dtype t, const attention_job *job, int nh, int block, uint32_t *own)
{
    const int d = job->d, q0 = block * ATT_STRIPS * ATT_QUERIES;
    const int q1 = job->tq - q0 < ATT_STRIPS * ATT_QUERIES ? job->tq : q0 + ATT_STRIPS * ATT_QUERIES;
    const int strips = (q1 - q0 + ATT_QUERIES - 1) / ATT_QUERIES;
    const int end = job->causal && q1 < job->tk ? q1 : job->tk;
    const size_t steps = job->steps, row0 = (size_t)(nh / job->heads) * (size_t)job->tq + (size_t)q0;
    const size_t column = (size_t)(nh % job->heads) * (size_t)d * dd_dtype_size(t);
    uint32_t *s = own, *packed_q = s + ATT_KEYS * ATT_QUERIES, *o = packed_q + ATT_STRIPS * ATT_QUERIES * steps;
    const size_t rows = (size_t)rows_of(d), o_units = ATT_QUERIES * rows;
    running run[ATT_STRIPS];
    for (int i = 0; i < strips; i++) {
        pack_queries(dot, t, packed_q + (size_t)i * ATT_QUERIES * steps,
                     job->q + (row0 + (size_t)i * ATT_QUERIES) * job->q_ld + column, job->q_ld,
                     q1 - q0 - i * ATT_QUERIES, d, steps);
        run[i].sum[0] = run[i].sum[1] = set1(0.0f);
    }
    memset(o, 0, (size_t)strips * o_units * 4);
    for (int key = 0; key < end; key += ATT_KEYS) {
        const int keys = end - key < ATT_KEYS ? end - key : ATT_KEYS;
        const uint32_t *k = job->packed_k + (size_t)nh * job->k_units + (size_t)key * steps;
        const uint32_t *v = job->packed_v + (size_t)nh * job->v_units + (size_t)(dot ? key / 2 : key) * rows;
        for (int i = 0; i < strips; i++) {
            if (!job->causal || key <= q0 + (i + 1) * ATT_QUERIES - 1) {
                attend(dot, k, v, packed_q + (size_t)i * ATT_QUERIES * steps, keys, key, q0 + i * ATT_QUERIES, steps, d,
                       job->c, job->causal, s, o + (size_t)i * o_units, &run[i]);
            }
        }
    }
    for (int i = 0; i < strips; i++) {
        const int left = q1 - q0 - i * ATT_QUERIES;
        write_result(t, job->dst + (row0 + (size_t)i * ATT_QUERIES) * job->dst_ld + column, job->dst_ld,
                     o + (size_t)i * o_units, &run[i], left < ATT_QUERIES ? left : ATT_QUERIES, d);
    }
}

static void attention(dd_dtype dtype, const dd_attention_call *call)
{
    const int n = call->n, heads = call->heads, tq = call->tq, tk = call->tk, d = call->d;
    const size_t size = dd_dtype_size(dtype);
    const bool bf16 = DD_AMX || dtype == DD_BF16, dot = DD_BF16_DOT && bf16;
    attention_job job = {
        .dst = call->dst, .q = call->q, .k = call->k, .v = call->v,
        .dst_ld = call->dst_ld * size, .q_ld = call->q_ld * size, .k_ld = call->k_ld * size, .v_ld = call->v_ld * size,
        .heads = heads, .tq = tq, .tk = tk, .d = d, .c = call->scale * 1.44269504f, .causal = call->causal,
        .steps = steps_of(dot, d), .k_units = head_units_k(dot, tk, d), .v_units = head_units_v(dot, tk, d),
        .packed_k = call->scratch,
    };
    job.packed_v = job.packed_k + (size_t)n * (size_t)heads * job.k_units;
    job.own = job.packed_v + (size_t)n * (size_t)heads * job.v_units;
    const int key_blocks = (tk + ATT_KEYS - 1) / ATT_KEYS,
              query_blocks = (tq + ATT_STRIPS * ATT_QUERIES - 1) / (ATT_STRIPS * ATT_QUERIES);

    /* The type is told apart in here: it would be no constant in the function that OpenMP makes of the region. */
#pragma omp parallel
    {
#pragma omp for collapse(2) schedule(static)
        for (int nh = 0; nh < n * heads; nh++) {
            for (int b = 0; b < key_blocks; b++) {
                if (bf16) {
                    pack_keys(DD_BF16_DOT, DD_BF16, &job, nh, b);
                } else {
                    pack_keys(false, DD_F32, &job, nh, b);
                }
            }
        }
#if DD_AMX
        tiles_begin();
#endif
        uint32_t *own = job.own + (size_t)omp_get_thread_num() * thread_units(dot, d);
#pragma omp for collapse(2) schedule(dynamic)
        for (int nh = 0; nh < n * heads; nh++) {
            for (int b = 0; b < query_blocks; b++) {
                if (bf16) {
                    attend_queries(DD_BF16_DOT, DD_BF16, &job, nh, b, own);
                } else {
                    attend_queries(false, DD_F32, &job, nh, b, own);
                }
            }
        }
#if DD_AMX
        tiles_end();
#endif
    }
}

static size_t attention_scratch(dd_dtype dtype, const dd_attention_call *sizes, int threads)
{
    const int n = sizes->n, heads = sizes->heads, tk = sizes->tk, d = sizes->d;
    const bool dot = DD_BF16_DOT && (DD_AMX || dtype == DD_BF16);
    return 4 * ((size_t)n * (size_t)heads * (head_units_k(dot, tk, d) + head_units_v(dot, tk, d)) +
                (size_t)threads * thread_units(dot, d));
}

#endif
