"""What another training engine needs to continue with the same tokenizer, split and mixture on a cluster."""
