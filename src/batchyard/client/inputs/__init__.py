"""What goes in: sources of documents, templates, parameters."""
