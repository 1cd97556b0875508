"""The report: one HTML file that needs no network."""

FORMATS = ("html", "md", "json", "csv", "pdf")
