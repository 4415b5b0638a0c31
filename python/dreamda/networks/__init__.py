"""The networks: configuration, weights and tokenizers of diffusers folders, and UNet, VAE and TextEncoder."""
