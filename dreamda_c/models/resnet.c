/* ResNet-18, 34 and 50 (He et al., 2015; stride on the 3 x 3 convolution of a bottleneck, as torchvision has it). */
#include "models/models.h"

enum { LEVELS = 4 };

static const struct {
    int depth;
    bool bottleneck;
    int blocks[LEVELS];
} variants[] = {
    {18, false, {2, 2, 2, 2}},
    {34, false, {3, 4, 6, 3}},
    {50, true, {3, 4, 6, 3}},
};

static dd_value conv(dd_graph *g, const char *name, dd_value src, int out, int kernel, int stride)
{
    return dd_graph_conv(g, &(dd_conv){.name = name,
                                       .src = src,
                                       .out = out,
                                       .kernel = kernel,
                                       .stride = stride,
                                       .pad_before = kernel / 2,
                                       .pad_after = kernel / 2,
                                       .no_bias = true});
}

static dd_value norm(dd_graph *g, const char *name, dd_value src, dd_value add, bool relu)
{
    return dd_graph_batch_norm(g,
                               &(dd_batch_norm_args){.name = name, .src = src, .add = add, .relu = relu, .eps = 1e-5f});
}

static dd_value block(dd_graph *g, dd_value x, int width, bool bottleneck, int stride)
{
    int out = bottleneck ? 4 * width : width;
    dd_value y, shortcut = x;
    if (bottleneck) {
        y = norm(g, "bn1", conv(g, "conv1", x, width, 1, 1), DD_NONE, true);
        y = norm(g, "bn2", conv(g, "conv2", y, width, 3, stride), DD_NONE, true);
        y = conv(g, "conv3", y, out, 1, 1);
    } else {
        y = norm(g, "bn1", conv(g, "conv1", x, width, 3, stride), DD_NONE, true);
        y = conv(g, "conv2", y, out, 3, 1);
    }
    if (stride != 1 || dd_graph_channels(g, x) != out) {
        shortcut = norm(g, "downsample.1", conv(g, "downsample.0", x, out, 1, stride), DD_NONE, false);
    }
    return norm(g, bottleneck ? "bn3" : "bn2", y, shortcut, true);
}

dd_status dd_resnet_build(dd_graph *g, const dd_resnet_config *c, int rows, int height, int width)
{
    int variant = -1, smallest = c->small_stem ? 8 : 32;
    for (int i = 0; i < (int)(sizeof variants / sizeof *variants); i++) {
        variant = variants[i].depth == c->depth ? i : variant;
    }
    if (variant < 0) {
        dd_graph_fail(g, DD_INVALID, "there is no ResNet-%d here: use 18, 34 or 50", c->depth);
        return dd_graph_status(g);
    }
    if (height < smallest || width < smallest) {
        dd_graph_fail(g, DD_SHAPE, "images of %d x %d are too small: %s stem needs %d x %d at least", height, width,
                      c->small_stem ? "the small" : "the ImageNet", smallest, smallest);
        return dd_graph_status(g);
    }
    dd_value x = dd_graph_input(g, "images", DD_F32, DD_INPUT_REQUIRED, 4,
                                (int64_t[]){rows, c->in_channels, height, width});
    x = dd_graph_from_nchw(g, x);
    x = norm(g, "bn1", conv(g, "conv1", x, c->width, c->small_stem ? 3 : 7, c->small_stem ? 1 : 2), DD_NONE, true);
    if (!c->small_stem) {
        x = dd_graph_max_pool(g, x, 3, 2, 1);
    }
    for (int level = 0; level < LEVELS; level++) {
        for (int i = 0; i < variants[variant].blocks[level]; i++) {
            dd_graph_push(g, "layer%d.%d", level + 1, i);
            x = block(g, x, c->width << level, variants[variant].bottleneck, level && !i ? 2 : 1);
            dd_graph_pop(g);
        }
    }
    dd_graph_output(g, "features", dd_graph_global_pool(g, x));
    return dd_graph_status(g);
}
