"""Results to look at: link graphs as SVG and HTML, attention as a heat map and as a page."""
