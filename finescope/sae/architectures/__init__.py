"""One file for each architecture of sparse autoencoder."""
