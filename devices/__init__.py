"""The agent: what travels to a board.  Standard library, numpy and a LiteRT runtime; Python 3.9 and newer."""
