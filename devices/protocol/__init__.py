"""What host and board must agree on.  Standard library only; imported by both sides."""
