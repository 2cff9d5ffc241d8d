"""What the operating system offers, in the form that we use."""
