"""From accepted batches to recorded results: what runs when, and what an outcome means."""
