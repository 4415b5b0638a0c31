#include "onednn/onednn.h"

#include "base/arena.h"
#include "base/team.h"
#include "kernels/kernels.h"

#include <oneapi/dnnl/dnnl.h>
#include <stdio.h>

#if DNNL_VERSION_MAJOR != 3
#error "dreamda needs oneDNN 3"
#endif

struct dd_engine {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
};

struct dd_layout {
    dnnl_memory_desc_t md; /* NULL: dd_winograd's, described by the rest */
    bool convolution;      /* plain weights are oihw; otherwise (n, k) rows */
    dd_isa isa;
    dd_dtype dtype;
    int ic, oc;
    dd_winograd_kind winograd;
};

struct dd_primitive {
    dnnl_engine_t engine;
    dnnl_stream_t stream; /* the engine's */
    dnnl_primitive_desc_t pd;
    dnnl_primitive_t primitive;
    dd_layout weights;
    dnnl_memory_t memory[DD_ARG_COUNT]; /* NULL: the primitive has no such argument */
    dnnl_exec_arg_t exec[DD_ARG_COUNT];
    int nexec;
    const char *implementation;
    size_t scratch, workspace;
    int threads; /* that its work is split for */
};

static dd_status check(dnnl_status_t code, const char *what)
{
    switch (code) {
    case dnnl_success:
        return DD_OK;
    case dnnl_out_of_memory:
        return dd_fail(DD_NOMEM, "oneDNN ran out of memory at %s", what);
    case dnnl_unimplemented:
        return dd_fail(DD_ONEDNN, "oneDNN has no implementation of %s on this processor", what);
    default:
        return dd_fail(DD_ONEDNN, "oneDNN refused %s (status %d)", what, (int)code);
    }
}

#define CHECK(call) DD_TRY(check((call), #call))

/* oneDNN 3.2 does not survive a failed allocation while it makes a primitive: its classes are constructed on the NULL that their operator
   new returned, and std::bad_alloc leaves through its C functions. So nothing is made unless there is far more room than it takes. */
static dd_status ask_for_room(void)
{
    const size_t room = (size_t)64 << 20;
    return dd_headroom(room) ? DD_OK : dd_fail(DD_NOMEM, "out of memory: oneDNN needs %zu MiB of room to make a primitive", room >> 20);
}

/* Work is split for the threads in force when a primitive is created, and only that team does all of it. */
static dd_status team_of(int *threads)
{
    *threads = dd_team_exact();
    return *threads ? DD_OK : dd_fail(DD_TEAM, "oneDNN was called outside of a team of threads");
}

dd_status dd_onednn_check(void)
{
    const dnnl_version_t *v = dnnl_version();
    if (v->major != DNNL_VERSION_MAJOR || v->minor < DNNL_VERSION_MINOR) {
        return dd_fail(DD_ONEDNN, "dreamda was built for oneDNN %d.%d but found %d.%d: pip install onednn-cpu-gomp==2023.2.0",
                       DNNL_VERSION_MAJOR, DNNL_VERSION_MINOR, v->major, v->minor);
    }
    if (v->cpu_runtime != DNNL_RUNTIME_OMP) {
        return dd_fail(DD_ONEDNN, "this oneDNN has CPU runtime %u, not OpenMP (%u): pip install onednn-cpu-gomp==2023.2.0",
                       v->cpu_runtime, DNNL_RUNTIME_OMP);
    }
    return DD_OK;
}

void dd_onednn_version(int version[3])
{
    const dnnl_version_t *v = dnnl_version();
    version[0] = v->major;
    version[1] = v->minor;
    version[2] = v->patch;
}

static const struct {
    dnnl_cpu_isa_t isa;
    const char *name;
} isa_names[] = {
    {dnnl_cpu_isa_sse41, "SSE4.1"},
    {dnnl_cpu_isa_avx, "AVX"},
    {dnnl_cpu_isa_avx2, "AVX2"},
    {dnnl_cpu_isa_avx2_vnni, "AVX2_VNNI"},
    {dnnl_cpu_isa_avx2_vnni_2, "AVX2_VNNI_2"},
    {dnnl_cpu_isa_avx512_core, "AVX512_CORE"},
    {dnnl_cpu_isa_avx512_core_vnni, "AVX512_CORE_VNNI"},
    {dnnl_cpu_isa_avx512_core_bf16, "AVX512_CORE_BF16"},
    {dnnl_cpu_isa_avx512_core_fp16, "AVX512_CORE_FP16"},
    {dnnl_cpu_isa_avx512_core_amx, "AVX512_CORE_AMX"},
    {dnnl_cpu_isa_avx512_core_amx_fp16, "AVX512_CORE_AMX_FP16"},
};

