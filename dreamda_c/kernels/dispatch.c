/* The kernels without vectors of their own (memory-bound or small), and the choice of instruction set for the
   others. */
#define _DEFAULT_SOURCE /* syscall */
#include "kernels/kernels.h"

#include "kernels/table.h"

#include <math.h>
#include <omp.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

bool dd_cpu_supported(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

/* Linux keeps the tiles of a process only if it has asked; asking again is free, and threads inherit it. */
static bool tiles_permitted(void)
{
    enum {
        REQUEST = 0x1023,
        TILE_DATA = 18
    }; /* ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA: in the headers since Linux 5.16 alone */
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}

dd_isa dd_best_isa(void)
{
    if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))) {
        return DD_ISA_AVX2;
    }
    if (!__builtin_cpu_supports("avx512bf16")) {
        return DD_ISA_AVX512;
    }
    return __builtin_cpu_supports("amx-bf16") && tiles_permitted() ? DD_ISA_AMX : DD_ISA_AVX512_BF16;
}

size_t dd_group_norm_scratch(int n, int hw, int c)
{
    const size_t chunk = (size_t)dd_group_norm_chunk(c), chunks = ((size_t)hw + chunk - 1) / chunk;
    return (size_t)n * (2 * chunks + 3) * dd_group_norm_channels(c) * sizeof(float);
}

void dd_group_norm(dd_isa isa, dd_dtype dtype, const dd_group_norm_call *call)
{
    dd_kernels(isa)->group_norm(dtype, call);
}

void dd_layer_norm(dd_isa isa, dd_dtype dtype, void *dst, const void *src, const float *gamma, const float *beta,
                   int rows, int c, float eps)
{
    dd_kernels(isa)->layer_norm(dtype, dst, src, gamma, beta, rows, c, eps);
}

void dd_attention(dd_isa isa, dd_dtype dtype, const dd_attention_call *call)
{
    if (isa == DD_ISA_AMX && dtype == DD_BF16) {
        dd_attention_amx(dtype, call);
    } else {
        dd_kernels(isa)->attention(dtype, call);
    }
}

size_t dd_attention_scratch(dd_isa isa, dd_dtype dtype, const dd_attention_call *sizes, int threads)
{
    if (isa == DD_ISA_AMX && dtype == DD_BF16) {
        return dd_attention_amx_scratch(dtype, sizes, threads);
    }
    return dd_kernels(isa)->attention_scratch(dtype, sizes, threads);
}

void dd_winograd(dd_isa isa, dd_dtype dtype, const dd_winograd_call *call)
{
    dd_kernels(isa)->winograd(dtype, call);
}

size_t dd_winograd_scratch(dd_isa isa, dd_dtype dtype, int ic, int threads, int in_place_width)
{
    return dd_kernels(isa)->winograd_scratch(dtype, ic, threads, in_place_width);
}

int dd_winograd_columns(dd_isa isa) { return isa == DD_ISA_AVX2 ? 16 : 32; }

bool dd_winograd_takes(dd_isa isa, int kernel, int stride, int pad_before, int pad_after, int ic, int oc)
{
    return kernel == 3 && stride == 1 && pad_before == 1 && pad_after == 1 && ic % 16 == 0 &&
           oc % dd_winograd_columns(isa) == 0;
}

void dd_winograd_pack(dd_isa isa, dd_dtype dtype, void *dst, const float *plain, int ic, int oc, dd_winograd_kind kind)
{
    dd_kernels(isa)->winograd_pack(dtype, dst, plain, ic, oc, kind);
}

size_t dd_winograd_pack_bytes(dd_dtype dtype, int ic, int oc, dd_winograd_kind kind)
{
    return (size_t)dd_winograd_points(kind == DD_WINOGRAD_UP) * (size_t)ic * (size_t)oc * dd_dtype_size(dtype);
}

static inline float get(dd_dtype t, const void *p, size_t i)
{
    return t == DD_BF16 ? dd_bf16_to_f32(((const uint16_t *)p)[i]) : ((const float *)p)[i];
}

static inline void put(dd_dtype t, void *p, size_t i, float x)
{
    if (t == DD_BF16) {
        ((uint16_t *)p)[i] = dd_f32_to_bf16(x);
    } else {
        ((float *)p)[i] = x;
    }
}

