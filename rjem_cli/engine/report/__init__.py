"""Results as rows and figures: plain data and PNG bytes, for whoever shows them."""
