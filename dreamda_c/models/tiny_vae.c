#include "models/layers.h"
#include "models/models.h"

#include <stdio.h>

/* The modules stand in one sequence; `index` is the next one's number in it. */
typedef struct {
    dd_graph *g;
    int index;
} sequence;

static dd_value conv(sequence *s, dd_value x, int out, int stride, bool bias, dd_activation act)
{
    char name[32];
    snprintf(name, sizeof name, "layers.%d", s->index++);
    return dd_graph_conv(s->g, &(dd_conv){.name = name,
                                          .src = x,
                                          .out = out,
                                          .kernel = 3,
                                          .stride = stride,
                                          .pad_before = 1,
                                          .pad_after = 1,
                                          .no_bias = !bias,
                                          .act = act});
}

/* AutoencoderTinyBlock: relu(x + conv(relu(conv(relu(conv(x)))))), `count` times. */
static dd_value blocks(sequence *s, dd_value x, int count)
{
    static const char *const names[] = {"conv.0", "conv.2", "conv.4"};
    for (int i = 0; i < count && dd_graph_status(s->g) == DD_OK; i++) {
        const dd_value input = x;
        dd_graph_push(s->g, "layers.%d", s->index++);
        for (int j = 0; j < 3; j++) {
            x = dd_graph_conv(s->g, &(dd_conv){.name = names[j],
                                               .src = x,
                                               .out = dd_graph_channels(s->g, x),
                                               .kernel = 3,
                                               .stride = 1,
                                               .pad_before = 1,
                                               .pad_after = 1,
                                               .act = DD_ACT_RELU,
                                               .add = j == 2 ? input : DD_NONE});
        }
        dd_graph_pop(s->g);
    }
    return x;
}

dd_status dd_tiny_vae_encoder_build(dd_graph *g, const dd_tiny_vae_config *config, int rows, int height, int width)
{
    sequence s = {.g = g};
    dd_value x = dd_graph_input(g, "image", DD_F32, DD_INPUT_REQUIRED, 4,
                                (int64_t[]){rows, config->in_channels, height, width});
    x = dd_graph_from_nchw(g, x);
    dd_graph_push(g, "encoder");
    for (int level = 0; level < config->levels; level++) {
        x = conv(&s, x, config->encoder_channels, level ? 2 : 1, level == 0, DD_ACT_NONE);
        x = blocks(&s, x, config->encoder_blocks[level]);
    }
    x = conv(&s, x, config->latent_channels, 1, true, DD_ACT_NONE);
    dd_graph_pop(g);
    dd_graph_output(g, "latent", dd_graph_to_nchw(g, x));
    return dd_graph_status(g);
}

dd_status dd_tiny_vae_decoder_build(dd_graph *g, const dd_tiny_vae_config *config, int rows, int height, int width)
{
    sequence s = {.g = g};
    int factor = 1 << (config->levels - 1), last = config->levels - 1;
    if (height % factor || width % factor) {
        return dd_fail(DD_SHAPE, "an image of %d x %d is not a multiple of the VAE's factor %d", height, width, factor);
    }
    dd_value x = dd_graph_input(g, "latent", DD_F32, DD_INPUT_REQUIRED, 4,
                                (int64_t[]){rows, config->latent_channels, height / factor, width / factor});
    x = dd_graph_from_nchw(g, x);
    dd_graph_push(g, "decoder");
    x = conv(&s, x, config->decoder_channels, 1, true, DD_ACT_RELU);
    s.index++; /* the activation is a module too, as each upsampling is */
    for (int level = 0; level <= last; level++) {
        x = blocks(&s, x, config->decoder_blocks[level]);
        if (level < last) {
            x = dd_graph_upsample(g, x, 2 * dd_graph_height(g, x), 2 * dd_graph_width(g, x));
            s.index++;
        }
        x = conv(&s, x, level < last ? config->decoder_channels : config->out_channels, 1, level == last, DD_ACT_NONE);
    }
    dd_graph_pop(g);
    dd_graph_output(g, "image", dd_graph_to_nchw(g, x));
    return dd_graph_status(g);
}
