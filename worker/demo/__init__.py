"""The demonstration: sample pictures in, verdicts and a contact sheet out."""
