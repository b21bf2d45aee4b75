"""What would be sent and what it would cost, before anything is."""
