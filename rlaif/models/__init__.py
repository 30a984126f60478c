"""Models: finding, loading and converting them."""
