"""Find copies of real images among synthetic ones: thumbnails, exhaustive search, scores and their calibration."""
