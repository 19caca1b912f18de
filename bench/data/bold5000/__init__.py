"""Parts of the reader of BOLD5000: its layout, its design, its betas in two forms, its pictures."""
