"""Coverage-guided fuzzing of everything that reads bytes of the other side: ``make fuzz``."""
