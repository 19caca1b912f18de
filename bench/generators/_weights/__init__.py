"""From published or shipped files to frozen networks."""
