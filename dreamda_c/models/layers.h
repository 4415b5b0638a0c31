/* Blocks that the U-Net and the VAE share, under diffusers' parameter names.
 *
 *     x = dd_resnet_block(g, "resnets.0", &(dd_resnet){.src = x, .out = 320, .groups = 32, .eps = 1e-5f, .time = emb});
 */
#ifndef DD_LAYERS_H
#define DD_LAYERS_H

#include "graph/graph.h"

/* norm1, SiLU, conv1 [+ time_emb_proj(time)], norm2, SiLU, conv2, + (conv_shortcut of) the input. With `scale_shift`,
   time_emb_proj(time) scales and shifts norm2 instead. `beside` is concatenated to src without a copy: the norm reads
   both, and the shortcut's weight is split between them. `time` is SiLU(embedding). */
typedef struct {
    dd_value src, beside, time;
    int out, groups;
    float eps;
    bool scale_shift;
} dd_resnet;
dd_value dd_resnet_block(dd_graph *g, const char *name, const dd_resnet *r);

/* 3 x 3 convolution, padding 1, with diffusers' own names. */
dd_value dd_conv3x3(dd_graph *g, const char *name, dd_value src, int out);

/* Transformer2DModel: norm, proj_in, `layers` x (self-attention, cross-attention to context, GEGLU), proj_out, +
   src. */
typedef struct {
    dd_value src, context;
    int heads, layers, groups;
    bool linear_projection;
} dd_transformer;
dd_value dd_transformer_block(dd_graph *g, const char *name, const dd_transformer *t);

/* Attention over positions, + src; without its norm if `groups` is 0. */
dd_value dd_spatial_attention(dd_graph *g, const char *name, dd_value src, int heads, int groups, float eps);

#endif
