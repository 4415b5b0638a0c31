/* The kernels for AMX, in bf16: attention and weight gradients, their products on tiles. All others are
   AVX512-BF16's. */
#include "kernels/table.h"

#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16")
#define DD_VECTOR 16
#define DD_BF16_DOT 1
#define DD_AMX 1
#include "kernels/attention.h"
#include "kernels/tile_gradient.h"

void dd_attention_amx(dd_dtype dtype, const dd_attention_call *call)
{
    attention(dtype, call);
}

size_t dd_attention_amx_scratch(dd_dtype dtype, const dd_attention_call *sizes, int threads)
{
    return attention_scratch(dtype, sizes, threads);
}

void dd_weight_gradient_amx(float *gradient, const void *src, const void *d_dst, const dd_window *window, void *scratch)
{
    tile_gradient(gradient, src, d_dst, window, scratch);
}

size_t dd_weight_gradient_amx_scratch(const dd_window *window)
{
    return tile_gradient_scratch(window);
}
