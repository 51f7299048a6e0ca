"""Prior: a first estimate of the susceptibility, whose coefficients the field chooses."""
