/* The loops that oneDNN 3.2 lacks. Pure functions on pointers and sizes; activations are channels-last rows ("tokens")
 * of type `dtype` (DD_F32 or DD_BF16), statistics and parameters are f32. All run in OpenMP over the caller's thread
 * count (omp_get_max_threads), allocate nothing, and compute all rows (images) of a batch in the same way: a row is
 * bitwise identical for any position in the batch and any neighbours.
 *
 *     dd_isa isa = dd_best_isa();
 *     size_t bytes = dd_group_norm_scratch(n, hw, c);        // from the caller's arena, 64-byte aligned
 *     dd_group_norm(isa, DD_BF16, &(dd_group_norm_call){.dst = dst, .src = src, .gamma = gamma, .beta = beta, .n = n,
 *                                                       .hw = hw, .c = c, .groups = 32, .eps = 1e-5f, .silu = true,
 *                                                       .scratch = scratch});
 */
#ifndef DD_KERNELS_H
#define DD_KERNELS_H

#include "base/dtype.h"
#include "base/rng.h"

#include <stdbool.h>

/* Features of this processor. dd_cpu_supported: whether it has the minimum, AVX2 + FMA + F16C. */
bool dd_cpu_supported(void);
dd_isa dd_best_isa(void);

/* dst (n, hw, c + beside_c) = GroupNorm(concatenation of src (n, hw, c) and beside (n, hw, beside_c) along channels)
   [times 1 + scale, plus shift] [then SiLU]. Statistics are two-pass or Chan-combined in chunks whose size does not
   depend on the thread count. */
typedef struct {
    void *dst; /* may be src where there is no `beside` */
    const void *src, *beside; /* beside may be NULL, with beside_c 0 */
    const float
        *row_bias; /* if not NULL, added to the input first: channel i of row r at row_bias[r * row_bias_ld + i] */
    size_t row_bias_ld;
    /* If not NULL: of row r, the scales of all channels from scale_shift[r * scale_shift_ld], then their shifts. */
    const float *scale_shift;
    size_t scale_shift_ld;
    const float *gamma, *beta; /* c + beside_c each */
    int n, hw, c, beside_c;
    int groups; /* divides c + beside_c; a group may straddle the two sources */
    float eps;
    bool silu;
    void *scratch;
} dd_group_norm_call;
void dd_group_norm(dd_isa isa, dd_dtype dtype, const dd_group_norm_call *call);
size_t dd_group_norm_scratch(int n, int hw, int c);

/* dst (rows, c) = LayerNorm(src (rows, c)). */
void dd_layer_norm(dd_isa isa, dd_dtype dtype, void *dst, const void *src, const float *gamma, const float *beta,
                   int rows, int c, float eps);

/* dst = softmax(scale * q k^T [+ causal mask]) v, per row and head, without ever holding a (tq, tk) matrix: blocks
   small enough for L2, online softmax, f32 accumulation. q and dst: n * tq rows, k and v: n * tk rows; row r starts at
   element r * ld, and head h takes its elements [h * d, (h + 1) * d). */
typedef struct {
    void *dst;
    const void *q, *k, *v;
    size_t dst_ld, q_ld, k_ld, v_ld;
    int n, heads, tq, tk, d; /* tk >= 1, d >= 1 (any; 40, 64, 80, 160, 512 are hot) */
    float scale;             /* > 0, and |scale * score| below 2e6 */
    bool causal;             /* key j is visible to query i when j <= i, also where tq != tk */
    void *scratch;           /* for the thread count given to dd_attention_scratch, the maximum */
} dd_attention_call;
void dd_attention(dd_isa isa, dd_dtype dtype, const dd_attention_call *call);
size_t dd_attention_scratch(dd_isa isa, dd_dtype dtype, const dd_attention_call *sizes,
                            int threads); /* reads n, heads, tk and d alone */

