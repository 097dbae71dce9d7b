"""What fine-tuning optimises."""
