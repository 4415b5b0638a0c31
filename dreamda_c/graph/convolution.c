#include "graph/convolution.h"

#include "kernels/kernels.h"

dd_conv_desc dd_convolution(const dd_graph *g, const dd_op *op, dd_value from, dd_dtype dtype)
{
    const dd_value_info *src = dd_graph_value(g, from), *dst = dd_graph_value(g, op->dst);
    return (dd_conv_desc){.dtype = dtype,
                          .n = src->n,
                          .h = src->h,
                          .w = src->w,
                          .ic = src->c,
                          .oc = dst->c,
                          .kernel = op->kernel,
                          .stride = op->stride,
                          .pad_before = op->pad_before,
                          .pad_after = op->pad_after};
}

/* Along one axis: the number of places of a window that see more than the border, and the first of them. */
static int places_seen(const dd_op *op, int in, int out, int *first)
{
    int low = op->pad_before - (out - 1) * op->stride, high = op->pad_before + in;
    *first = low > 0 ? low : 0;
    return (high < op->kernel ? high : op->kernel) - *first;
}

dd_conv_desc dd_convolution_cropped(const dd_graph *g, const dd_op *op, dd_dtype dtype, int *first)
{
    const dd_value_info *src = dd_graph_value(g, op->src[DD_SRC].value), *dst = dd_graph_value(g, op->dst);
    dd_conv_desc d = dd_convolution(g, op, op->src[DD_SRC].value, dtype);
    int across, down = places_seen(op, src->h, dst->h, first), places = places_seen(op, src->w, dst->w, &across);
    int before = op->pad_before - *first, after = (dst->h - 1) * op->stride + places - src->h - before;
    if (src->h == src->w && down == places && before >= 0 && after >= 0) {
        d.kernel = places;
        d.pad_before = before;
        d.pad_after = after;
    } else {
        *first = 0;
    }
    return d;
}

bool dd_convolution_by_winograd(const dd_conv_desc *d, dd_isa isa, dd_convolution_rule rule, bool up)
{
    const dd_epilogue *e = &d->epilogue;
    if (!dd_winograd_takes(isa, d->kernel, d->stride, d->pad_before, d->pad_after, d->ic, d->oc) || e->multiply ||
        (e->act != DD_ACT_NONE && (e->act != DD_ACT_RELU || e->add))) {
        return false;
    }
    if (d->dtype == DD_BF16 && isa >= DD_ISA_AMX) {
        return false; /* tiles are faster still */
    }
    if (rule == DD_PER_BATCH) {
        return (int64_t)d->n * d->h * d->w >= 256;
    }
    /* It pays if the weights are small compared with the work, or small in absolute terms: not on the coarse levels of
       Stable Diffusion's U-Net, which have most of the model's weights. After an upsampling it always pays: a quarter
       of the multiplications, and no more weights. */
    const bool fine = d->h >= 24 && d->w >= 24, small = d->h >= 8 && d->w >= 8;
    return up || fine || (small && dd_winograd_pack_bytes(d->dtype, d->ic, d->oc, DD_WINOGRAD_FORWARD) <= 2u << 20);
}
