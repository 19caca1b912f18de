"""What every stage stands on and what knows nothing of fMRI: the cluster, folders, addresses, options, errors."""
