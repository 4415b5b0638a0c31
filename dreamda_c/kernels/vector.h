/* Vectors of DD_VECTOR floats under one set of names, and the exponential. Part of kernels/template.h, compiled once
 * per instruction set.
 *
 *     vf x = load_up_to(DD_BF16, src, i, count);        // count <= DD_VECTOR elements, the other lanes zero
 *     store_up_to(DD_BF16, dst, i, silu_of(DD_BF16, x), count);
 */
#ifndef DD_KERNELS_VECTOR_H
#define DD_KERNELS_VECTOR_H

#include "base/dtype.h"

#include <immintrin.h>
#include <stdbool.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* Round to nearest even; NaN stays NaN. */
INLINE __m128i bf16_of_8(__m256 x)
{
    __m256i u = _mm256_castps_si256(x), top = _mm256_srli_epi32(u, 16);
    __m256i even = _mm256_and_si256(top, _mm256_set1_epi32(1));
    __m256i r = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(even, _mm256_set1_epi32(0x7fff))), 16);
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    r = _mm256_blendv_epi8(r, _mm256_or_si256(top, _mm256_set1_epi32(0x40)), nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
}

#if DD_VECTOR == 16
typedef __m512 vf;
INLINE vf set1(float x) { return _mm512_set1_ps(x); }
INLINE vf add(vf a, vf b) { return _mm512_add_ps(a, b); }
INLINE vf sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
INLINE vf mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
INLINE vf divide(vf a, vf b) { return _mm512_div_ps(a, b); }
INLINE vf reciprocal(vf a) { return _mm512_rcp14_ps(a); }               /* good for bf16: 2^-14 */
INLINE vf fma_(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }   /* a b + c */
INLINE vf fms(vf a, vf b, vf c) { return _mm512_fmsub_ps(a, b, c); }    /* a b - c */
INLINE vf larger(vf a, vf b) { return _mm512_max_ps(a, b); }            /* b where either is NaN */
INLINE vf smaller(vf a, vf b) { return _mm512_min_ps(a, b); }           /* likewise */
INLINE vf nearest(vf a) { return _mm512_roundscale_ps(a, 8); }
INLINE vf where_ge(vf a, vf b, vf x, vf y) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GE_OQ), y, x); }
INLINE bool any_less(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ) != 0; }
INLINE vf load_f32(const void *p) { return _mm512_loadu_ps(p); }
INLINE void store_f32(void *p, vf x) { _mm512_storeu_ps(p, x); }
INLINE vf broadcast(const uint32_t *p) { return _mm512_castsi512_ps(_mm512_set1_epi32((int)*p)); }
INLINE float horizontal_sum(vf x) { return _mm512_reduce_add_ps(x); }
INLINE void store_halves(void *low, void *high, vf x)
{
    _mm256_storeu_ps(low, _mm512_castps512_ps256(x));
    _mm256_storeu_pd(high, _mm512_extractf64x4_pd(_mm512_castps_pd(x), 1));
}
INLINE vf lanes(void) { return _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0); }
/* x times 2 to the power in the low bits of `shifted` (see exp2_reduced). */
INLINE vf scale_by_bits(vf x, vf shifted)
{
    __m512i e = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), e));
}
INLINE vf load_bf16(const void *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p)), 16));
}
INLINE void store_bf16(void *p, vf x)
{
#if DD_BF16_DOT
    _mm256_storeu_si256(p, (__m256i)_mm512_cvtneps_pbh(x));
#else
    __m512i u = _mm512_castps_si512(x), top = _mm512_srli_epi32(u, 16);
    __m512i even = _mm512_and_si512(top, _mm512_set1_epi32(1));
    __m512i r = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff))), 16);
    r = _mm512_mask_or_epi32(r, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), top, _mm512_set1_epi32(0x40));
    _mm256_storeu_si256(p, _mm512_cvtepi32_epi16(r));
