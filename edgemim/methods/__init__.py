"""What pre-training optimises."""
