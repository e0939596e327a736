"""What users do in a round: an algorithm in a file of its own."""
