"""The emulator: a yard with a simulated model, a clock to turn, and outcomes on demand."""
