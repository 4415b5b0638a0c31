#include "models/layers.h"
#include "models/models.h"

#include <stdio.h>

static const float eps = 1e-6f; /* of every norm in AutoencoderKL */

static dd_value resnets(dd_graph *g, const dd_vae_config *config, dd_value x, int count, int out)
{
    char name[32];
    for (int i = 0; i < count && dd_graph_status(g) == DD_OK; i++) {
        snprintf(name, sizeof name, "resnets.%d", i);
        x = dd_resnet_block(g, name, &(dd_resnet){.src = x, .out = out, .groups = config->norm_num_groups, .eps = eps});
    }
    return x;
}

static dd_value middle(dd_graph *g, const dd_vae_config *config, dd_value x)
{
    int channels = dd_graph_channels(g, x);
    dd_resnet block = {.src = x, .out = channels, .groups = config->norm_num_groups, .eps = eps};
    dd_graph_push(g, "mid_block");
    block.src = dd_resnet_block(g, "resnets.0", &block);
    if (config->mid_attention) {
        block.src = dd_spatial_attention(g, "attentions.0", block.src, 1, config->norm_num_groups, eps);
    }
    x = dd_resnet_block(g, "resnets.1", &block);
    dd_graph_pop(g);
    return x;
}

static dd_value head(dd_graph *g, const dd_vae_config *config, dd_value x, int out)
{
    x = dd_graph_group_norm(
        g, &(dd_group_norm_args){
               .name = "conv_norm_out", .src = x, .groups = config->norm_num_groups, .eps = eps, .silu = true});
    return dd_conv3x3(g, "conv_out", x, out);
}

dd_status dd_vae_encoder_build(dd_graph *g, const dd_vae_config *config, int rows, int height, int width)
{
    dd_value x = dd_graph_input(g, "image", DD_F32, DD_INPUT_REQUIRED, 4,
                                (int64_t[]){rows, config->in_channels, height, width});
    dd_graph_push(g, "encoder");
    x = dd_conv3x3(g, "conv_in", dd_graph_from_nchw(g, x), config->block_out_channels[0]);
    for (int level = 0; level < config->levels; level++) {
        int channels = config->block_out_channels[level];
        dd_graph_push(g, "down_blocks.%d", level);
        x = resnets(g, config, x, config->layers_per_block, channels);
        if (level + 1 < config->levels) { /* padded at the right and the bottom only */
            x = dd_graph_conv(g, &(dd_conv){.name = "downsamplers.0.conv",
                                            .src = x,
                                            .out = channels,
                                            .kernel = 3,
                                            .stride = 2,
                                            .pad_before = 0,
                                            .pad_after = 1});
        }
        dd_graph_pop(g);
    }
    x = head(g, config, middle(g, config, x), 2 * config->latent_channels);
    dd_graph_pop(g);
    if (config->quant_conv) {
        x = dd_graph_linear(g, &(dd_linear){.name = {"quant_conv"},
                                            .src = {.value = x},
                                            .out = 2 * config->latent_channels,
                                            .pointwise_conv = true});
    }
    dd_graph_output(g, "moments", dd_graph_to_nchw(g, x));
    return dd_graph_status(g);
}

dd_status dd_vae_decoder_build(dd_graph *g, const dd_vae_config *config, int rows, int height, int width)
{
    int factor = 1 << (config->levels - 1);
    if (height % factor || width % factor) {
        return dd_fail(DD_SHAPE, "an image of %d x %d is not a multiple of the VAE's factor %d", height, width, factor);
    }
    dd_value x = dd_graph_input(g, "latent", DD_F32, DD_INPUT_REQUIRED, 4,
                                (int64_t[]){rows, config->latent_channels, height / factor, width / factor});
    x = dd_graph_from_nchw(g, x);
    if (config->post_quant_conv) {
        x = dd_graph_linear(g, &(dd_linear){.name = {"post_quant_conv"},
                                            .src = {.value = x},
                                            .out = config->latent_channels,
                                            .pointwise_conv = true});
    }
    dd_graph_push(g, "decoder");
    x = dd_conv3x3(g, "conv_in", x, config->block_out_channels[config->levels - 1]);
    x = middle(g, config, x);
    for (int i = 0; i < config->levels; i++) {
        int channels = config->block_out_channels[config->levels - 1 - i];
        dd_graph_push(g, "up_blocks.%d", i);
        x = resnets(g, config, x, config->layers_per_block + 1, channels);
        if (i + 1 < config->levels) {
            x = dd_graph_upsample(g, x, 2 * dd_graph_height(g, x), 2 * dd_graph_width(g, x));
            x = dd_conv3x3(g, "upsamplers.0.conv", x, channels);
        }
        dd_graph_pop(g);
    }
    x = head(g, config, x, config->out_channels);
    dd_graph_pop(g);
    dd_graph_output(g, "image", dd_graph_to_nchw(g, x));
    return dd_graph_status(g);
}