/* As diffusers does it, every step rounded to float: t can be 1000, so an angle's rounding shows in its sine. expl,
 * because glibc gave exp a new version in 2.29, which would be the only thing that keeps a wheel from systems with
 * 2.27. */
void dd_timestep_embedding(dd_dtype dtype, void *dst, const float *t, int n, int dim, bool flip_sin_to_cos,
                           float freq_shift)
{
    const int half = dim / 2;
    for (int i = 0; i < n; i++) {
        const size_t row = (size_t)i * (size_t)dim;
        for (int j = 0; j < half; j++) {
            const float exponent = -9.210340371976184f * (float)j / ((float)half - freq_shift);
            const float angle = t[i] * (float)expl((long double)exponent);
            const size_t s = (size_t)(flip_sin_to_cos ? half + j : j), c = (size_t)(flip_sin_to_cos ? j : half + j);
            put(dtype, dst, row + s, (float)sin((double)angle));
            put(dtype, dst, row + c, (float)cos((double)angle));
        }
        if (dim % 2) {
            put(dtype, dst, row + (size_t)dim - 1, 0.0f);
        }
    }
}

void dd_upsample_nearest(dd_dtype dtype, void *dst, const void *src, int n, int h, int w, int c, int oh, int ow)
{
    const size_t pixel = (size_t)c * dd_dtype_size(dtype);
#pragma omp parallel for collapse(2) schedule(static)
    for (int i = 0; i < n; i++) {
        for (int y = 0; y < oh; y++) {
            const char *from = (const char *)src +
                               ((size_t)i * (size_t)h + (size_t)((int64_t)y * h / oh)) * (size_t)w * pixel;
            char *to = (char *)dst + ((size_t)i * (size_t)oh + (size_t)y) * (size_t)ow * pixel;
            for (int x = 0; x < ow; x++) {
                memcpy(to + (size_t)x * pixel, from + (size_t)((int64_t)x * w / ow) * pixel, pixel);
            }
        }
    }
}

/* Channel-major to channels-last and back: blocks of this many positions by as many channels stay in L1. */
enum { TRANSPOSED = 32 };

void dd_from_nchw(dd_dtype dtype, void *dst, const float *src, int n, int c, int hw)
{
#pragma omp parallel for collapse(2) schedule(static)
    for (int i = 0; i < n; i++) {
        for (int p0 = 0; p0 < hw; p0 += TRANSPOSED) {
            const size_t base = (size_t)i * (size_t)c * (size_t)hw;
            const int p1 = hw - p0 < TRANSPOSED ? hw : p0 + TRANSPOSED;
            for (int c0 = 0; c0 < c; c0 += TRANSPOSED) {
                const int c1 = c - c0 < TRANSPOSED ? c : c0 + TRANSPOSED;
                for (int p = p0; p < p1; p++) {
                    for (int ch = c0; ch < c1; ch++) {
                        put(dtype, dst, base + (size_t)p * (size_t)c + (size_t)ch,
                            src[base + (size_t)ch * (size_t)hw + (size_t)p]);
                    }
                }
            }
        }
    }
}

void dd_to_nchw(dd_dtype dtype, float *dst, const void *src, int n, int c, int hw)
{
#pragma omp parallel for collapse(2) schedule(static)
    for (int i = 0; i < n; i++) {
        for (int p0 = 0; p0 < hw; p0 += TRANSPOSED) {
            const size_t base = (size_t)i * (size_t)c * (size_t)hw;
            const int p1 = hw - p0 < TRANSPOSED ? hw : p0 + TRANSPOSED;
            for (int c0 = 0; c0 < c; c0 += TRANSPOSED) {
                const int c1 = c - c0 < TRANSPOSED ? c : c0 + TRANSPOSED;
                for (int ch = c0; ch < c1; ch++) {
                    for (int p = p0; p < p1; p++) {
                        dst[base + (size_t)ch * (size_t)hw + (size_t)p] =
                            get(dtype, src, base + (size_t)p * (size_t)c + (size_t)ch);
                    }
                }
            }
        }
    }
}

