#include <stdio.h>

#include "models/layers.h"
#include "models/models.h"

/* What is carried down the U and up again. */
typedef struct {
    const dd_unet_config *config;
    dd_value time, context;
    dd_value skips[DD_MAX_SKIPS];
    int nskips;
} unet_state;

static dd_value resnet(dd_graph *g, const unet_state *u, int index, dd_value src, dd_value beside, int out)
{
    char name[32];
    snprintf(name, sizeof name, "resnets.%d", index);
    return dd_resnet_block(g, name, &(dd_resnet){.src = src, .beside = beside, .time = u->time, .out = out,
                                                 .groups = u->config->norm_num_groups, .eps = u->config->norm_eps,
                                                 .scale_shift = u->config->scale_shift});
}

static dd_value attention(dd_graph *g, const unet_state *u, int kind, int index, dd_value src, int level, int layers)
{
    const dd_unet_config *config = u->config;
    char name[32];
    snprintf(name, sizeof name, "attentions.%d", index);
    if (kind == DD_SELF_ATTENTION) {
        return dd_spatial_attention(g, name, src, config->heads[level], config->norm_num_groups,
                                    config->norm_eps);
    }
    if (kind == DD_CROSS_ATTENTION) {
        return dd_transformer_block(g, name,
                                    &(dd_transformer){.src = src,
                                                      .context = u->context,
                                                      .heads = config->heads[level],
                                                      .layers = layers,
                                                      .groups = config->norm_num_groups,
                                                      .linear_projection = config->linear_projection});
    }
    return src;
}

static dd_value down(dd_graph *g, unet_state *u, dd_value x)
{
    const dd_unet_config *config = u->config;
    const int *layers = config->transformer_layers;
    u->skips[u->nskips++] = x;
    for (int level = 0; level < config->levels; level++) {
        dd_graph_push(g, "down_blocks.%d", level);
        for (int i = 0; i < config->layers_per_block[level]; i++, layers++) {
            x = resnet(g, u, i, x, DD_NONE, config->block_out_channels[level]);
            x = attention(g, u, config->down_attention[level], i, x, level, *layers);
            u->skips[u->nskips++] = x;
        }
        if (level + 1 < config->levels) {
            x = dd_graph_conv(g, &(dd_conv){.name = "downsamplers.0.conv",
                                            .src = x,
                                            .out = config->block_out_channels[level],
                                            .kernel = 3,
                                            .stride = 2,
                                            .pad_before = config->downsample_one_sided ? 0 : 1,
                                            .pad_after = 1});
            u->skips[u->nskips++] = x;
        }
        dd_graph_pop(g);
    }
    return x;
}

static dd_value middle(dd_graph *g, const unet_state *u, dd_value x)
{
    const dd_unet_config *config = u->config;
    int last = config->levels - 1;
    dd_graph_push(g, "mid_block");
    for (int i = 0; i < config->mid_resnets; i++) {
        if (i > 0 && config->mid_attention == DD_SELF_ATTENTION) {
            x = dd_spatial_attention(g, "attentions.0", x, config->heads[last], config->mid_attention_groups,
                                     config->norm_eps);
        } else if (i > 0) {
            x = attention(g, u, config->mid_attention, 0, x, last, config->mid_transformer_layers);
        }
        x = resnet(g, u, i, x, DD_NONE, config->block_out_channels[last]);
    }
    dd_graph_pop(g);
    return x;
}

