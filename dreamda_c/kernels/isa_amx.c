/* The kernel for AMX: attention in bf16, its products on tiles. All others are AVX512-BF16's. */
#include "kernels/table.h"

#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16")
#define DD_VECTOR 16
#define DD_BF16_DOT 1
#define DD_AMX 1
#include "kernels/attention.h"

void dd_attention_amx(dd_dtype dtype, const dd_attention_call *call)
{
    attention(dtype, call);
}

size_t dd_attention_amx_scratch(dd_dtype dtype, const dd_attention_call *sizes, int threads)
{
    return attention_scratch(dtype, sizes, threads);
}
