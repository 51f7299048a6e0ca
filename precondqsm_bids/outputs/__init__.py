"""What is written: tables of maps and measures, sidecars, dataset, figures, reports, the group."""
