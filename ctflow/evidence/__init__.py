"""Evidence for and against an image: resolution, noise, detectability, coverage, support, statistics."""
