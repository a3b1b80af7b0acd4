"""What is wrong with the settings, the services and the machine, and what to set."""