const char *dd_onednn_isa_name(void)
{
    dnnl_cpu_isa_t isa = dnnl_get_effective_cpu_isa();
    for (size_t i = 0; i < sizeof isa_names / sizeof *isa_names; i++) {
        if (isa_names[i].isa == isa) {
            return isa_names[i].name;
        }
    }
    return "unknown";
}

static bool isa_includes(dnnl_cpu_isa_t isa, dnnl_cpu_isa_t part)
{
    return ((unsigned)isa & (unsigned)part) == (unsigned)part;
}

dd_isa dd_onednn_isa(void)
{
    dnnl_cpu_isa_t isa = dnnl_get_effective_cpu_isa();
    dd_isa allowed = isa_includes(isa, dnnl_cpu_isa_avx512_core_amx)    ? DD_ISA_AMX
                     : isa_includes(isa, dnnl_cpu_isa_avx512_core_bf16) ? DD_ISA_AVX512_BF16
                     : isa_includes(isa, dnnl_cpu_isa_avx512_core)      ? DD_ISA_AVX512
                                                                        : DD_ISA_AVX2;
    dd_isa best = dd_best_isa();
    return allowed < best ? allowed : best;
}

dd_status dd_onednn_check_dtype(dd_dtype dtype)
{
    if (dtype == DD_BF16 && dd_onednn_isa() < DD_ISA_AVX512_BF16) {
        return dd_fail(DD_INVALID, "dtype bf16 needs a processor with AVX512-BF16 or AMX (this one: %s): use f32", dd_onednn_isa_name());
    }
    return DD_OK;
}

dd_status dd_engine_create(dd_engine **out)
{
    dd_status status = DD_OK;
    dd_engine *e = dd_calloc(1, sizeof *e);
    if (!e) {
        DD_FAIL(DD_NOMEM, "out of memory for an engine");
    }
    DD_TRY(ask_for_room());
    CHECK(dnnl_engine_create(&e->engine, dnnl_cpu, 0));
    CHECK(dnnl_stream_create(&e->stream, e->engine, dnnl_stream_default_flags));
    *out = e;
    return DD_OK;
fail:
    dd_engine_destroy(e);
    return status;
}

void dd_engine_destroy(dd_engine *e)
{
    if (!e) {
        return;
    }
    if (e->stream) {
        dnnl_stream_destroy(e->stream);
    }
    if (e->engine) {
        dnnl_engine_destroy(e->engine);
    }
    dd_free(e);
}

static dnnl_data_type_t data_type(dd_dtype t)
{
    switch (t) {
    case DD_BF16:
        return dnnl_bf16;
    case DD_F16:
        return dnnl_f16;
    case DD_S32:
    case DD_U32:
        return dnnl_s32;
    default:
        return dnnl_f32;
    }
}

static dd_status append_activation(dnnl_post_ops_t ops, dd_activation act)
{
    switch (act) {
    case DD_ACT_SILU:
        return check(dnnl_post_ops_append_eltwise(ops, dnnl_eltwise_swish, 1.f, 0.f), "a SiLU epilogue");
    case DD_ACT_QUICK_GELU:
        return check(dnnl_post_ops_append_eltwise(ops, dnnl_eltwise_swish, 1.702f, 0.f), "a quick-GELU epilogue");
    case DD_ACT_GELU:
        return check(dnnl_post_ops_append_eltwise(ops, dnnl_eltwise_gelu_erf, 0.f, 0.f), "a GELU epilogue");
    case DD_ACT_RELU:
        return check(dnnl_post_ops_append_eltwise(ops, dnnl_eltwise_relu, 0.f, 0.f), "a ReLU epilogue");
    case DD_ACT_NONE:
        break;
    }
    return DD_OK;
}

/* Shared by both kinds: attributes from the epilogue, with the layouts of its two tensor operands. */
static dd_status make_attributes(dnnl_primitive_attr_t *out, const dd_epilogue *epilogue,
                                 const_dnnl_memory_desc_t multiply, const_dnnl_memory_desc_t add)
{
    dd_status status = DD_OK;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t ops = NULL;
    CHECK(dnnl_primitive_attr_create(&attr));
    CHECK(dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user));
    CHECK(dnnl_post_ops_create(&ops));
    DD_TRY(append_activation(ops, epilogue->act));
    if (epilogue->multiply) {
        CHECK(dnnl_post_ops_append_binary(ops, dnnl_binary_mul, multiply));
    }
    if (epilogue->add) {
        CHECK(dnnl_post_ops_append_binary(ops, dnnl_binary_add, add));
    }
    if (epilogue->relu_last) {
        DD_TRY(append_activation(ops, DD_ACT_RELU));
    }
    CHECK(dnnl_primitive_attr_set_post_ops(attr, ops));
    dnnl_post_ops_destroy(ops);
    *out = attr;
    return DD_OK;
