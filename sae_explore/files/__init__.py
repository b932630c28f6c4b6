"""Files as bytes: a bundle's files and their hashes, memory-mapped tensors and tables, downloads from the Hugging Face Hub."""
