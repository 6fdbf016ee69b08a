"""What a run shows: plots as PNG, one self-contained HTML page, and why each row was selected."""