fail:
    if (ops) {
        dnnl_post_ops_destroy(ops);
    }
    if (attr) {
        dnnl_primitive_attr_destroy(attr);
    }
    return status;
}

static dd_status add_argument(dd_primitive *p, dd_arg arg, int dnnl_arg, const_dnnl_memory_desc_t md)
{
    dd_status status = check(dnnl_memory_create(&p->memory[arg], md, p->engine, DNNL_MEMORY_NONE), "a memory object");
    if (status == DD_OK) {
        p->exec[p->nexec++] = (dnnl_exec_arg_t){dnnl_arg, p->memory[arg]};
    }
    return status;
}

/* Turns a primitive descriptor (owned by p from here on) into a primitive with every memory object in place. */
static dd_status finish(dd_primitive *p, const dd_epilogue *epilogue, const_dnnl_memory_desc_t bias,
                        const_dnnl_memory_desc_t multiply, const_dnnl_memory_desc_t add)
{
    dd_status status = DD_OK;
    CHECK(dnnl_primitive_create(&p->primitive, p->pd));
    CHECK(dnnl_primitive_desc_query(p->pd, dnnl_query_impl_info_str, 0, (void *)&p->implementation));
    CHECK(dnnl_memory_desc_clone(&p->weights.md, dnnl_primitive_desc_query_md(p->pd, dnnl_query_weights_md, 0)));
    const_dnnl_memory_desc_t scratch = dnnl_primitive_desc_query_md(p->pd, dnnl_query_scratchpad_md, 0);
    p->scratch = dnnl_memory_desc_get_size(scratch);
    DD_TRY(add_argument(p, DD_ARG_SRC, DNNL_ARG_SRC, dnnl_primitive_desc_query_md(p->pd, dnnl_query_src_md, 0)));
    DD_TRY(add_argument(p, DD_ARG_WEIGHTS, DNNL_ARG_WEIGHTS, p->weights.md));
    DD_TRY(add_argument(p, DD_ARG_DST, DNNL_ARG_DST, dnnl_primitive_desc_query_md(p->pd, dnnl_query_dst_md, 0)));
    if (epilogue->bias) {
        DD_TRY(add_argument(p, DD_ARG_BIAS, DNNL_ARG_BIAS, bias));
    }
    int index = epilogue->act != DD_ACT_NONE;
    if (epilogue->multiply) {
        DD_TRY(add_argument(p, DD_ARG_MULTIPLY, DNNL_ARG_ATTR_MULTIPLE_POST_OP(index) | DNNL_ARG_SRC_1, multiply));
        index++;
    }
    if (epilogue->add) {
        DD_TRY(add_argument(p, DD_ARG_ADD, DNNL_ARG_ATTR_MULTIPLE_POST_OP(index) | DNNL_ARG_SRC_1, add));
    }
    if (p->scratch) {
        DD_TRY(add_argument(p, DD_ARG_SCRATCH, DNNL_ARG_SCRATCHPAD, scratch));
    }
fail:
    return status;
}

static void destroy_md(dnnl_memory_desc_t md)
{
    if (md) {
        dnnl_memory_desc_destroy(md);
    }
}

