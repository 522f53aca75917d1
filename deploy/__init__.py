"""Build compressed TFLite models, push them to boards, run and measure them there."""

__version__ = "0.1.0"
