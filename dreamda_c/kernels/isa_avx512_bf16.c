/* The kernels for AVX-512 with AVX512-BF16: as AVX-512, and attention multiplies pairs of bfloat16. */
#include "kernels/table.h"

#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#define DD_KERNELS dd_kernels_avx512_bf16
#define DD_VECTOR 16
#define DD_BF16_DOT 1
#define DD_AMX 0
#include "kernels/template.h"
