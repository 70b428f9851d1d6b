"""What a user triggers."""