static dd_value up(dd_graph *g, const unet_state *u, dd_value x)
{
    const dd_unet_config *config = u->config;
    const int *layers = config->up_transformer_layers;
    int nskips = u->nskips;
    for (int i = 0; i < config->levels; i++) {
        int level = config->levels - 1 - i;
        dd_graph_push(g, "up_blocks.%d", i);
        for (int j = 0; j <= config->layers_per_block[level]; j++, layers++) {
            x = resnet(g, u, j, x, u->skips[--nskips], config->block_out_channels[level]);
            x = attention(g, u, config->up_attention[i], j, x, level, *layers);
        }
        if (level > 0) {
            dd_value next = u->skips[nskips - 1]; /* odd sizes were rounded on the way down */
            x = dd_graph_upsample(g, x, dd_graph_height(g, next), dd_graph_width(g, next));
            x = dd_conv3x3(g, "upsamplers.0.conv", x, config->block_out_channels[level]);
        }
        dd_graph_pop(g);
    }
    x = dd_graph_group_norm(g, &(dd_group_norm_args){.name = "conv_norm_out",
                                                     .src = x,
                                                     .groups = config->norm_num_groups,
                                                     .eps = config->norm_eps,
                                                     .silu = true});
    return dd_graph_to_nchw(g, dd_conv3x3(g, "conv_out", x, config->out_channels));
}

/* SDXL's "text_time" condition, which is added to the timestep embedding: an MLP of the pooled text beside the
   sinusoids of six numbers [+ add]. */
static dd_value text_time(dd_graph *g, const dd_unet_config *config, int rows, int embedding, dd_value add)
{
    const int text_dim = config->text_embeds_dim, all = text_dim + DD_TIME_IDS * config->time_ids_dim;
    dd_value text = dd_graph_input(g, "text_embeds", DD_F32, DD_INPUT_CONSTANT, 2, (int64_t[]){rows, text_dim});
    dd_value ids = dd_graph_input(g, "time_ids", DD_F32, DD_INPUT_CONSTANT, 2, (int64_t[]){rows, DD_TIME_IDS});
    dd_value times = dd_graph_timestep(g, ids, config->time_ids_dim, config->flip_sin_to_cos, config->freq_shift);
    dd_linear of_text = {.name = {"add_embedding.linear_1"},
                         .src = {.value = dd_graph_from_rows(g, text)},
                         .out = embedding,
                         .weight_cols = all};
    dd_linear of_times = {.name = {"add_embedding.linear_1"},
                          .src = {.value = times},
                          .out = embedding,
                          .first_col = text_dim,
                          .weight_cols = all,
                          .no_bias = true,
                          .add = dd_graph_linear(g, &of_text),
                          .act = DD_ACT_SILU,
                          .act_of_sum = true};
    return dd_graph_linear(g, &(dd_linear){.name = {"add_embedding.linear_2"},
                                           .src = {.value = dd_graph_linear(g, &of_times)},
                                           .out = embedding,
                                           .add = add});
}

/* name.linear_1, SiLU, name.linear_2 [+ add] [, SiLU]. */
static dd_value embedding_mlp(dd_graph *g, const char *name, dd_value x, int out, dd_value add, bool silu)
{
    dd_graph_push(g, "%s", name);
    x = dd_graph_linear(
        g, &(dd_linear){.name = {"linear_1"}, .src = {.value = x}, .out = out, .act = DD_ACT_SILU});
    x = dd_graph_linear(g, &(dd_linear){.name = {"linear_2"},
                                        .src = {.value = x},
                                        .out = out,
                                        .act = silu ? DD_ACT_SILU : DD_ACT_NONE,
                                        .act_of_sum = true,
                                        .add = add});
    dd_graph_pop(g);
    return x;
}

/* The embedding of the class, or DD_NONE. */
static dd_value class_embedding(dd_graph *g, const dd_unet_config *config, int rows, int out)
{
    dd_value labels;
    switch ((dd_class_embedding)config->class_embedding) {
    case DD_CLASS_TABLE:
        labels = dd_graph_input(g, "class_labels", DD_S32, DD_INPUT_REQUIRED, 1, (int64_t[]){rows});
        return dd_graph_embed(g, labels, "class_embedding", NULL, config->num_class_embeds, 0, out);
    case DD_CLASS_TIMESTEP:
        labels = dd_graph_input(g, "class_labels", DD_F32, DD_INPUT_REQUIRED, 1, (int64_t[]){rows});
        labels = dd_graph_timestep(g, labels, config->block_out_channels[0], config->flip_sin_to_cos,
                                   config->freq_shift);
        return embedding_mlp(g, "class_embedding", labels, out, DD_NONE, false);
    case DD_CLASS_IDENTITY:
        labels = dd_graph_input(g, "class_labels", DD_F32, DD_INPUT_REQUIRED, 2, (int64_t[]){rows, out});
        return dd_graph_from_rows(g, labels);
    default:
        return DD_NONE;
    }
}

