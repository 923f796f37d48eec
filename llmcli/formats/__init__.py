"""Files read and written: models, adapters, tokenizers, and how they are written safely."""
