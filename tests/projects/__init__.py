"""Three Lightning projects of different styles that know nothing of mlprank."""
