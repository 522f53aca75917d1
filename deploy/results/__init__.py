"""What came back from the boards: raw samples, statistics on them, and the store that keeps both."""
