/* The vector kernels, written once. An isa_*.c file sets `#pragma GCC target` and these, then includes this file:
 *
 *     #define DD_KERNELS dd_kernels_avx512   // the table to define
 *     #define DD_VECTOR 16                   // floats in a vector: 8 (AVX2) or 16 (AVX-512)
 *     #define DD_BF16_DOT 0                  // 1 if AVX512-BF16 is available
 *     #define DD_AMX 0                       // 1 in isa_amx.c, which includes only attention.h and tile_gradient.h
 *     #include "kernels/template.h"
 */
#include "kernels/attention.h"
#include "kernels/batch_norm.h"
#include "kernels/norm.h"
#include "kernels/table.h"
#include "kernels/winograd.h"
#include "kernels/winograd_gradient.h"
#include "kernels/winograd_pack.h"

const dd_kernel_table DD_KERNELS = {
    .group_norm = group_norm,
    .layer_norm = layer_norm,
    .attention = attention,
    .attention_scratch = attention_scratch,
    .winograd = winograd,
    .winograd_scratch = winograd_scratch,
    .winograd_pack = winograd_pack,
    .weight_gradient = weight_gradient,
    .weight_gradient_scratch = weight_gradient_scratch,
    .batch_norm_forward = batch_norm_forward,
    .batch_norm_backward = batch_norm_backward,
    .accumulate = accumulate,
};
