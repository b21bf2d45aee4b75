"""What comes back: classes, reports, other forms, the receipt."""
