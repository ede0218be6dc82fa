"""Where graphs and engines run. Each backend loads a program once and binds it to fixed buffers, one set for a batch size."""
