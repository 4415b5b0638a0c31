/* The model families: a configuration and one loop over it for each. Graph names are diffusers' parameter names.
 *
 *     dd_unet_config config = {.in_channels = 4, .out_channels = 4, .levels = 4}; // and so on: Stable Diffusion 1.5
 *     dd_unet_shape shape = {.rows = 2, .height = 64, .width = 64, .tokens = 77, .decoders = 1};
 *     DD_TRY(dd_unet_build(graph, &config, &shape));
 *     DD_TRY(dd_plan_create(&plan, graph, DD_BF16, 2));
 *
 * Configurations come from checked JSON, but shapes that contradict each other are still refused here (DD_INVALID,
 * DD_SHAPE).
 */
#ifndef DD_MODELS_H
#define DD_MODELS_H

#include "graph/graph.h"

enum { DD_MAX_LEVELS = 8, DD_MAX_SKIPS = 128, DD_TIME_IDS = 6 };

/* What follows a ResNet block: transformer layers that read the context, or attention over positions. */
typedef enum { DD_NO_ATTENTION, DD_CROSS_ATTENTION, DD_SELF_ATTENTION, DD_ATTENTIONS } dd_attention_kind;

/* What is added to the timestep embedding: nothing, a row of a table, an embedded number, or the input itself. */
typedef enum {
    DD_NO_CLASSES,
    DD_CLASS_TABLE,
    DD_CLASS_TIMESTEP,
    DD_CLASS_IDENTITY,
    DD_CLASS_EMBEDDINGS
} dd_class_embedding;

/* UNet2DConditionModel and, with a context_dim of 0, UNet2DModel. `transformer_layers` and `up_transformer_layers` have
   an entry for every ResNet block on the way down and on the way up; those of levels without cross-attention are
   unused. All levels make at most DD_MAX_SKIPS skip connections. */
typedef struct {
    int in_channels, out_channels, levels;
    int block_out_channels[DD_MAX_LEVELS], layers_per_block[DD_MAX_LEVELS];
    int down_attention[DD_MAX_LEVELS], up_attention[DD_MAX_LEVELS]; /* dd_attention_kind, each in its own order */
    int mid_resnets;                                                /* 0: no mid block */
    int mid_attention;                                              /* dd_attention_kind, between two of them */
    int mid_attention_groups;                                       /* of DD_SELF_ATTENTION's norm; 0: it has none */
    int transformer_layers[DD_MAX_SKIPS], up_transformer_layers[DD_MAX_SKIPS];
    int mid_transformer_layers; /* of DD_CROSS_ATTENTION */
    int heads[DD_MAX_LEVELS];
    int context_dim, norm_num_groups;
    float norm_eps, freq_shift;
    int time_cond_proj_dim; /* of the guidance embedding; 0: the model has none */
    int text_embeds_dim, time_ids_dim; /* of SDXL's "text_time" condition, the latter of each id; 0: it has none */
    int class_embedding;    /* dd_class_embedding */
    int num_class_embeds;   /* rows of DD_CLASS_TABLE */
    bool linear_projection, flip_sin_to_cos;
    bool scale_shift;          /* the timestep scales and shifts norms instead of being added */
    bool downsample_one_sided; /* padding at the right and the bottom only */
} dd_unet_config;

typedef struct {
    int rows, height, width, tokens; /* latent size */
    int decoders;                    /* 2: both the clean and the perturbed bottleneck are decoded */
} dd_unet_shape;

/* Inputs: sample, timestep, [context (constant)], [class_labels], [guidance: 1000 (guidance_scale - 1) a row],
   [text_embeds and time_ids (constant)]; optional noise_scale, noise, noise_key. Outputs: sample, [perturbed,]
   bottleneck: what the mid block makes or, if there is none, the last down block. */
dd_status dd_unet_build(dd_graph *g, const dd_unet_config *config, const dd_unet_shape *shape);

/* AutoencoderKL, one half at a time. */
typedef struct {
    int in_channels, out_channels, latent_channels, levels;
    int block_out_channels[DD_MAX_LEVELS];
    int layers_per_block, norm_num_groups;
    bool quant_conv, post_quant_conv, mid_attention;
} dd_vae_config;

/* height and width are the image's. Input image, output moments. */
dd_status dd_vae_encoder_build(dd_graph *g, const dd_vae_config *config, int rows, int height, int width);
/* Input latent, output image. */
dd_status dd_vae_decoder_build(dd_graph *g, const dd_vae_config *config, int rows, int height, int width);

/* AutoencoderTiny (TAESD), one half at a time. Its image is in [0, 1], and its latent has no moments. */
typedef struct {
    int in_channels, out_channels, latent_channels, levels;
    int encoder_channels, decoder_channels;                             /* of every level */
    int encoder_blocks[DD_MAX_LEVELS], decoder_blocks[DD_MAX_LEVELS]; /* each in its own order */
} dd_tiny_vae_config;

/* height and width are the image's. Input image, output latent; its sides are rounded up. */
dd_status dd_tiny_vae_encoder_build(dd_graph *g, const dd_tiny_vae_config *config, int rows, int height, int width);
/* Input latent (already clamped by tanh), output image. */
dd_status dd_tiny_vae_decoder_build(dd_graph *g, const dd_tiny_vae_config *config, int rows, int height, int width);

/* CLIPTextModel. Input tokens; outputs hidden (after the final norm), penultimate (the last layer's input), and for a
   CLIPTextModelWithProjection, projected (the projection of hidden). */
typedef struct {
    int vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, max_position_embeddings;
    int projection_dim; /* 0: the model has no projection */
    dd_activation hidden_act;
    float layer_norm_eps;
} dd_clip_config;
dd_status dd_clip_build(dd_graph *g, const dd_clip_config *config, int rows, int tokens);

/* ResNet without its class head; parameter names as in torchvision and timm. The small stem is one 3 x 3
   convolution. */
typedef struct {
    int depth; /* 18, 34 or 50 */
    bool small_stem;
    int in_channels, width; /* width: channels of the stem, 64 in the published networks */
} dd_resnet_config;

/* Input images (rows, in_channels, height, width), output features (rows, channels). For plans and trainers. */
dd_status dd_resnet_build(dd_graph *g, const dd_resnet_config *config, int rows, int height, int width);

#endif
