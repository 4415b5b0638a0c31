"""Images from images: schedulers, the recursions of DreamDA, and the pipeline."""
