"""What encoders trained by gradient descent share."""