dd_status dd_matmul_create(dd_primitive **out, dd_engine *engine, const dd_matmul_desc *d)
{
    dd_status status = DD_OK;
    dnnl_memory_desc_t src = NULL, weights = NULL, bias = NULL, dst = NULL, multiply = NULL, add = NULL;
    dnnl_primitive_attr_t attr = NULL;
    const dd_epilogue *e = &d->epilogue;
    dnnl_data_type_t t = data_type(d->dtype), dst_t = data_type(d->dst_dtype);
    dnnl_dims_t src_dims = {d->m, d->k}, src_strides = {(int64_t)d->src_ld, 1};
    dnnl_dims_t weights_dims = {d->k, d->n}, bias_dims = {1, d->n};
    dnnl_dims_t dst_dims = {d->m, d->n}, dst_strides = {(int64_t)d->dst_ld, 1};
    dd_primitive *p = dd_calloc(1, sizeof *p);
    if (!p) {
        DD_FAIL(DD_NOMEM, "out of memory for a primitive");
    }
    p->engine = engine->engine;
    p->stream = engine->stream;
    DD_TRY(team_of(&p->threads));
    DD_TRY(ask_for_room());
    CHECK(dnnl_memory_desc_create_with_strides(&src, 2, src_dims, t, src_strides));
    CHECK(dnnl_memory_desc_create_with_tag(&weights, 2, weights_dims, t, dnnl_format_tag_any));
    CHECK(dnnl_memory_desc_create_with_strides(&dst, 2, dst_dims, dst_t, dst_strides));
    if (e->bias) {
        CHECK(dnnl_memory_desc_create_with_tag(&bias, 2, bias_dims, dnnl_f32, dnnl_ab));
    }
    if (e->multiply) {
        dnnl_dims_t strides = {(int64_t)e->multiply_ld, 1};
        CHECK(dnnl_memory_desc_create_with_strides(&multiply, 2, dst_dims, t, strides));
    }
    if (e->add) {
        dnnl_dims_t strides = {(int64_t)e->add_ld, 1};
        CHECK(dnnl_memory_desc_create_with_strides(&add, 2, dst_dims, t, strides));
    }
    DD_TRY(make_attributes(&attr, e, multiply, add));
    DD_TRY(check(dnnl_matmul_primitive_desc_create(&p->pd, engine->engine, src, weights, bias, dst, attr), "a matrix product"));
    DD_TRY(finish(p, e, bias, multiply, add));
    *out = p;
    p = NULL;
fail:
    destroy_md(src);
    destroy_md(weights);
    destroy_md(bias);
    destroy_md(dst);
    destroy_md(multiply);
    destroy_md(add);
    if (attr) {
        dnnl_primitive_attr_destroy(attr);
    }
    dd_primitive_destroy(p);
    return status;
}

dd_status dd_conv_create(dd_primitive **out, dd_engine *engine, const dd_conv_desc *d)
{
    dd_status status = DD_OK;
    dnnl_memory_desc_t src = NULL, weights = NULL, bias = NULL, dst = NULL;
    dnnl_primitive_attr_t attr = NULL;
    const dd_epilogue *e = &d->epilogue;
    dnnl_data_type_t t = data_type(d->dtype);
    int pads = d->pad_before + d->pad_after - d->kernel;
    dnnl_dims_t src_dims = {d->n, d->ic, d->h, d->w}, weights_dims = {d->oc, d->ic, d->kernel, d->kernel}, bias_dims = {d->oc};
    dnnl_dims_t dst_dims = {d->n, d->oc, (d->h + pads) / d->stride + 1, (d->w + pads) / d->stride + 1};
    dnnl_dims_t strides = {d->stride, d->stride}, dilates = {0, 0};
    dnnl_dims_t before = {d->pad_before, d->pad_before}, after = {d->pad_after, d->pad_after};
    dd_primitive *p = dd_calloc(1, sizeof *p);
    if (!p) {
        DD_FAIL(DD_NOMEM, "out of memory for a primitive");
    }
    p->engine = engine->engine;
    p->stream = engine->stream;
    DD_TRY(team_of(&p->threads));
    p->weights.convolution = true;
    DD_TRY(ask_for_room());
    CHECK(dnnl_memory_desc_create_with_tag(&src, 4, src_dims, t, dnnl_nhwc));
    CHECK(dnnl_memory_desc_create_with_tag(&weights, 4, weights_dims, t, dnnl_format_tag_any));
    CHECK(dnnl_memory_desc_create_with_tag(&dst, 4, dst_dims, t, dnnl_nhwc));
    if (e->bias) {
        CHECK(dnnl_memory_desc_create_with_tag(&bias, 1, bias_dims, dnnl_f32, dnnl_a));
    }
    DD_TRY(make_attributes(&attr, e, dst, dst));
    DD_TRY(check(dnnl_convolution_forward_primitive_desc_create(&p->pd, engine->engine, dnnl_forward_inference,
                                                                dnnl_convolution_direct, src, weights, bias, dst, strides,
                                                                dilates, before, after, attr),
                 "a convolution"));
    DD_TRY(finish(p, e, bias, dst, dst));
    *out = p;
    p = NULL;
fail:
    destroy_md(src);
    destroy_md(weights);
    destroy_md(bias);
    destroy_md(dst);
    if (attr) {
        dnnl_primitive_attr_destroy(attr);
    }
    dd_primitive_destroy(p);
    return status;
}

/* ---- training */

