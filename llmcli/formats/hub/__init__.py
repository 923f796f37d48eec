"""The Hugging Face hub: its cache on this machine, downloads and uploads."""
