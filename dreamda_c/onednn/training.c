/* Training: convolutions in three directions, max pooling, and reorders of weights that run at every step. */
#include "onednn/internal.h"


dd_status dd_conv_train_create(dd_primitive **forward, dd_primitive **data, dd_primitive **weights, dd_engine *engine,
                               const dd_conv_desc *d)
{
    dd_status status = DD_OK;
    dnnl_memory_desc_t src = NULL, wei = NULL, diff_wei = NULL, dst = NULL;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_data_type_t t = dd_onednn_data_type(d->dtype);
    int pads = d->pad_before + d->pad_after - d->kernel;
    dnnl_dims_t src_dims = {d->n, d->ic, d->h, d->w}, wei_dims = {d->oc, d->ic, d->kernel, d->kernel};
    dnnl_dims_t dst_dims = {d->n, d->oc, (d->h + pads) / d->stride + 1, (d->w + pads) / d->stride + 1};
    dnnl_dims_t strides = {d->stride, d->stride}, dilates = {0, 0};
    dnnl_dims_t before = {d->pad_before, d->pad_before}, after = {d->pad_after, d->pad_after};
    dd_primitive *f = NULL, *b = NULL, *w = NULL;
    DD_TRY(dd_onednn_ask_for_memory());
    CHECK(dnnl_memory_desc_create_with_tag(&src, 4, src_dims, t, dnnl_nhwc));
    CHECK(dnnl_memory_desc_create_with_tag(&wei, 4, wei_dims, t, dnnl_format_tag_any));
    CHECK(dnnl_memory_desc_create_with_tag(&diff_wei, 4, wei_dims, dnnl_f32, dnnl_format_tag_any));
    CHECK(dnnl_memory_desc_create_with_tag(&dst, 4, dst_dims, t, dnnl_nhwc));
    DD_TRY(dd_onednn_user_scratch(&attr));
    DD_TRY(dd_onednn_result(dnnl_convolution_forward_primitive_desc_create(&pd, engine->engine, dnnl_forward_training,
                                                                           dnnl_convolution_direct, src, wei, NULL, dst,
                                                                           strides, dilates, before, after, attr),
                            "a convolution"));
    DD_TRY(dd_onednn_make_primitive(&f, engine, pd));
    const_dnnl_primitive_desc_t hint = f->pd;
    if (data) {
        DD_TRY(dd_onednn_result(
            dnnl_convolution_backward_data_primitive_desc_create(&pd, engine->engine, dnnl_convolution_direct, src, wei,
                                                                 dst, strides, dilates, before, after, hint, attr),
            "the gradient of a convolution's source"));
        DD_TRY(dd_onednn_make_primitive(&b, engine, pd));
    }
    DD_TRY(dd_onednn_result(dnnl_convolution_backward_weights_primitive_desc_create(
                                &pd, engine->engine, dnnl_convolution_direct, src, diff_wei, NULL, dst, strides,
                                dilates, before, after, hint, attr),
                            "the gradient of a convolution's weights"));
    DD_TRY(dd_onednn_make_primitive(&w, engine, pd));
    *forward = f;
    *weights = w;
    if (data) {
        *data = b;
    }
    f = b = w = NULL;
fail:
    dd_onednn_destroy_md(src);
    dd_onednn_destroy_md(wei);
    dd_onednn_destroy_md(diff_wei);
    dd_onednn_destroy_md(dst);
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
    dnnl_data_type_t t = dd_onednn_data_type(d->dtype);
    int pads = d->pad_before + d->pad_after - d->kernel;
    dnnl_dims_t src_dims = {d->n, d->ic, d->h, d->w}, kernel = {d->kernel, d->kernel};
    dnnl_dims_t dst_dims = {d->n, d->ic, (d->h + pads) / d->stride + 1, (d->w + pads) / d->stride + 1};
    dnnl_dims_t strides = {d->stride, d->stride}, dilates = {0, 0};
    dnnl_dims_t before = {d->pad_before, d->pad_before}, after = {d->pad_after, d->pad_after};
    dd_primitive *f = NULL, *b = NULL;
    DD_TRY(dd_onednn_ask_for_memory());
    CHECK(dnnl_memory_desc_create_with_tag(&src, 4, src_dims, t, dnnl_nhwc));
    CHECK(dnnl_memory_desc_create_with_tag(&dst, 4, dst_dims, t, dnnl_nhwc));
    DD_TRY(dd_onednn_user_scratch(&attr));
    DD_TRY(dd_onednn_result(dnnl_pooling_forward_primitive_desc_create(
                                &pd, engine->engine, backward ? dnnl_forward_training : dnnl_forward_inference,
                                dnnl_pooling_max, src, dst, strides, kernel, dilates, before, after, attr),
                            "max pooling"));
    DD_TRY(dd_onednn_make_primitive(&f, engine, pd));
    if (backward) {
        DD_TRY(dd_onednn_result(dnnl_pooling_backward_primitive_desc_create(&pd, engine->engine, dnnl_pooling_max, src,
                                                                            dst, strides, kernel, dilates, before,
                                                                            after, f->pd, attr),
                                "the gradient of max pooling"));
        DD_TRY(dd_onednn_make_primitive(&b, engine, pd));
        *backward = b;
        b = NULL;
    }
    *forward = f;
    f = NULL;
fail:
    dd_onednn_destroy_md(src);
    dd_onednn_destroy_md(dst);
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
    DD_TRY(dd_onednn_ask_for_memory());
    CHECK(dnnl_memory_desc_query(layout->md, dnnl_query_dims, &dims));
    const dnnl_dims_t strides = {(*dims)[1] * kernel * kernel, kernel * kernel, kernel, 1};
    CHECK(dnnl_memory_desc_create_with_strides(&plain, 4, *dims, dnnl_f32, strides));
    DD_TRY(dd_onednn_user_scratch(&attr));
    if (!pack) {
        CHECK(dnnl_post_ops_create(&ops));
        CHECK(dnnl_post_ops_append_sum(ops, 1.f, 0, dnnl_data_type_undef));
        CHECK(dnnl_primitive_attr_set_post_ops(attr, ops));
    }
    DD_TRY(dd_onednn_result(dnnl_reorder_primitive_desc_create(&pd, pack ? plain : layout->md, engine->engine,
                                                               pack ? layout->md : plain, engine->engine, attr),
                            "packing of weights"));
    DD_TRY(dd_onednn_make_primitive(&p, engine, pd));
    *out = p;
fail:
    dd_onednn_destroy_md(plain);
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
