"""What the pages ask of a bundle: one text, a search, two texts side by side, links in and out."""
