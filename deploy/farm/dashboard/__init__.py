"""The farm as a web page: see `app` for what it shows, `guard` for who may see it."""
