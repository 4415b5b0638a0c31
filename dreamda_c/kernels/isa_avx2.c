/* The kernels for AVX2 + FMA: eight floats to a vector, bfloat16 widened by integer shifts. */
#include "kernels/table.h"

#pragma GCC target("avx2,fma,f16c")
#define DD_KERNELS dd_kernels_avx2
#define DD_VECTOR 8
#define DD_BF16_DOT 0
#define DD_AMX 0
#include "kernels/template.h"
