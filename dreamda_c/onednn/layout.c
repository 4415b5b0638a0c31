/* Layouts of packed weights: oneDNN's, and that of our Winograd convolutions. */
#include "onednn/internal.h"

#include "base/arena.h"
#include "kernels/kernels.h"

dd_status dd_layout_winograd(dd_layout **out, dd_isa isa, dd_dtype dtype, int ic, int oc, bool up)
{
    dd_layout *layout = dd_calloc(1, sizeof *layout);
    if (!layout) {
        return dd_fail(DD_NOMEM, "out of memory for a layout");
    }
    *layout = (dd_layout){
        .isa = isa, .dtype = dtype, .ic = ic, .oc = oc, .winograd = up ? DD_WINOGRAD_UP : DD_WINOGRAD_FORWARD};
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
        return !a->md && !b->md && a->isa == b->isa && a->dtype == b->dtype && a->ic == b->ic && a->oc == b->oc &&
               a->winograd == b->winograd;
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
        dd_onednn_destroy_md(layout->md);
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

dd_status dd_layout_pack(const dd_layout *layout, dd_engine *engine, const float *plain, int64_t cols, size_t ld,
                         int64_t row, int64_t rows, void *dst)
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
    DD_TRY(dd_onednn_team(&threads));
    DD_TRY(dd_onednn_ask_for_memory());
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
    DD_TRY(
        dd_onednn_result(dnnl_reorder_primitive_desc_create(&pd, plain_md, engine->engine, part, engine->engine, NULL),
                         "packing of weights"));
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
    dd_onednn_destroy_md(plain_md);
    dd_onednn_destroy_md(part);
    return status;
}
