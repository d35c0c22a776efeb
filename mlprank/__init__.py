"""mlprank."""