static const struct {
    dd_arg arg;
    int dnnl_arg;
    dnnl_query_t query;
} training_arguments[] = {
    {DD_ARG_SRC, DNNL_ARG_SRC, dnnl_query_src_md},
    {DD_ARG_WEIGHTS, DNNL_ARG_WEIGHTS, dnnl_query_weights_md},
    {DD_ARG_DST, DNNL_ARG_DST, dnnl_query_dst_md},
    {DD_ARG_DIFF_SRC, DNNL_ARG_DIFF_SRC, dnnl_query_diff_src_md},
    {DD_ARG_DIFF_WEIGHTS, DNNL_ARG_DIFF_WEIGHTS, dnnl_query_diff_weights_md},
    {DD_ARG_DIFF_DST, DNNL_ARG_DIFF_DST, dnnl_query_diff_dst_md},
    {DD_ARG_WORKSPACE, DNNL_ARG_WORKSPACE, dnnl_query_workspace_md},
    {DD_ARG_SCRATCH, DNNL_ARG_SCRATCHPAD, dnnl_query_scratchpad_md},
};

/* *out = a primitive of `pd` (owned from here on, also on failure) with every argument that the descriptor knows of. */
static dd_status make_primitive(dd_primitive **out, dd_engine *engine, dnnl_primitive_desc_t pd)
{
    dd_status status = DD_OK;
    dd_primitive *p = dd_calloc(1, sizeof *p);
    if (!p) {
        dnnl_primitive_desc_destroy(pd);
        DD_FAIL(DD_NOMEM, "out of memory for a primitive");
    }
    p->engine = engine->engine;
    p->stream = engine->stream;
    p->pd = pd;
    DD_TRY(team_of(&p->threads));
    p->weights.convolution = true;
    CHECK(dnnl_primitive_create(&p->primitive, pd));
    CHECK(dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, (void *)&p->implementation));
    for (size_t i = 0; i < sizeof training_arguments / sizeof *training_arguments; i++) {
        dd_arg arg = training_arguments[i].arg;
        const_dnnl_memory_desc_t md = dnnl_primitive_desc_query_md(pd, training_arguments[i].query, 0);
        size_t bytes = md ? dnnl_memory_desc_get_size(md) : 0;
        if (!bytes) {
            continue;
        }
        DD_TRY(add_argument(p, arg, training_arguments[i].dnnl_arg, md));
        if (arg == DD_ARG_WEIGHTS || arg == DD_ARG_DIFF_WEIGHTS) {
            CHECK(dnnl_memory_desc_clone(&p->weights.md, md));
        } else if (arg == DD_ARG_WORKSPACE) {
            p->workspace = bytes;
        } else if (arg == DD_ARG_SCRATCH) {
            p->scratch = bytes;
        }
    }
    *out = p;
    return DD_OK;
fail:
    dd_primitive_destroy(p);
    return status;
}

static dd_status user_scratch(dnnl_primitive_attr_t *attr)
{
    dd_status status = DD_OK;
    CHECK(dnnl_primitive_attr_create(attr));
    CHECK(dnnl_primitive_attr_set_scratchpad_mode(*attr, dnnl_scratchpad_mode_user));
fail:
    return status;
}

