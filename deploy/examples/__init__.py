"""Small real models to try things with."""
