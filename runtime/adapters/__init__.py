"""Front ends that people have already, over `ds2ds.Backend`: what calls them need not change."""