dd_status dd_conv_train_create(dd_primitive **forward, dd_primitive **data, dd_primitive **weights, dd_engine *engine,
                               const dd_conv_desc *d)
{
    dd_status status = DD_OK;
    dnnl_memory_desc_t src = NULL, wei = NULL, diff_wei = NULL, dst = NULL;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_data_type_t t = data_type(d->dtype);
    int pads = d->pad_before + d->pad_after - d->kernel;
    dnnl_dims_t src_dims = {d->n, d->ic, d->h, d->w}, wei_dims = {d->oc, d->ic, d->kernel, d->kernel};
    dnnl_dims_t dst_dims = {d->n, d->oc, (d->h + pads) / d->stride + 1, (d->w + pads) / d->stride + 1};
    dnnl_dims_t strides = {d->stride, d->stride}, dilates = {0, 0};
    dnnl_dims_t before = {d->pad_before, d->pad_before}, after = {d->pad_after, d->pad_after};
    dd_primitive *f = NULL, *b = NULL, *w = NULL;
    DD_TRY(ask_for_room());
    CHECK(dnnl_memory_desc_create_with_tag(&src, 4, src_dims, t, dnnl_nhwc));
    CHECK(dnnl_memory_desc_create_with_tag(&wei, 4, wei_dims, t, dnnl_format_tag_any));
    CHECK(dnnl_memory_desc_create_with_tag(&diff_wei, 4, wei_dims, dnnl_f32, dnnl_format_tag_any));
    CHECK(dnnl_memory_desc_create_with_tag(&dst, 4, dst_dims, t, dnnl_nhwc));
    DD_TRY(user_scratch(&attr));
    DD_TRY(check(dnnl_convolution_forward_primitive_desc_create(&pd, engine->engine, dnnl_forward_training, dnnl_convolution_direct,
                                                                src, wei, NULL, dst, strides, dilates, before, after, attr),
                 "a convolution"));
    DD_TRY(make_primitive(&f, engine, pd));
    const_dnnl_primitive_desc_t hint = f->pd;
    if (data) {
        DD_TRY(check(dnnl_convolution_backward_data_primitive_desc_create(&pd, engine->engine, dnnl_convolution_direct, src, wei, dst,
                                                                          strides, dilates, before, after, hint, attr),
                     "the gradient of a convolution's source"));
        DD_TRY(make_primitive(&b, engine, pd));
    }
    DD_TRY(check(dnnl_convolution_backward_weights_primitive_desc_create(&pd, engine->engine, dnnl_convolution_direct, src, diff_wei, NULL,
                                                                         dst, strides, dilates, before, after, hint, attr),
                 "the gradient of a convolution's weights"));
    DD_TRY(make_primitive(&w, engine, pd));
    *forward = f;
    *weights = w;
    if (data) {
        *data = b;
    }
    f = b = w = NULL;
fail:
    destroy_md(src);
    destroy_md(wei);
    destroy_md(diff_wei);
    destroy_md(dst);
    if (attr) {
        dnnl_primitive_attr_destroy(attr);
    }
    dd_primitive_destroy(f);
    dd_primitive_destroy(b);
    dd_primitive_destroy(w);
    return status;
}

dd_status dd_max_pool_create(dd_primitive **forward, dd_primitive **backward, dd_engine *engine, const dd_conv_desc *d)
{
    dd_status status = DD_OK;
    dnnl_memory_desc_t src = NULL, dst = NULL;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_data_type_t t = data_type(d->dtype);
    int pads = d->pad_before + d->pad_after - d->kernel;
    dnnl_dims_t src_dims = {d->n, d->ic, d->h, d->w}, kernel = {d->kernel, d->kernel};
    dnnl_dims_t dst_dims = {d->n, d->ic, (d->h + pads) / d->stride + 1, (d->w + pads) / d->stride + 1};
    dnnl_dims_t strides = {d->stride, d->stride}, dilates = {0, 0};
    dnnl_dims_t before = {d->pad_before, d->pad_before}, after = {d->pad_after, d->pad_after};
    dd_primitive *f = NULL, *b = NULL;
    DD_TRY(ask_for_room());
    CHECK(dnnl_memory_desc_create_with_tag(&src, 4, src_dims, t, dnnl_nhwc));
    CHECK(dnnl_memory_desc_create_with_tag(&dst, 4, dst_dims, t, dnnl_nhwc));
    DD_TRY(user_scratch(&attr));
    DD_TRY(check(dnnl_pooling_forward_primitive_desc_create(&pd, engine->engine, backward ? dnnl_forward_training : dnnl_forward_inference,
                                                            dnnl_pooling_max, src, dst, strides, kernel, dilates, before, after, attr),
                 "max pooling"));
    DD_TRY(make_primitive(&f, engine, pd));
    if (backward) {
        DD_TRY(check(dnnl_pooling_backward_primitive_desc_create(&pd, engine->engine, dnnl_pooling_max, src, dst, strides, kernel, dilates,
                                                                 before, after, f->pd, attr),
                     "the gradient of max pooling"));
        DD_TRY(make_primitive(&b, engine, pd));
        *backward = b;
        b = NULL;
    }
    *forward = f;
    f = NULL;
fail:
    destroy_md(src);
    destroy_md(dst);
    if (attr) {
        dnnl_primitive_attr_destroy(attr);
    }
    dd_primitive_destroy(f);
    dd_primitive_destroy(b);
    return status;
}

