"""The leaderboard's parts: ranking, JSON, Markdown, page and terminal table, all from records and nothing else."""
