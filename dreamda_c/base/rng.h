/* Counter-based normal noise: Philox4x32-10, keyed by what the noise is for, never by when it is drawn.
 *
 *     dd_noise_key key = {.seed = 7, .image = 42, .variant = 3, .step = 10, .stream = 0, .row = 1};
 *     dd_normals(&key, 0, 1280 * 64, x);
 *
 * Element i of a key is the same number whatever the thread count, the batch, the order or the machine: only IEEE
 * additions, multiplications and square roots are used, never the C library's functions.
 */
#ifndef DD_RNG_H
#define DD_RNG_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint64_t seed, image;
    uint32_t variant, step, stream, row;
} dd_noise_key;

/* One block of Philox4x32-10 (Salmon et al., 2011; Random123's known answers are in the tests). */
void dd_philox4x32_10(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

/* dst[i] = normal number `first + i` of `key`, i < count (`first` a multiple of 4). N(0, 1), finite, |x| < 6.7.
   Uses OpenMP for large counts; the result does not depend on it. */
void dd_normals(const dd_noise_key *key, size_t first, size_t count, float *dst);

#endif
