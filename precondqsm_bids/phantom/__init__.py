"""The digital phantoms, written out as BIDS datasets with their truth."""
