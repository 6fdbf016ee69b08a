"""One file for each layout in which autoencoders are kept on disk."""