dd_status dd_unet_build(dd_graph *g, const dd_unet_config *config, const dd_unet_shape *shape)
{
    int rows = shape->rows, channels = config->block_out_channels[0], embedding = 4 * channels,
        last = config->levels - 1;
    unet_state u = {.config = config};
    dd_value sample = dd_graph_input(g, "sample", DD_F32, DD_INPUT_REQUIRED, 4,
                                     (int64_t[]){rows, config->in_channels, shape->height, shape->width});
    dd_value timestep = dd_graph_input(g, "timestep", DD_F32, DD_INPUT_REQUIRED, 1, (int64_t[]){rows});
    dd_value context = config->context_dim ? dd_graph_input(g, "context", DD_F32, DD_INPUT_CONSTANT, 3,
                                                            (int64_t[]){rows, shape->tokens, config->context_dim})
                                           : DD_NONE;
    dd_value scale = dd_graph_input(g, "noise_scale", DD_F32, DD_INPUT_OPTIONAL, 1, (int64_t[]){rows});
    dd_value keys = dd_graph_input(g, "noise_key", DD_U32, DD_INPUT_OPTIONAL, 2, (int64_t[]){rows, 8});
    dd_value guidance = config->time_cond_proj_dim
                            ? dd_graph_input(g, "guidance", DD_F32, DD_INPUT_REQUIRED, 1, (int64_t[]){rows}) : DD_NONE;
    u.context = context ? dd_graph_from_rows(g, context) : DD_NONE;

    dd_value time = dd_graph_timestep(g, timestep, channels, config->flip_sin_to_cos, config->freq_shift);
    if (guidance) { /* latent consistency models: the sine comes first, and the last frequency is 1 / 10000 */
        guidance = dd_graph_timestep(g, guidance, config->time_cond_proj_dim, false, 1.f);
        time = dd_graph_linear(g, &(dd_linear){.name = {"time_embedding.cond_proj"},
                                               .src = {.value = guidance},
                                               .out = channels,
                                               .no_bias = true,
                                               .add = time});
    }
    dd_value added = class_embedding(g, config, rows, embedding);
    if (config->text_embeds_dim) {
        added = text_time(g, config, rows, embedding, added);
    }
    /* Every reader of the embedding applies SiLU first, so it is stored that way. */
    u.time = embedding_mlp(g, "time_embedding", time, embedding, added, true);

    dd_value x = dd_conv3x3(g, "conv_in", dd_graph_from_nchw(g, sample), channels);
    x = down(g, &u, x);
    x = middle(g, &u, x);

    dd_value noise = dd_graph_input(g, "noise", DD_F32, DD_INPUT_OPTIONAL, 4,
                                    (int64_t[]){rows, config->block_out_channels[last], dd_graph_height(g, x),
                                                dd_graph_width(g, x)});
    dd_value perturbed = dd_graph_add_noise(g, x, scale, noise, keys);
    if (shape->decoders == 2) {
        dd_graph_output(g, "sample", up(g, &u, x));
        dd_graph_output(g, "perturbed", up(g, &u, perturbed));
    } else {
        dd_graph_output(g, "sample", up(g, &u, perturbed));
    }
    dd_graph_output(g, "bottleneck", dd_graph_to_nchw(g, x));
    return dd_graph_status(g);
}
