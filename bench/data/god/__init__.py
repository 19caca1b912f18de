"""Parts of the reader of Generic Object Decoding: its images, and its responses in two forms."""