#endif
}
/* Rounded as dd_f32_to_bf16 does it, in the upper half of each lane. */
INLINE __m512i bf16_upper(vf x)
{
    const __m512i u = _mm512_castps_si512(x), even = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i r = _mm512_add_epi32(u, _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff)));
    return _mm512_mask_or_epi32(r, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), u, _mm512_set1_epi32(0x400000));
}
/* Lanes that are pairs of bf16. */
INLINE vf bf16_pairs(vf first, vf second)
{
    const __m512i upper = _mm512_and_si512(bf16_upper(second), _mm512_set1_epi32((int)0xffff0000));
    return _mm512_castsi512_ps(_mm512_or_si512(_mm512_srli_epi32(bf16_upper(first), 16), upper));
}
#else
typedef __m256 vf;
INLINE vf set1(float x) { return _mm256_set1_ps(x); }
INLINE vf add(vf a, vf b) { return _mm256_add_ps(a, b); }
INLINE vf sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
INLINE vf mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
INLINE vf divide(vf a, vf b) { return _mm256_div_ps(a, b); }
INLINE vf reciprocal(vf a)                                              /* good for bf16 */
{
    vf r = _mm256_rcp_ps(a);
    return _mm256_mul_ps(r, _mm256_fnmadd_ps(a, r, _mm256_set1_ps(2.0f)));
}
INLINE vf fma_(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }   /* a b + c */
INLINE vf fms(vf a, vf b, vf c) { return _mm256_fmsub_ps(a, b, c); }    /* a b - c */
INLINE vf larger(vf a, vf b) { return _mm256_max_ps(a, b); }            /* b where either is NaN */
INLINE vf smaller(vf a, vf b) { return _mm256_min_ps(a, b); }           /* likewise */
INLINE vf nearest(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vf where_ge(vf a, vf b, vf x, vf y) { return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_GE_OQ)); }
INLINE bool any_less(vf a, vf b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LT_OQ)) != 0; }
INLINE vf load_f32(const void *p) { return _mm256_loadu_ps(p); }
INLINE void store_f32(void *p, vf x) { _mm256_storeu_ps(p, x); }
INLINE vf broadcast(const uint32_t *p) { return _mm256_castsi256_ps(_mm256_set1_epi32((int)*p)); }
INLINE void store_halves(void *low, void *high, vf x)
{
    _mm_storeu_ps(low, _mm256_castps256_ps128(x));
    _mm_storeu_ps(high, _mm256_extractf128_ps(x, 1));
}
INLINE float horizontal_sum(vf x)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
INLINE vf lanes(void) { return _mm256_set_ps(7, 6, 5, 4, 3, 2, 1, 0); }
/* x times 2 to the power in the low bits of `shifted` (see exp2_reduced). */
INLINE vf scale_by_bits(vf x, vf shifted)
{
    __m256i e = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), e));
}
INLINE vf load_bf16(const void *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), 16));
}
INLINE void store_bf16(void *p, vf x) { _mm_storeu_si128(p, bf16_of_8(x)); }
/* Lanes that are pairs of bf16. */
INLINE vf bf16_pairs(vf first, vf second)
{
    const __m256i lower = _mm256_cvtepu16_epi32(bf16_of_8(first)), upper = _mm256_cvtepu16_epi32(bf16_of_8(second));
    return _mm256_castsi256_ps(_mm256_or_si256(lower, _mm256_slli_epi32(upper, 16)));
}
#endif

INLINE void transpose8(__m256 r[8])
{
    __m256 t[8], u[8];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
        u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
        u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
        u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
        r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
    }
}

INLINE vf load(dd_dtype t, const void *p, size_t i)
{
    return t == DD_BF16 ? load_bf16((const uint16_t *)p + i) : load_f32((const float *)p + i);
}

INLINE void store(dd_dtype t, void *p, size_t i, vf x)
{
    if (t == DD_BF16) {
        store_bf16((uint16_t *)p + i, x);
    } else {
        store_f32((float *)p + i, x);
    }
}

