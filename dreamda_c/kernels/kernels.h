/* The loops that oneDNN 3.2 lacks. Pure functions on pointers and sizes; activations are channels-last rows ("tokens") of
 * type `dtype` (DD_F32 or DD_BF16), statistics and parameters are f32. All run in OpenMP over the caller's thread count
 * (omp_get_max_threads), allocate nothing, and compute every row (image) of a batch alike: the bits of a row depend neither
 * on its place in the batch nor on its neighbours.
 *
 *     dd_isa isa = dd_best_isa();
 *     size_t bytes = dd_group_norm_scratch(n, hw, c);        // from the caller's arena, 64-byte aligned
 *     dd_group_norm(isa, DD_BF16, dst, src, c, NULL, 0, NULL, 0, gamma, beta, n, hw, 32, 1e-5f, true, scratch);
 */
#ifndef DD_KERNELS_H
#define DD_KERNELS_H

#include "base/dtype.h"
#include "base/rng.h"

#include <stdbool.h>

/* What this processor has (AVX2 + FMA + F16C is the least we support; dd_cpu_supported says whether it is there). */
bool dd_cpu_supported(void);
dd_isa dd_best_isa(void);

/* dst (n, hw, c0 + c1) = GroupNorm(concatenation of src0 (n, hw, c0) and src1 (n, hw, c1) along channels) [then SiLU].
   src1 may be NULL with c1 = 0. row_bias, if not NULL, is added to the input first: f32, channel c of row i at
   row_bias[i * row_bias_ld + c] (the timestep embedding of a ResNet block). gamma, beta: (c0 + c1). groups divides c0 + c1;
   a group may straddle the two sources. Statistics are two-pass or Chan-combined in chunks whose size does not depend on
   the thread count. dst may alias src0 when src1 is NULL. */
void dd_group_norm(dd_isa isa, dd_dtype dtype, void *dst, const void *src0, int c0, const void *src1, int c1,
                   const float *row_bias, size_t row_bias_ld, const float *gamma, const float *beta,
                   int n, int hw, int groups, float eps, bool silu, void *scratch);
size_t dd_group_norm_scratch(int n, int hw, int c);

/* dst (rows, c) = LayerNorm(src (rows, c)). */
void dd_layer_norm(dd_isa isa, dd_dtype dtype, void *dst, const void *src, const float *gamma, const float *beta,
                   int rows, int c, float eps);

/* dst = softmax(scale * q k^T [+ causal mask]) v, per row and head, without ever holding a (tq, tk) matrix: blocks small
   enough for L2, online softmax, f32 accumulation. q: n * tq rows, k and v: n * tk rows, dst: n * tq rows; row r starts at
   element r * ld, and head h takes its elements [h * d, (h + 1) * d). tk >= 1, d >= 1 (any; 40, 64, 80, 160, 512 are hot).
   Causal: key j is visible to query i when j <= i, also where tq != tk. scale > 0, and |scale * score| below 2e6. `scratch` is
   for the thread count given to dd_attention_scratch; no more may run. */
void dd_attention(dd_isa isa, dd_dtype dtype, void *dst, size_t dst_ld, const void *q, size_t q_ld,
                  const void *k, size_t k_ld, const void *v, size_t v_ld,
                  int n, int heads, int tq, int tk, int d, float scale, bool causal, void *scratch);
size_t dd_attention_scratch(dd_isa isa, dd_dtype dtype, int n, int heads, int tq, int tk, int d, int threads);

/* dst (n, h, w, oc) = 3 x 3 convolution of src (n, h, w, ic), stride 1, padding 1, by Winograd's F(2 x 2, 3 x 3) [+ bias]
   [+ residual, like dst] [then ReLU]. bias (f32) and residual may be NULL. ic divides by 16, oc by dd_winograd_columns. bf16 needs
   DD_ISA_AVX512_BF16. `up`: of src enlarged twice by nearest neighbours, dst is (n, 2 h, 2 w, oc). `weights` from dd_winograd_pack for the
   same isa and `up`; `scratch` as for attention. dst may be residual. Without `up`, for an even h and 2 oc <= ic, dst may be src, whose front
   it takes; dd_winograd_scratch is then told the width (else 0). */
void dd_winograd(dd_isa isa, dd_dtype dtype, void *dst, const void *src, const void *weights, const float *bias,
                 const void *residual, bool relu, bool up, int n, int h, int w, int ic, int oc, void *scratch);
size_t dd_winograd_scratch(dd_isa isa, dd_dtype dtype, int ic, int threads, int in_place_width);
int dd_winograd_columns(dd_isa isa);
bool dd_winograd_takes(dd_isa isa, int kernel, int stride, int pad_before, int pad_after, int ic, int oc); /* a convolution of that shape */

/* plain (oc, ic, 3, 3) f32 -> the transformed weights: 16 / 9 of the elements, with `up` as many. BACKWARD: those that give the source's
   gradient from the result's, as a convolution of oc channels to ic. */
typedef enum { DD_WINOGRAD_FORWARD, DD_WINOGRAD_BACKWARD, DD_WINOGRAD_UP } dd_winograd_kind;
void dd_winograd_pack(dd_isa isa, dd_dtype dtype, void *dst, const float *plain, int ic, int oc, dd_winograd_kind kind);
size_t dd_winograd_pack_bytes(dd_dtype dtype, int ic, int oc, dd_winograd_kind kind);

/* diffusers' get_timestep_embedding with max_period 10000: dst (n, dim) of `dtype`, t (n) f32. */
void dd_timestep_embedding(dd_dtype dtype, void *dst, const float *t, int n, int dim, bool flip_sin_to_cos, float freq_shift);

/* Nearest: dst (n, oh, ow, c), src (n, h, w, c), source index floor(i * h / oh). */
void dd_upsample_nearest(dd_dtype dtype, void *dst, const void *src, int n, int h, int w, int c, int oh, int ow);

/* src (n, c, hw) f32 <-> channels-last (n, hw, c) of `dtype`. */
void dd_from_nchw(dd_dtype dtype, void *dst, const float *src, int n, int c, int hw);
void dd_to_nchw(dd_dtype dtype, float *dst, const void *src, int n, int c, int hw);

/* dst (n, hw, c) = src + scale[i] * noise, row by row; rows with scale 0 are copied bit for bit. The noise of row i is
   given[i] ((n, c, hw) f32, channel-major) or, if given is NULL, normal number c * hw + p of keys[i] for channel c,
   position p: the two agree to the bit. dst may alias src. `scratch`: dd_add_noise_scratch bytes. */
void dd_add_noise(dd_dtype dtype, void *dst, const void *src, const float *scale, const float *given,
                  const dd_noise_key *keys, int n, int c, int hw, void *scratch);
size_t dd_add_noise_scratch(int n, int c, int hw);

/* dst (n, t, c) = tokens[ids[i]] + positions[i % t]; tables f32; ids already checked. */
void dd_embed(dd_dtype dtype, void *dst, const int32_t *ids, const float *tokens, const float *positions, int n, int t, int c);

/* Element conversion between DD_F32, DD_BF16 and (as a source only) DD_F16. */
void dd_convert(dd_dtype dst_type, void *dst, dd_dtype src_type, const void *src, size_t count);

#endif
