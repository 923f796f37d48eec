"""File formats: models, adapters and ensembles, read and written; atomic output and locks."""
