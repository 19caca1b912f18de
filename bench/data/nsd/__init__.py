"""The Natural Scenes Dataset's own layout: keys, experiment design, volumes and betas (Allen et al. 2022)."""