size_t dd_add_noise_scratch(int n, int c, int hw)
{
    (void)n; /* rows are drawn one after the other */
    return (size_t)c * (size_t)hw * sizeof(float);
}

void dd_add_noise(dd_dtype dtype, void *dst, const void *src, const float *scale, const float *given,
                  const dd_noise_key *keys, int n, int c, int hw, void *scratch)
{
    const size_t row = (size_t)c * (size_t)hw, bytes = row * dd_dtype_size(dtype);
    for (int i = 0; i < n; i++) {
        const char *from = (const char *)src + (size_t)i * bytes;
        char *to = (char *)dst + (size_t)i * bytes;
        if (scale[i] == 0.0f) {
            memmove(to, from, bytes);
            continue;
        }
        const float *noise = given ? given + (size_t)i * row : scratch;
        if (!given) {
            dd_normals(&keys[i], 0, row, scratch);
        }
#pragma omp parallel for schedule(static)
        for (int p = 0; p < hw; p++) {
            for (int ch = 0; ch < c; ch++) {
                const size_t at = (size_t)p * (size_t)c + (size_t)ch;
                put(dtype, to, at, get(dtype, from, at) + scale[i] * noise[(size_t)ch * (size_t)hw + (size_t)p]);
            }
        }
    }
}

void dd_embed(dd_dtype dtype, void *dst, const int32_t *ids, const float *tokens, const float *positions, int n, int t,
              int c)
{
#pragma omp parallel for schedule(static)
    for (int i = 0; i < n * t; i++) {
        const float *token = tokens + (size_t)ids[i] * (size_t)c;
        const float *position = positions ? positions + (size_t)(i % t) * (size_t)c : NULL;
        for (int ch = 0; ch < c; ch++) {
            put(dtype, dst, (size_t)i * (size_t)c + (size_t)ch, position ? token[ch] + position[ch] : token[ch]);
        }
    }
}

/* Exact, and without branches so that it vectorises on any target. */
static inline float f16_to_f32(uint16_t h)
{
    const uint32_t exponent = h >> 10 & 31, mantissa = h & 1023, sign = (uint32_t)(h >> 15) << 31;
    const float small = (float)(int32_t)mantissa * 5.9604644775390625e-8f; /* subnormal: mantissa / 2^24 */
    uint32_t small_bits;
    memcpy(&small_bits, &small, 4);
    const uint32_t normal = (exponent + (exponent == 31 ? 224 : 112)) << 23 | mantissa << 13;
    const uint32_t bits = sign | (exponent == 0 ? small_bits : normal);
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

void dd_convert(dd_dtype dst_type, void *dst, dd_dtype src_type, const void *src, size_t count)
{
    const size_t part = 1 << 16;
    const ptrdiff_t parts = (ptrdiff_t)((count + part - 1) / part);
#pragma omp parallel for schedule(static) if (parts > 1)
    for (ptrdiff_t k = 0; k < parts; k++) {
        const size_t start = (size_t)k * part, some = count - start < part ? count - start : part;
        char *to = (char *)dst + start * dd_dtype_size(dst_type);
        const char *from = (const char *)src + start * dd_dtype_size(src_type);
        float *to_f32 = (float *)(void *)to;
        uint16_t *to_bf16 = (uint16_t *)(void *)to;
        const float *from_f32 = (const float *)(const void *)from;
        const uint16_t *from_16 = (const uint16_t *)(const void *)from;
        if (dst_type == src_type) {
            memcpy(to, from, some * dd_dtype_size(dst_type));
        } else if (src_type == DD_F32) {
            for (size_t i = 0; i < some; i++) {
                to_bf16[i] = dd_f32_to_bf16(from_f32[i]);
            }
        } else if (src_type == DD_BF16) {
            for (size_t i = 0; i < some; i++) {
                to_f32[i] = dd_bf16_to_f32(from_16[i]);
            }
        } else if (dst_type == DD_F32) {
            for (size_t i = 0; i < some; i++) {
                to_f32[i] = f16_to_f32(from_16[i]);
            }
        } else {
            for (size_t i = 0; i < some; i++) {
                to_bf16[i] = dd_f32_to_bf16(f16_to_f32(from_16[i]));
            }
        }
    }
}
