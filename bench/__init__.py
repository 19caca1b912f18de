"""The flow of reconbench: every stage from dataset files to the leaderboard, and the only package that imports ray."""
