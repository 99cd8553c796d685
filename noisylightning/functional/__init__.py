"""Pure tensor mathematics: corrected and base losses as functions."""
