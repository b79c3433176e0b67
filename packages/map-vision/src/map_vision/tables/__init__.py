"""The cells of the paper's tables, and the recipes that compute them."""
