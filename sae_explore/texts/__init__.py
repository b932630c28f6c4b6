"""The texts of a corpus: what `--texts` accepts, files and data sets read row by row, the embedded corpus."""