static dd_status make_reorder(dd_primitive **out, dd_engine *engine, const dd_layout *layout, int kernel, bool pack)
{
    dd_status status = DD_OK;
    dnnl_memory_desc_t plain = NULL;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t ops = NULL;
    dnnl_primitive_desc_t pd = NULL;
    dd_primitive *p = NULL;
    dnnl_dims_t *dims;
    DD_TRY(ask_for_room());
    CHECK(dnnl_memory_desc_query(layout->md, dnnl_query_dims, &dims));
    const dnnl_dims_t strides = {(*dims)[1] * kernel * kernel, kernel * kernel, kernel, 1};
    CHECK(dnnl_memory_desc_create_with_strides(&plain, 4, *dims, dnnl_f32, strides));
    DD_TRY(user_scratch(&attr));
    if (!pack) {
        CHECK(dnnl_post_ops_create(&ops));
        CHECK(dnnl_post_ops_append_sum(ops, 1.f, 0, dnnl_data_type_undef));
        CHECK(dnnl_primitive_attr_set_post_ops(attr, ops));
    }
    DD_TRY(check(dnnl_reorder_primitive_desc_create(&pd, pack ? plain : layout->md, engine->engine, pack ? layout->md : plain,
                                                    engine->engine, attr),
                 "packing of weights"));
    DD_TRY(make_primitive(&p, engine, pd));
    *out = p;
fail:
    destroy_md(plain);
    if (ops) {
        dnnl_post_ops_destroy(ops);
    }
    if (attr) {
        dnnl_primitive_attr_destroy(attr);
    }
    return status;
}

dd_status dd_pack_create(dd_primitive **out, dd_engine *engine, const dd_layout *layout, int kernel)
{
    return make_reorder(out, engine, layout, kernel, true);
}

dd_status dd_unpack_create(dd_primitive **out, dd_engine *engine, const dd_layout *layout, int kernel)
{
    return make_reorder(out, engine, layout, kernel, false);
}

size_t dd_primitive_workspace(const dd_primitive *p)
{
    return p->workspace;
}

void dd_primitive_destroy(dd_primitive *p)
{
    if (!p) {
        return;
    }
    for (int i = 0; i < DD_ARG_COUNT; i++) {
        if (p->memory[i]) {
            dnnl_memory_destroy(p->memory[i]);
        }
    }
    destroy_md(p->weights.md);
    if (p->primitive) {
        dnnl_primitive_destroy(p->primitive);
    }
    if (p->pd) {
        dnnl_primitive_desc_destroy(p->pd);
    }
    dd_free(p);
}

void dd_primitive_bind(dd_primitive *p, dd_arg arg, void *data)
{
    if (p->memory[arg]) {
        dnnl_memory_set_data_handle(p->memory[arg], data);
    }
}

dd_status dd_primitive_run(dd_primitive *p)
{
    if (dd_team_exact() != p->threads) {
        return dd_fail(DD_TEAM, "oneDNN's %s was created for %d threads, but would run on %d", p->implementation, p->threads, dd_team_exact());
    }
    return check(dnnl_primitive_execute(p->primitive, p->stream, p->nexec, p->exec), p->implementation);
}

size_t dd_primitive_scratch(const dd_primitive *p)
{
    return p->scratch;
}

const char *dd_primitive_implementation(const dd_primitive *p)
{
    return p->implementation;
}

const dd_layout *dd_primitive_weights(const dd_primitive *p)
{
    return &p->weights;
}

dd_status dd_layout_winograd(dd_layout **out, dd_isa isa, dd_dtype dtype, int ic, int oc, bool up)
{
    dd_layout *layout = dd_calloc(1, sizeof *layout);
    if (!layout) {
        return dd_fail(DD_NOMEM, "out of memory for a layout");
    }
    *layout = (dd_layout){.isa = isa, .dtype = dtype, .ic = ic, .oc = oc, .winograd = up ? DD_WINOGRAD_UP : DD_WINOGRAD_FORWARD};
    *out = layout;
    return DD_OK;
}

size_t dd_layout_bytes(const dd_layout *layout)
{
    if (!layout->md) {
        return dd_winograd_pack_bytes(layout->dtype, layout->ic, layout->oc, layout->winograd);
    }
    return dnnl_memory_desc_get_size(layout->md);
}

bool dd_layout_equal(const dd_layout *a, const dd_layout *b)
{
    if (!a->md || !b->md) {
        return !a->md && !b->md && a->isa == b->isa && a->dtype == b->dtype && a->ic == b->ic && a->oc == b->oc && a->winograd == b->winograd;
    }
    return a->convolution == b->convolution && dnnl_memory_desc_equal(a->md, b->md);
}

dd_status dd_layout_copy(dd_layout **out, const dd_layout *layout)
{
    dd_status status = DD_OK;
    dd_layout *copy = dd_calloc(1, sizeof *copy);
    if (!copy) {
        DD_FAIL(DD_NOMEM, "out of memory for a layout");
    }
    *copy = *layout;
    copy->md = NULL;
    if (layout->md) {
        CHECK(dnnl_memory_desc_clone(&copy->md, layout->md));
    }
    *out = copy;
    return DD_OK;
fail:
    dd_layout_destroy(copy);
    return status;
}

