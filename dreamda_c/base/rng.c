/* Philox4x32-10 and Box-Muller in double precision, rounded to float at the very end.
 *
 * Bits must agree between machines, so nothing here calls libm: logarithm, sine and cosine are series of IEEE
 * additions, multiplications and divisions on short fixed arrays, which the compiler turns into whatever vectors the
 * target has.
 *
 * Streams: the Philox key is 64 bits of a block keyed by the seed with counter {image lo, image hi, stream, row}; the
 * block of numbers 4b .. 4b + 3 then has counter {b lo, b hi, variant, step}. Within one (seed, image, stream, row) no
 * two blocks share a counter; two different ones share a key with probability 2^-64.
 */
#include "base/rng.h"

#include <string.h>

/* A fused multiply-add would change the last bit on the machines that have it. */
#pragma GCC optimize("fp-contract=off")

#define LANES 16                  /* Philox blocks worked on together */
#define BATCH ((size_t)4 * LANES) /* normals they give */
#define TASK ((size_t)64 * BATCH) /* normals a thread draws at a time */

static inline void philox_rounds(uint32_t x[4][LANES], uint32_t k0, uint32_t k1, int lanes)
{
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < lanes; i++) {
            uint64_t p0 = (uint64_t)0xd2511f53u * x[0][i];
            uint64_t p1 = (uint64_t)0xcd9e8d57u * x[2][i];
            uint32_t y0 = (uint32_t)(p1 >> 32) ^ x[1][i] ^ k0;
            uint32_t y2 = (uint32_t)(p0 >> 32) ^ x[3][i] ^ k1;
            x[0][i] = y0;
            x[1][i] = (uint32_t)p1;
            x[2][i] = y2;
            x[3][i] = (uint32_t)p0;
        }
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
}

void dd_philox4x32_10(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4])
{
    uint32_t x[4][LANES];
    for (int w = 0; w < 4; w++) {
        x[w][0] = counter[w];
    }
    philox_rounds(x, key[0], key[1], 1);
    for (int w = 0; w < 4; w++) {
        out[w] = x[w][0];
    }
}

/* Unsigned to double through the signed conversion, the only one that plain x86-64 has vectors for. */
static inline double u32_to_double(uint32_t x)
{
    return (double)(int32_t)(x ^ 0x80000000u) + 2147483648.0;
}

/* -2 ln((x + 1/2) / 2^32): between 2.3e-10 and 45.7. */
static inline double minus_two_log(uint32_t x)
{
    double u = u32_to_double(x) + 0.5;
    uint64_t bits;
    memcpy(&bits, &u, 8);
    /* u = 2^e m with m in [1/sqrt(2), sqrt(2)): the offset moves the mantissas above sqrt(2) to the next exponent. */
    uint64_t shifted = bits + (0x3ff0000000000000u - 0x3fe6a09e667f3bcdu);
    uint64_t e = shifted >> 52;
    uint64_t m_bits = bits - ((e - 1023) << 52);
    double m;
    memcpy(&m, &m_bits, 8);
    double s = (m - 1.0) / (m + 1.0), z = s * s;
    double series = 1.0 / 13;
    series = series * z + 1.0 / 11;
    series = series * z + 1.0 / 9;
    series = series * z + 1.0 / 7;
    series = series * z + 1.0 / 5;
    series = series * z + 1.0 / 3;
    double log_m = 2.0 * s + 2.0 * s * z * series;
    /* e lies in 1022 .. 1055, so its low half is all of it. */
    double exponent = (double)((int32_t)(uint32_t)e - (1023 + 32));
    return -2.0 * (exponent * 0.69314718055994530942 + log_m);
}

/* Cosine and sine of a uniform angle: the quadrant is x's top two bits, the angle within it the other thirty,
   centred. */
static inline void unit_circle(uint32_t x, double *cosine, double *sine)
{
    double a = ((double)(int32_t)(x & 0x3fffffffu) + (0.5 - 536870912.0)) * (1.57079632679489661923 / 1073741824.0);
    double z = a * a;
    double c = 1.0 / 479001600, s = 1.0 / 6227020800.0;
    c = c * z - 1.0 / 3628800;
    c = c * z + 1.0 / 40320;
    c = c * z - 1.0 / 720;
    c = c * z + 1.0 / 24;
    c = c * z - 0.5;
    c = c * z + 1.0;
    s = s * z - 1.0 / 39916800;
    s = s * z + 1.0 / 362880;
    s = s * z - 1.0 / 5040;
    s = s * z + 1.0 / 120;
    s = s * z - 1.0 / 6;
    s = s * z + 1.0;
    s = s * a;
    double swap = (double)(int32_t)(x >> 30 & 1);
    double flip = 1.0 - 2.0 * (double)(int32_t)(x >> 31);
    double keep = 1.0 - swap;
    *cosine = flip * (keep * c - swap * s);
    *sine = flip * (keep * s + swap * c);
}

/* The normals of LANES successive blocks from `block` on. */
static void draw(const dd_noise_key *key, const uint32_t k[2], uint64_t block, float dst[BATCH])
{
    uint32_t x[4][LANES];
    double radius[LANES], c[LANES], s[LANES];
    for (int i = 0; i < LANES; i++) {
        x[0][i] = (uint32_t)(block + (uint64_t)i);
        x[1][i] = (uint32_t)((block + (uint64_t)i) >> 32);
        x[2][i] = key->variant;
        x[3][i] = key->step;
    }
    philox_rounds(x, k[0], k[1], LANES);
    for (int pair = 0; pair < 2; pair++) {
        const uint32_t *magnitude = x[2 * pair], *angle = x[2 * pair + 1];
        for (int i = 0; i < LANES; i++) {
            radius[i] = __builtin_sqrt(minus_two_log(magnitude[i]));
        }
        for (int i = 0; i < LANES; i++) {
            unit_circle(angle[i], &c[i], &s[i]);
        }
        for (int i = 0; i < LANES; i++) {
            dst[4 * i + 2 * pair] = (float)(radius[i] * c[i]);
            dst[4 * i + 2 * pair + 1] = (float)(radius[i] * s[i]);
        }
    }
}

void dd_normals(const dd_noise_key *key, size_t first, size_t count, float *dst)
{
    const uint32_t seed[2] = {(uint32_t)key->seed, (uint32_t)(key->seed >> 32)};
    const uint32_t purpose[4] = {(uint32_t)key->image, (uint32_t)(key->image >> 32), key->stream, key->row};
    uint32_t k[4];
    dd_philox4x32_10(purpose, seed, k);

    ptrdiff_t tasks = (ptrdiff_t)((count + TASK - 1) / TASK);
#pragma omp parallel for schedule(static) if (tasks > 4)
    for (ptrdiff_t t = 0; t < tasks; t++) {
        size_t end = (size_t)(t + 1) * TASK < count ? (size_t)(t + 1) * TASK : count;
        for (size_t i = (size_t)t * TASK; i < end; i += BATCH) {
            uint64_t block = (first + i) / 4;
            if (end - i >= BATCH) {
                draw(key, k, block, dst + i);
            } else {
                float last[BATCH];
                draw(key, k, block, last);
                memcpy(dst + i, last, (end - i) * sizeof *dst);
            }
        }
    }
}
