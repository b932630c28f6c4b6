"""What is said about each feature: statistics, logit lens, labels and scores, neighbours on a map."""