/* dst (n, h, w, oc) = 3 x 3 convolution of src (n, h, w, ic), stride 1, padding 1, by Winograd's F(2 x 2, 3 x 3) [+
   bias] [+ residual] [then ReLU]. bf16 needs DD_ISA_AVX512_BF16. */
typedef struct {
    /* May be residual. Without `up`, for an even h and 2 oc <= ic, it may be src; the result is then at
       its front: see dd_winograd_scratch. */
    void *dst;
    const void *src, *weights; /* weights: from dd_winograd_pack for the same isa and `up` */
    const float *bias;         /* may be NULL */
    const void *residual;      /* like dst; may be NULL */
    bool relu;
    bool up; /* of src enlarged twice by nearest neighbours: dst is (n, 2 h, 2 w, oc) */
    int n, h, w, ic, oc; /* 16 divides ic, dd_winograd_columns divides oc */
    void *scratch;       /* for the thread count given to dd_winograd_scratch, the maximum */
} dd_winograd_call;
void dd_winograd(dd_isa isa, dd_dtype dtype, const dd_winograd_call *call);
/* in_place_width: the width of the images where dst is src, else 0. */
size_t dd_winograd_scratch(dd_isa isa, dd_dtype dtype, int ic, int threads, int in_place_width);
int dd_winograd_columns(dd_isa isa);
bool dd_winograd_takes(dd_isa isa, int kernel, int stride, int pad_before, int pad_after, int ic,
                       int oc); /* a convolution of that shape */

/* plain (oc, ic, 3, 3) f32 -> the transformed weights: 16 / 9 of the elements, with `up` the same number. BACKWARD:
   weights that give the source's gradient from the result's, as a convolution from oc to ic channels. */
typedef enum { DD_WINOGRAD_FORWARD, DD_WINOGRAD_BACKWARD, DD_WINOGRAD_UP } dd_winograd_kind;
void dd_winograd_pack(dd_isa isa, dd_dtype dtype, void *dst, const float *plain, int ic, int oc, dd_winograd_kind kind);
size_t dd_winograd_pack_bytes(dd_dtype dtype, int ic, int oc, dd_winograd_kind kind);

/* diffusers' get_timestep_embedding with max_period 10000: dst (n, dim) of `dtype`, t (n) f32. */
void dd_timestep_embedding(dd_dtype dtype, void *dst, const float *t, int n, int dim, bool flip_sin_to_cos,
                           float freq_shift);

/* Nearest: dst (n, oh, ow, c), src (n, h, w, c), source index floor(i * h / oh). */
void dd_upsample_nearest(dd_dtype dtype, void *dst, const void *src, int n, int h, int w, int c, int oh, int ow);

/* src (n, c, hw) f32 <-> channels-last (n, hw, c) of `dtype`. */
void dd_from_nchw(dd_dtype dtype, void *dst, const float *src, int n, int c, int hw);
void dd_to_nchw(dd_dtype dtype, float *dst, const void *src, int n, int c, int hw);

/* dst (n, hw, c) = src + scale[i] * noise, row by row; rows with scale 0 are copied unchanged. The noise of row i is
   given[i] ((n, c, hw) f32, channel-major) or, if given is NULL, normal number c * hw + p of keys[i] for channel c,
   position p: the two are bitwise identical. dst may be src. `scratch`: dd_add_noise_scratch bytes. */
void dd_add_noise(dd_dtype dtype, void *dst, const void *src, const float *scale, const float *given,
                  const dd_noise_key *keys, int n, int c, int hw, void *scratch);
size_t dd_add_noise_scratch(int n, int c, int hw);

/* dst (n, t, c) = tokens[ids[i]] [+ positions[i % t]]; tables f32, positions may be NULL; ids already checked. */
void dd_embed(dd_dtype dtype, void *dst, const int32_t *ids, const float *tokens, const float *positions, int n, int t,
              int c);

/* Element conversion between DD_F32, DD_BF16 and (as a source only) DD_F16. */
void dd_convert(dd_dtype dst_type, void *dst, dd_dtype src_type, const void *src, size_t count);

#endif
