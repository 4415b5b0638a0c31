/* Inference: matrix products and convolutions with an epilogue. */
#include "onednn/internal.h"

#include "base/arena.h"

static dd_status append_activation(dnnl_post_ops_t ops, dd_activation act)
{
    switch (act) {
    case DD_ACT_SILU:
        return dd_onednn_result(dnnl_post_ops_append_eltwise(ops, dnnl_eltwise_swish, 1.f, 0.f), "a SiLU epilogue");
    case DD_ACT_QUICK_GELU:
        return dd_onednn_result(dnnl_post_ops_append_eltwise(ops, dnnl_eltwise_swish, 1.702f, 0.f),
                                "a quick-GELU epilogue");
    case DD_ACT_GELU:
        return dd_onednn_result(dnnl_post_ops_append_eltwise(ops, dnnl_eltwise_gelu_erf, 0.f, 0.f), "a GELU epilogue");
    case DD_ACT_RELU:
        return dd_onednn_result(dnnl_post_ops_append_eltwise(ops, dnnl_eltwise_relu, 0.f, 0.f), "a ReLU epilogue");
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
    DD_TRY(append_activation(ops, epilogue->act_last));
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
    DD_TRY(
        dd_onednn_add_argument(p, DD_ARG_SRC, DNNL_ARG_SRC, dnnl_primitive_desc_query_md(p->pd, dnnl_query_src_md, 0)));
    DD_TRY(dd_onednn_add_argument(p, DD_ARG_WEIGHTS, DNNL_ARG_WEIGHTS, p->weights.md));
    DD_TRY(
        dd_onednn_add_argument(p, DD_ARG_DST, DNNL_ARG_DST, dnnl_primitive_desc_query_md(p->pd, dnnl_query_dst_md, 0)));
    if (epilogue->bias) {
        DD_TRY(dd_onednn_add_argument(p, DD_ARG_BIAS, DNNL_ARG_BIAS, bias));
    }
    int index = epilogue->act != DD_ACT_NONE;
    if (epilogue->multiply) {
        DD_TRY(dd_onednn_add_argument(p, DD_ARG_MULTIPLY, DNNL_ARG_ATTR_MULTIPLE_POST_OP(index) | DNNL_ARG_SRC_1,
                                      multiply));
        index++;
    }
    if (epilogue->add) {
        DD_TRY(dd_onednn_add_argument(p, DD_ARG_ADD, DNNL_ARG_ATTR_MULTIPLE_POST_OP(index) | DNNL_ARG_SRC_1, add));
    }
    if (p->scratch) {
        DD_TRY(dd_onednn_add_argument(p, DD_ARG_SCRATCH, DNNL_ARG_SCRATCHPAD, scratch));
    }
fail:
    return status;
}

dd_status dd_matmul_create(dd_primitive **out, dd_engine *engine, const dd_matmul_desc *d)
{
    dd_status status = DD_OK;
    dnnl_memory_desc_t src = NULL, weights = NULL, bias = NULL, dst = NULL, multiply = NULL, add = NULL;
    dnnl_primitive_attr_t attr = NULL;
    const dd_epilogue *e = &d->epilogue;
    dnnl_data_type_t t = dd_onednn_data_type(d->dtype), dst_t = dd_onednn_data_type(d->dst_dtype);
    dnnl_dims_t src_dims = {d->m, d->k}, src_strides = {(int64_t)d->src_ld, 1};
    dnnl_dims_t weights_dims = {d->k, d->n}, bias_dims = {1, d->n};
    dnnl_dims_t dst_dims = {d->m, d->n}, dst_strides = {(int64_t)d->dst_ld, 1};
    dd_primitive *p = dd_calloc(1, sizeof *p);
    if (!p) {
        DD_FAIL(DD_NOMEM, "out of memory for a primitive");
    }
    p->engine = engine->engine;
    p->stream = engine->stream;
    DD_TRY(dd_onednn_team(&p->threads));
    DD_TRY(dd_onednn_ask_for_memory());
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
    DD_TRY(dd_onednn_result(dnnl_matmul_primitive_desc_create(&p->pd, engine->engine, src, weights, bias, dst, attr),
                            "a matrix product"));
    DD_TRY(finish(p, e, bias, multiply, add));
    *out = p;
    p = NULL;
fail:
    dd_onednn_destroy_md(src);
    dd_onednn_destroy_md(weights);
    dd_onednn_destroy_md(bias);
    dd_onednn_destroy_md(dst);
    dd_onednn_destroy_md(multiply);
    dd_onednn_destroy_md(add);
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
    dnnl_data_type_t t = dd_onednn_data_type(d->dtype);
    int pads = d->pad_before + d->pad_after - d->kernel;
    dnnl_dims_t src_dims = {d->n, d->ic, d->h, d->w}, weights_dims = {d->oc, d->ic, d->kernel, d->kernel},
                bias_dims = {d->oc};
    dnnl_dims_t dst_dims = {d->n, d->oc, (d->h + pads) / d->stride + 1, (d->w + pads) / d->stride + 1};
    dnnl_dims_t strides = {d->stride, d->stride}, dilates = {0, 0};
    dnnl_dims_t before = {d->pad_before, d->pad_before}, after = {d->pad_after, d->pad_after};
    dd_primitive *p = dd_calloc(1, sizeof *p);
    if (!p) {
        DD_FAIL(DD_NOMEM, "out of memory for a primitive");
    }
    p->engine = engine->engine;
    p->stream = engine->stream;
    DD_TRY(dd_onednn_team(&p->threads));
    p->weights.convolution = true;
    DD_TRY(dd_onednn_ask_for_memory());
    CHECK(dnnl_memory_desc_create_with_tag(&src, 4, src_dims, t, dnnl_nhwc));
    CHECK(dnnl_memory_desc_create_with_tag(&weights, 4, weights_dims, t, dnnl_format_tag_any));
    CHECK(dnnl_memory_desc_create_with_tag(&dst, 4, dst_dims, t, dnnl_nhwc));
    if (e->bias) {
        CHECK(dnnl_memory_desc_create_with_tag(&bias, 1, bias_dims, dnnl_f32, dnnl_a));
    }
    DD_TRY(make_attributes(&attr, e, dst, dst));
    DD_TRY(
        dd_onednn_result(dnnl_convolution_forward_primitive_desc_create(&p->pd, engine->engine, dnnl_forward_inference,
                                                                        dnnl_convolution_direct, src, weights, bias,
                                                                        dst, strides, dilates, before, after, attr),
                         "a convolution"));
    DD_TRY(finish(p, e, bias, dst, dst));
    *out = p;
    p = NULL;
fail:
    dd_onednn_destroy_md(src);
    dd_onednn_destroy_md(weights);
    dd_onednn_destroy_md(bias);
    dd_onednn_destroy_md(dst);
    if (attr) {
        dnnl_primitive_attr_destroy(attr);
    }
    dd_primitive_destroy(p);
    return status;
}

/* ---- training */