void dd_layout_destroy(dd_layout *layout)
{
    if (layout) {
        destroy_md(layout->md);
        dd_free(layout);
    }
}

bool dd_layout_strided(const dd_layout *layout)
{
    return layout->md != NULL;
}

int dd_layout_granule(const dd_layout *layout)
{
    int granule = 1, blocks = 0;
    dnnl_dims_t *sizes, *dims;
    dnnl_format_kind_t kind;
    if (!layout->md) {
        return dd_winograd_columns(layout->isa);
    }
    if (dnnl_memory_desc_query(layout->md, dnnl_query_format_kind, &kind) != dnnl_success || kind != dnnl_blocked ||
        dnnl_memory_desc_query(layout->md, dnnl_query_inner_nblks_s32, &blocks) != dnnl_success ||
        dnnl_memory_desc_query(layout->md, dnnl_query_inner_blks, &sizes) != dnnl_success ||
        dnnl_memory_desc_query(layout->md, dnnl_query_inner_idxs, &dims) != dnnl_success) {
        return 0;
    }
    for (int i = 0; i < blocks; i++) {
        granule *= (*dims)[i] == (layout->convolution ? 0 : 1) ? (int)(*sizes)[i] : 1;
    }
    return granule;
}

int64_t dd_layout_cols(const dd_layout *layout)
{
    dnnl_dims_t *whole;
    if (!layout->md || dnnl_memory_desc_query(layout->md, dnnl_query_dims, &whole) != dnnl_success) {
        return (int64_t)layout->ic * 9;
    }
    return layout->convolution ? (*whole)[1] * (*whole)[2] * (*whole)[3] : (*whole)[0];
}

dd_status dd_layout_pack(const dd_layout *layout, dd_engine *engine, const float *plain, int64_t cols, size_t ld, int64_t row, int64_t rows,
                         void *dst)
{
    dd_status status = DD_OK;
    dnnl_memory_desc_t plain_md = NULL, part = NULL;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_t reorder = NULL;
    dnnl_memory_t from = NULL, to = NULL;
    dnnl_dims_t *whole;
    int threads;
    if (!layout->md) {
        char *panels = (char *)dst + dd_winograd_pack_bytes(layout->dtype, layout->ic, (int)row, layout->winograd);
        dd_winograd_pack(layout->isa, layout->dtype, panels, plain, layout->ic, (int)rows, layout->winograd);
        return DD_OK;
    }
    DD_TRY(team_of(&threads));
    DD_TRY(ask_for_room());
    CHECK(dnnl_memory_desc_query(layout->md, dnnl_query_dims, &whole));
    if (layout->convolution) {
        const dnnl_dims_t dims = {rows, cols / ((*whole)[2] * (*whole)[3]), (*whole)[2], (*whole)[3]}, offsets = {row};
        const dnnl_dims_t strides = {(int64_t)ld, (*whole)[2] * (*whole)[3], (*whole)[3], 1};
        CHECK(dnnl_memory_desc_create_with_strides(&plain_md, 4, dims, dnnl_f32, strides));
        CHECK(dnnl_memory_desc_create_submemory(&part, layout->md, dims, offsets));
    } else {
        const dnnl_dims_t dims = {cols, rows}, offsets = {0, row}, strides = {1, (int64_t)ld};
        CHECK(dnnl_memory_desc_create_with_strides(&plain_md, 2, dims, dnnl_f32, strides));
        CHECK(dnnl_memory_desc_create_submemory(&part, layout->md, dims, offsets));
    }
    DD_TRY(check(dnnl_reorder_primitive_desc_create(&pd, plain_md, engine->engine, part, engine->engine, NULL), "packing of weights"));
    CHECK(dnnl_primitive_create(&reorder, pd));
    CHECK(dnnl_memory_create(&from, plain_md, engine->engine, (void *)(uintptr_t)plain));
    CHECK(dnnl_memory_create(&to, part, engine->engine, dst));
    dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}};
    CHECK(dnnl_primitive_execute(reorder, engine->stream, 2, args));
    CHECK(dnnl_stream_wait(engine->stream));
fail:
    if (from) {
        dnnl_memory_destroy(from);
    }
    if (to) {
        dnnl_memory_destroy(to);
    }
    if (reorder) {
        dnnl_primitive_destroy(reorder);
    }
    if (pd) {
        dnnl_primitive_desc_destroy(pd);
    }
    destroy_md(plain_md);
    destroy_md(part);
    return status;
}
