"""Image quality and statistics: resolution, noise, detectability, coverage, support, tests over patients."""
