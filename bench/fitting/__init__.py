"""One trial (a fit) and the Tune search over many."""
