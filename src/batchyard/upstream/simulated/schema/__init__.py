"""A value for a JSON Schema: sampled, then checked."""
