"""Several processes that train one model: starting, connecting, communicating."""
