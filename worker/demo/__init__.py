"""The demonstration: sample pictures, their verdicts and a contact sheet."""
