"""Off-site copies: what identifies one, what is sent, and where to."""
