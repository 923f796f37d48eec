"""What a run trains and evaluates on."""
