"""The page at `/`: its files, and the few requests that it makes."""
