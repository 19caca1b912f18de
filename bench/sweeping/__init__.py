"""The inside of `sweep`: its settings, the stages in order, the pictures of the page."""
