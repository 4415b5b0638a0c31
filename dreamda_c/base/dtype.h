/* Element types of activations, and the instruction sets that our own kernels are written for.
 *
 *     size_t bytes = (size_t)n * dd_dtype_size(DD_BF16);
 *     float x = dd_bf16_to_f32(h[0]);
 */
#ifndef DD_DTYPE_H
#define DD_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef enum { DD_F32, DD_BF16, DD_F16, DD_S32, DD_U32 } dd_dtype;

/* In rising order; the plan picks one at run time (dd_kernels). */
typedef enum { DD_ISA_AVX2, DD_ISA_AVX512, DD_ISA_AVX512_BF16, DD_ISA_AMX } dd_isa;

static inline size_t dd_dtype_size(dd_dtype t) { return t == DD_BF16 || t == DD_F16 ? 2 : 4; }

static inline float dd_bf16_to_f32(uint16_t h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

/* Round to nearest even; NaN stays NaN. */
static inline uint16_t dd_f32_to_bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffffu) > 0x7f800000u) {
        return (uint16_t)((u >> 16) | 0x40);
    }
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

#endif
