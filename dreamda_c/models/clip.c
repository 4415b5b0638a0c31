#include "models/models.h"

static dd_value self_attention(dd_graph *g, const dd_clip_config *config, dd_value src)
{
    int c = config->hidden_size;
    dd_value x = dd_graph_layer_norm(g, "layer_norm1", src, config->layer_norm_eps);
    dd_value qkv = dd_graph_linear(g, &(dd_linear){.name = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"},
                                                   .names = 3,
                                                   .src = {.value = x},
                                                   .out = c});
    x = dd_graph_attention(g, (dd_view){qkv, 0, c}, (dd_view){qkv, c, c}, (dd_view){qkv, 2 * c, c},
                           config->num_attention_heads, true);
    return dd_graph_linear(g, &(dd_linear){.name = {"self_attn.out_proj"}, .src = {.value = x}, .out = c, .add = src});
}

static dd_value mlp(dd_graph *g, const dd_clip_config *config, dd_value src)
{
    dd_value x = dd_graph_layer_norm(g, "layer_norm2", src, config->layer_norm_eps);
    x = dd_graph_linear(g, &(dd_linear){.name = {"mlp.fc1"},
                                        .src = {.value = x},
                                        .out = config->intermediate_size,
                                        .act = config->hidden_act});
    return dd_graph_linear(
        g, &(dd_linear){.name = {"mlp.fc2"}, .src = {.value = x}, .out = config->hidden_size, .add = src});
}

dd_status dd_clip_build(dd_graph *g, const dd_clip_config *config, int rows, int tokens)
{
    dd_value ids = dd_graph_input(g, "tokens", DD_S32, DD_INPUT_REQUIRED, 2, (int64_t[]){rows, tokens});
    dd_graph_push(g, "text_model");
    dd_value x = dd_graph_embed(g, ids, "embeddings.token_embedding", "embeddings.position_embedding",
                                config->vocab_size, config->max_position_embeddings, config->hidden_size);
    dd_value penultimate = x;
    for (int i = 0; i < config->num_hidden_layers && dd_graph_status(g) == DD_OK; i++) {
        dd_graph_push(g, "encoder.layers.%d", i);
        penultimate = x;
        x = self_attention(g, config, x);
        x = mlp(g, config, x);
        dd_graph_pop(g);
    }
    x = dd_graph_layer_norm(g, "final_layer_norm", x, config->layer_norm_eps);
    dd_graph_pop(g);
    dd_graph_output(g, "hidden", dd_graph_to_rows(g, x));
    dd_graph_output(g, "penultimate", dd_graph_to_rows(g, penultimate));
    if (config->projection_dim) {
        x = dd_graph_linear(g, &(dd_linear){.name = {"text_projection"},
                                            .src = {.value = x},
                                            .out = config->projection_dim,
                                            .no_bias = true});
        dd_graph_output(g, "projected", dd_graph_to_rows(g, x));
    }
    return dd_graph_status(g);
}
