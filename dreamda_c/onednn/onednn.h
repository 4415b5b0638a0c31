/* The only door to oneDNN: an engine, layouts of packed weights, and primitives with their memory bound once.
 *
 *     dd_engine *engine;
 *     DD_TRY(dd_engine_create(&engine));
 *     dd_matmul_desc d = {.dtype = DD_BF16, .m = 8192, .k = 320, .n = 320, .src_ld = 320, .dst_dtype = DD_BF16,
 *                         .dst_ld = 320};
 *     dd_primitive *p;
 *     DD_TRY(dd_matmul_create(&p, engine, &d));
 *     DD_TRY(dd_layout_pack(dd_primitive_weights(p), engine, plain, 320, 320, 0, 320, packed)); // once
 *     dd_primitive_bind(p, DD_ARG_SRC, src);   // and DD_ARG_DST, DD_ARG_SCRATCH
 *     dd_primitive_bind(p, DD_ARG_WEIGHTS, packed);
 *     DD_TRY(dd_primitive_run(p));                                          // many times, no allocation
 *
 * Scratchpads are the caller's, so a primitive may run in any thread, one at a time. A primitive is created and run
 * within teams of one size (base/team.h); DD_TEAM tells where it is not.
 */
#ifndef DD_ONEDNN_H
#define DD_ONEDNN_H

#include "base/dtype.h"
#include "base/status.h"

#include <stdbool.h>

typedef struct dd_engine dd_engine;
typedef struct dd_layout dd_layout;
typedef struct dd_primitive dd_primitive;

/* Says in one sentence why the library that was loaded does not fit (version, OpenMP runtime), or returns DD_OK. */
dd_status dd_onednn_check(void);
void dd_onednn_version(int version[3]);

/* The instruction set that oneDNN uses, which ONEDNN_MAX_CPU_ISA can lower; our kernels follow it. */
dd_isa dd_onednn_isa(void);
const char *dd_onednn_isa_name(void);

/* DD_INVALID where this processor could only emulate the type of activations. */
dd_status dd_onednn_check_dtype(dd_dtype dtype);

dd_status dd_engine_create(dd_engine **out);
void dd_engine_destroy(dd_engine *engine); /* after every primitive and layout made with it */

/* What happens to an accumulator before it is stored, in this order. */
typedef enum { DD_ACT_NONE, DD_ACT_SILU, DD_ACT_GELU, DD_ACT_QUICK_GELU, DD_ACT_RELU } dd_activation;

typedef struct {
    bool bias;             /* f32, one an output channel: DD_ARG_BIAS */
    dd_activation act;
    bool multiply;         /* by DD_ARG_MULTIPLY, laid out like dst with row stride multiply_ld */
    bool add;              /* DD_ARG_ADD, the same with add_ld */
    dd_activation act_last; /* of the sum */
    size_t multiply_ld, add_ld;
} dd_epilogue;

/* dst (m, n) = epilogue(src (m, k) x weights (k, n)); rows ld elements apart. */
typedef struct {
    dd_dtype dtype, dst_dtype;
    int64_t m, k, n;
    size_t src_ld, dst_ld;
    dd_epilogue epilogue;
} dd_matmul_desc;

/* Channels-last convolution: src (n, h, w, ic) -> dst (n, oh, ow, oc). */
typedef struct {
    dd_dtype dtype;
    int n, h, w, ic, oc, kernel, stride;
    int pad_before, pad_after; /* the same for height and width */
    dd_epilogue epilogue;      /* ld fields unused: dense */
} dd_conv_desc;

dd_status dd_matmul_create(dd_primitive **out, dd_engine *engine, const dd_matmul_desc *desc);
dd_status dd_conv_create(dd_primitive **out, dd_engine *engine, const dd_conv_desc *desc);

/* The three directions of a convolution without epilogue. Weights are of `dtype`, DIFF_WEIGHTS f32.
   forward: SRC, WEIGHTS -> DST; data: DIFF_DST, WEIGHTS -> DIFF_SRC; weights: SRC, DIFF_DST -> DIFF_WEIGHTS.
   `data` may be NULL where the source's gradient is unused. */
dd_status dd_conv_train_create(dd_primitive **forward, dd_primitive **data, dd_primitive **weights, dd_engine *engine,
                               const dd_conv_desc *desc);

/* Max pooling, channels-last. With `backward`, both take a WORKSPACE (dd_primitive_workspace bytes) that tells where
   the maxima were; forward: SRC -> DST, backward: DIFF_DST -> DIFF_SRC. NULL: for inference. desc's oc and epilogue are
   unused. */
dd_status dd_max_pool_create(dd_primitive **forward, dd_primitive **backward, dd_engine *engine,
                             const dd_conv_desc *desc);
size_t dd_primitive_workspace(const dd_primitive *p);

/* Reorders between plain f32 oihw weights and a layout, to be run many times: SRC -> DST. Unpacking adds to DST. The
   plain weights are of `kernel` x `kernel` places; a layout of fewer means those from the bound pointer on. */
dd_status dd_pack_create(dd_primitive **out, dd_engine *engine, const dd_layout *layout, int kernel);
dd_status dd_unpack_create(dd_primitive **out, dd_engine *engine, const dd_layout *layout, int kernel);
void dd_primitive_destroy(dd_primitive *p);

typedef enum { DD_ARG_SRC, DD_ARG_WEIGHTS, DD_ARG_BIAS, DD_ARG_DST, DD_ARG_MULTIPLY, DD_ARG_ADD, DD_ARG_SCRATCH,
               DD_ARG_DIFF_SRC, DD_ARG_DIFF_WEIGHTS, DD_ARG_DIFF_DST, DD_ARG_WORKSPACE, DD_ARG_COUNT } dd_arg;

void dd_primitive_bind(dd_primitive *p, dd_arg arg, void *data); /* ignored where the primitive has no such argument */
dd_status dd_primitive_run(dd_primitive *p);
size_t dd_primitive_scratch(const dd_primitive *p);
const char *dd_primitive_implementation(const dd_primitive *p);

/* The layout of dd_winograd's weights. */
dd_status dd_layout_winograd(dd_layout **out, dd_isa isa, dd_dtype dtype, int ic, int oc, bool up);

/* The layout this primitive wants its weights in (or gives their gradient in); lives as long as the primitive. */
const dd_layout *dd_primitive_weights(const dd_primitive *p);
size_t dd_layout_bytes(const dd_layout *layout);
bool dd_layout_equal(const dd_layout *a, const dd_layout *b);
dd_status dd_layout_copy(dd_layout **out, const dd_layout *layout);
void dd_layout_destroy(dd_layout *layout);

/* Packs rows [row, row + rows) of PyTorch-ordered f32 weights (matmul: (n, k); convolution: oihw) into `dst`, where all
   of them go. `plain` points at the first of them; each is `ld` elements after the one before, Winograd's without a
   gap. `row` and, except for the last ones, `rows` are multiples of dd_layout_granule, which is 0 where only all rows
   at once can be packed. `cols` of a row are there; the layout may have more (dd_layout_cols), and those stay as they
   are. */
dd_status dd_layout_pack(const dd_layout *layout, dd_engine *engine, const float *plain, int64_t cols, size_t ld,
                         int64_t row, int64_t rows, void *dst);
int64_t dd_layout_cols(const dd_layout *layout);
int dd_layout_granule(const dd_layout *layout);
bool dd_layout_strided(const dd_layout *layout); /* whether `ld` may be more than the length of a row */

#endif
