"""From dataset files to streaming batches: readers, simulators, shards, splits and the stream."""
