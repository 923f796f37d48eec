"""File formats: reading and writing models, adapters and ensembles; atomic output and file locks."""
