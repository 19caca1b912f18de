"""What is stored: manifests, columns, trials, stimuli, targets and pictures as Parquet."""
