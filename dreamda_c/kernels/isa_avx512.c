/* The kernels for AVX-512 (F, BW, DQ, VL): sixteen floats to a vector, bfloat16 widened by integer shifts. */
#include "kernels/table.h"

#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")
#define DD_KERNELS dd_kernels_avx512
#define DD_VECTOR 16
#define DD_BF16_DOT 0
#define DD_AMX 0
#include "kernels/template.h"
