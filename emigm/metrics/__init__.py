"""Images to features, features to scores, and the files of ADM's evaluator."""
