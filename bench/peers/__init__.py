"""Systems that do the same work as the yard, each started in an environment of its own."""
