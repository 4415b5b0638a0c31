/* The kernel for AMX: attention in bf16, its products on tiles. All others are AVX512-BF16's. */
#include "kernels/table.h"

#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16")
#define DD_VECTOR 16
#define DD_BF16_DOT 1
#define DD_AMX 1
#include "kernels/attention.h"

void dd_attention_amx(dd_dtype dtype, void *dst, size_t dst_ld, const void *q, size_t q_ld, const void *k, size_t k_ld, const void *v,
                      size_t v_ld, int n, int heads, int tq, int tk, int d, float scale, bool causal, void *scratch)
{
    attention(dtype, dst, dst_ld, q, q_ld, k, k_ld, v, v_ld, n, heads, tq, tk, d, scale, causal, scratch);
}

size_t dd_attention_amx_scratch(dd_dtype dtype, int n, int heads, int tq, int tk, int d, int threads)
{
    return attention_scratch(dtype, n, heads, tq, tk, d, threads);
}
