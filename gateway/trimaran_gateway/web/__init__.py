"""The page at `/`: its files, which need no build step, and the figures that its live panel shows."""
