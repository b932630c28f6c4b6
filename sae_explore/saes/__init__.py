"""Sparse autoencoders: encoding and decoding, the formats of others, and training a TopK one."""
