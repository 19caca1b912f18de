"""Where bytes come from: local copies, buckets and byte ranges, and the formats they are in."""
