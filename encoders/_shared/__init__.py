"""What encoders of every kind share."""
