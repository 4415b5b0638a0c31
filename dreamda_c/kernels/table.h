/* The kernels that exist once per instruction set: kernels/template.h is compiled into one table for each, and
 * dispatch.c selects one.
 *
 *     const dd_kernel_table *k = dd_kernels(DD_ISA_AVX512);
 *     k->layer_norm(DD_F32, dst, src, gamma, beta, rows, c, eps);
 */
#ifndef DD_KERNELS_TABLE_H
#define DD_KERNELS_TABLE_H

#include "kernels/kernels.h"
#include "kernels/train.h"

typedef struct {
    void (*group_norm)(dd_dtype dtype, const dd_group_norm_call *call);
    void (*layer_norm)(dd_dtype dtype, void *dst, const void *src, const float *gamma, const float *beta,
                       int rows, int c, float eps);
    void (*attention)(dd_dtype dtype, const dd_attention_call *call);
    size_t (*attention_scratch)(dd_dtype dtype, const dd_attention_call *sizes, int threads);
    void (*winograd)(dd_dtype dtype, const dd_winograd_call *call);
    size_t (*winograd_scratch)(dd_dtype dtype, int ic, int threads, int in_place_width);
    void (*winograd_pack)(dd_dtype dtype, void *dst, const float *plain, int ic, int oc, dd_winograd_kind kind);
    void (*weight_gradient)(dd_dtype dtype, float *gradient, const void *src, const void *d_dst,
                            const dd_window *window, void *scratch);
    size_t (*weight_gradient_scratch)(dd_dtype dtype, const dd_window *window, int threads);
    void (*batch_norm_forward)(dd_dtype dtype, const dd_batch_norm *n, void *dst, const void *src, const void *residual,
                               void *scratch);
    void (*batch_norm_backward)(dd_dtype dtype, const dd_batch_norm *n, const dd_batch_norm_gradient *g, void *scratch);
    void (*accumulate)(dd_dtype dtype, void *dst, const void *src, size_t count);
} dd_kernel_table;

extern const dd_kernel_table dd_kernels_avx2, dd_kernels_avx512, dd_kernels_avx512_bf16;

/* AMX uses the kernels of AVX512-BF16, except for attention and weight gradients in bf16. */
static inline const dd_kernel_table *dd_kernels(dd_isa isa)
{
    return isa >= DD_ISA_AVX512_BF16 ? &dd_kernels_avx512_bf16
           : isa == DD_ISA_AVX512    ? &dd_kernels_avx512
                                     : &dd_kernels_avx2;
}

void dd_attention_amx(dd_dtype dtype, const dd_attention_call *call);
size_t dd_attention_amx_scratch(dd_dtype dtype, const dd_attention_call *sizes, int threads);
void dd_weight_gradient_amx(float *gradient, const void *src, const void *d_dst, const dd_window *window,
                            void *scratch);
size_t dd_weight_gradient_amx_scratch(const dd_window *window);

/* Products of a tile, and transformed weights of a filter. */
static inline int dd_winograd_points(bool up) { return up ? 9 : 16; }

/* Channels as dd_group_norm's scratch counts them: padded to whole vectors of the widest instruction set. */
static inline size_t dd_group_norm_channels(int c) { return ((size_t)c + 15) / 16 * 16; }

/* Number of positions per chunk of statistics: about 32 thousand elements, for any batch and any number of threads. */
static inline int dd_group_norm_chunk(int c)
{
    int rows = 32768 / c / 8 * 8;
    return rows < 8 ? 8 : rows > 512 ? 512 : rows;
}

/* Layout of batch norm's scratch: 8 rows of channels for coefficients, then two for each chunk of rows. Chunks hold
   about 64 thousand elements. */
static inline size_t dd_batch_norm_channels(int c) { return ((size_t)c + 15) / 16 * 16; }

static inline int64_t dd_batch_norm_chunk(int c)
{
    int64_t rows = 65536 / c / 8 * 8;
    return rows < 16 ? 16 : rows;
}

#endif
