"""How shards are read: decoded once, shared by all fits of a node, z-scored batch by batch."""
