"""K networks of one shape trained as one: one matrix product a layer for all of them."""