/* The first `count` < DD_VECTOR elements; the other lanes are zero. */
INLINE vf load_part(dd_dtype t, const void *p, size_t i, size_t count)
{
    uint32_t buffer[DD_VECTOR] = {0};
    memcpy(buffer, (const char *)p + i * dd_dtype_size(t), count * dd_dtype_size(t));
    return load(t, buffer, 0);
}

INLINE void store_part(dd_dtype t, void *p, size_t i, vf x, size_t count)
{
    uint32_t buffer[DD_VECTOR];
    store(t, buffer, 0, x);
    memcpy((char *)p + i * dd_dtype_size(t), buffer, count * dd_dtype_size(t));
}

INLINE vf load_up_to(dd_dtype t, const void *p, size_t i, size_t count)
{
    return count == DD_VECTOR ? load(t, p, i) : load_part(t, p, i, count);
}

INLINE void store_up_to(dd_dtype t, void *p, size_t i, vf x, size_t count)
{
    if (count == DD_VECTOR) {
        store(t, p, i, x);
    } else {
        store_part(t, p, i, x, count);
    }
}

/* acc + a b; `dot`: of units that are pairs of bf16, both products are added. */
INLINE vf multiply_add(const bool dot, vf acc, vf a, vf b)
{
#if DD_BF16_DOT
    if (dot) {
        return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b);
    }
#endif
    (void)dot;
    return fma_(a, b, acc);
}

/* ---- exponential ---------------------------------------------------------------------------------------------- */

#define ROUND_BY_ADDING 12582912.0f /* 1.5 * 2^23: x + this has the integer nearest to x in its low bits */

/* 2^(f + r), |f| <= 1/2 and `shifted` = r + ROUND_BY_ADDING, -126 <= r <= 127. Least-maximum fits of 2^f with p(0) = 1:
   the relative error is below 3e-6 for degree 4, one ulp of a float for 6. */
INLINE vf exp2_reduced(vf f, vf shifted, const int degree)
{
    static const float fit[2][6] = {
        {0.693124175f, 0.240240991f, 0.0559064262f, 0.00958285294f},
        {0.693147182f, 0.240226477f, 0.0555033237f, 0.00961843692f, 0.00133988739f, 0.00015353362f},
    };
    const float *c = fit[degree == 4 ? 0 : 1];
    vf p = set1(c[degree - 1]);
#pragma GCC unroll 6
    for (int i = degree - 2; i >= 0; i--) {
        p = fma_(p, f, set1(c[i]));
    }
    return scale_by_bits(fma_(p, f, set1(1.0f)), shifted);
}

#if DD_BF16_DOT
/* 2^x, to be rounded to bf16 (up to 2e-3): the least-maximum fit with p(0) = 1 over the fraction of x, relative error
   below 8.6e-5. Any x: 0 far below, at -inf too. */
INLINE vf exp2_for_bf16(vf x)
{
    vf f = _mm512_reduce_ps(x, 9); /* x - floor(x) */
    vf p = fma_(fma_(set1(0.0770672411f), f, set1(0.22764498f)), f, set1(0.695116639f));
    return _mm512_scalef_ps(fma_(p, f, set1(1.0f)), x);
}
#endif

/* y / (1 + exp(-y)). */
INLINE vf silu_of(const dd_dtype t, vf y)
{
    const vf minus_log2e = set1(-1.44269504f);
    /* Beyond 87 the exponential would overflow; the result there is y or 0 within rounding. */
    vf z = smaller(set1(87.0f), larger(set1(-87.0f), y));
    vf shifted = fma_(z, minus_log2e, set1(ROUND_BY_ADDING));
    vf f = fms(z, minus_log2e, sub(shifted, set1(ROUND_BY_ADDING)));
    if (t == DD_BF16) {
        return mul(y, reciprocal(add(set1(1.0f), exp2_reduced(f, shifted, 4))));
    }
    f = fma_(z, set1(-1.92596299e-8f), f); /* the rounding error of log2(e) as a float */
    return divide(y, add(set1(1.0f), exp2_reduced(f, shifted, 6)));
}

#endif
