"""The yard's HTTP side: the Message Batches API, and what passes straight through."""
