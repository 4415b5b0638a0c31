#include "models/layers.h"

dd_value dd_conv3x3(dd_graph *g, const char *name, dd_value src, int out)
{
    return dd_graph_conv(
        g, &(dd_conv){.name = name, .src = src, .out = out, .kernel = 3, .stride = 1, .pad_before = 1, .pad_after = 1});
}

static dd_value shortcut(dd_graph *g, const dd_resnet *r, int in)
{
    int own = dd_graph_channels(g, r->src);
    dd_linear left = {
        .name = {"conv_shortcut"}, .src = {.value = r->src}, .out = r->out, .weight_cols = in, .pointwise_conv = true};
    dd_value x = dd_graph_linear(g, &left);
    if (!r->beside) {
        return x;
    }
    dd_linear right = {.name = {"conv_shortcut"},
                       .src = {.value = r->beside},
                       .out = r->out,
                       .first_col = own,
                       .weight_cols = in,
                       .no_bias = true,
                       .pointwise_conv = true,
                       .add = x};
    return dd_graph_linear(g, &right);
}

dd_value dd_resnet_block(dd_graph *g, const char *name, const dd_resnet *r)
{
    int in = dd_graph_channels(g, r->src) + (r->beside ? dd_graph_channels(g, r->beside) : 0);
    dd_graph_push(g, "%s", name);
    /* The shortcut first: then the source is unused after its norm, which takes over its memory. */
    dd_value residual = in == r->out && !r->beside ? r->src : shortcut(g, r, in);
    dd_value x = dd_graph_group_norm(g, &(dd_group_norm_args){.name = "norm1", .src = r->src, .beside = r->beside,
                                                              .groups = r->groups, .eps = r->eps, .silu = true});
    x = dd_conv3x3(g, "conv1", x, r->out);
    dd_value time = DD_NONE;
    if (r->time) {
        time = dd_graph_linear(g, &(dd_linear){.name = {"time_emb_proj"},
                                               .src = {.value = r->time},
                                               .out = (r->scale_shift ? 2 : 1) * r->out,
                                               .f32 = true});
    }
    x = dd_graph_group_norm(g, &(dd_group_norm_args){.name = "norm2",
                                                     .src = x,
                                                     .row_bias = r->scale_shift ? DD_NONE : time,
                                                     .scale_shift = r->scale_shift ? time : DD_NONE,
                                                     .groups = r->groups,
                                                     .eps = r->eps,
                                                     .silu = true});
    x = dd_graph_conv(g, &(dd_conv){.name = "conv2", .src = x, .out = r->out, .kernel = 3, .stride = 1, .pad_before = 1,
                                    .pad_after = 1, .add = residual});
    dd_graph_pop(g);
    return x;
}

static dd_value feed_forward(dd_graph *g, dd_value src, dd_value residual, int channels)
{
    /* GEGLU: the first half of the rows is the value, the second the gate; the gate runs first and multiplies in the
       epilogue of the other half, so that the double-width tensor never exists. */
    int inner = 4 * channels;
    dd_linear half = {.name = {"ff.net.0.proj"}, .src = {.value = src}, .out = inner, .first_row = inner,
                      .weight_rows = 2 * inner, .act = DD_ACT_GELU};
    dd_value gate = dd_graph_linear(g, &half);
    half.first_row = 0;
    half.act = DD_ACT_NONE;
    half.multiply = gate;
    dd_value x = dd_graph_linear(g, &half);
    return dd_graph_linear(g,
                           &(dd_linear){.name = {"ff.net.2"}, .src = {.value = x}, .out = channels, .add = residual});
}

static dd_value transformer_layer(dd_graph *g, dd_value src, dd_value context, int heads)
{
    const float eps = 1e-5f; /* torch.nn.LayerNorm's default; diffusers does not make it configurable */
    int c = dd_graph_channels(g, src);
    dd_value x = dd_graph_layer_norm(g, "norm1", src, eps);
    dd_value qkv = dd_graph_linear(g, &(dd_linear){.name = {"attn1.to_q", "attn1.to_k", "attn1.to_v"}, .names = 3,
                                                   .src = {.value = x}, .out = c, .no_bias = true});
    x = dd_graph_attention(g, (dd_view){qkv, 0, c}, (dd_view){qkv, c, c}, (dd_view){qkv, 2 * c, c}, heads, false);
    src = dd_graph_linear(g, &(dd_linear){.name = {"attn1.to_out.0"}, .src = {.value = x}, .out = c, .add = src});

    x = dd_graph_layer_norm(g, "norm2", src, eps);
    dd_value q = dd_graph_linear(g,
                                 &(dd_linear){.name = {"attn2.to_q"}, .src = {.value = x}, .out = c, .no_bias = true});
    dd_value kv = dd_graph_linear(
        g, &(dd_linear){
               .name = {"attn2.to_k", "attn2.to_v"}, .names = 2, .src = {.value = context}, .out = c, .no_bias = true});
    x = dd_graph_attention(g, (dd_view){q, 0, c}, (dd_view){kv, 0, c}, (dd_view){kv, c, c}, heads, false);
    src = dd_graph_linear(g, &(dd_linear){.name = {"attn2.to_out.0"}, .src = {.value = x}, .out = c, .add = src});

    return feed_forward(g, dd_graph_layer_norm(g, "norm3", src, eps), src, c);
}

dd_value dd_transformer_block(dd_graph *g, const char *name, const dd_transformer *t)
{
    int c = dd_graph_channels(g, t->src);
    dd_graph_push(g, "%s", name);
    dd_value x = dd_graph_group_norm(
        g, &(dd_group_norm_args){.name = "norm", .src = t->src, .groups = t->groups, .eps = 1e-6f});
    x = dd_graph_linear(
        g, &(dd_linear){.name = {"proj_in"}, .src = {.value = x}, .out = c, .pointwise_conv = !t->linear_projection});
    for (int i = 0; i < t->layers && dd_graph_status(g) == DD_OK; i++) {
        dd_graph_push(g, "transformer_blocks.%d", i);
        x = transformer_layer(g, x, t->context, t->heads);
        dd_graph_pop(g);
    }
    x = dd_graph_linear(g, &(dd_linear){.name = {"proj_out"}, .src = {.value = x}, .out = c,
                                        .pointwise_conv = !t->linear_projection, .add = t->src});
    dd_graph_pop(g);
    return x;
}

dd_value dd_spatial_attention(dd_graph *g, const char *name, dd_value src, int heads, int groups, float eps)
{
    int c = dd_graph_channels(g, src);
    dd_graph_push(g, "%s", name);
    dd_value x = src;
    if (groups) {
        x = dd_graph_group_norm(
            g, &(dd_group_norm_args){.name = "group_norm", .src = src, .groups = groups, .eps = eps});
    }
    dd_value qkv = dd_graph_linear(
        g, &(dd_linear){.name = {"to_q", "to_k", "to_v"}, .names = 3, .src = {.value = x}, .out = c});
    x = dd_graph_attention(g, (dd_view){qkv, 0, c}, (dd_view){qkv, c, c}, (dd_view){qkv, 2 * c, c}, heads, false);
    x = dd_graph_linear(g, &(dd_linear){.name = {"to_out.0"}, .src = {.value = x}, .out = c, .add = src});
    dd_graph_pop(g);
    return x;
}
